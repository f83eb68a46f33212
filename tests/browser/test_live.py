"""The page of a real server, whose workers are killed, replaced, broken, scaled and stopped meanwhile."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from signal import SIGKILL
from socket import create_connection
from typing import Any

import pytest
from integration.harness import Server, load
from integration.tools import free_port, wait_until

KEY = "a secret"
PID = re.compile(r"pid (\d+)")
# A start, or a restart of all workers, on a busy machine.
TIMEOUT_MS = 30_000

Show = Callable[..., tuple[Server, Any]]


@pytest.fixture
def show(tmp_path: Path, open_tab: Any, expect: Any) -> Iterator[Show]:
    """Return a function that starts a server of two workers, and shows its page in a tab."""
    with ExitStack() as stack:

        def show(**env: str) -> tuple[Server, Any]:
            port = free_port()
            variables = {"SANIC_INSPECTOR": "true", "SANIC_INSPECTOR_PORT": str(port), **env}
            server = stack.enter_context(Server.run("apps.supervised:app", cwd=tmp_path, env=variables))
            server.wait_ready("/pid")
            server.settled(2)
            wait_until(lambda: listens(port), "the inspector")
            page = open_tab()
            page.goto(f"http://127.0.0.1:{port}/")
            return server, page

        yield show


def listens(port: int) -> bool:
    """Return whether a server listens on the port."""
    with suppress(OSError), create_connection(("127.0.0.1", port)):
        return True
    return False


def pids(page: Any) -> dict[str, int]:
    """Return the pids that the tiles show, by the name of the worker."""
    read = "all => all.map((one) => [one.ariaLabel, one.querySelector('.facts').textContent])"
    shown = page.locator("#workers > li").evaluate_all(read)
    return {name: int(found[1]) for name, facts in shown if (found := PID.match(facts))}


def last_operation(page: Any) -> Any:
    return page.get_by_role("list", name="Operations").get_by_role("listitem").first


def press(page: Any, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def test_the_workers_are_shown(show: Show, expect: Any) -> None:
    server, page = show()
    expect(page.locator("#connection")).to_have_text("Live")
    expect(page.get_by_role("heading", level=1)).to_have_text("supervised")
    expect(page.locator("#about")).to_contain_text(f"pid {server.pid}")
    expect(page.locator("#workers .phase")).to_have_text(["ready", "ready"])
    table = server.table()
    assert pids(page) == {name: entry["pid"] for name, entry in table.items() if entry.get("server")}
    expect(page.get_by_role("list", name="Other processes")).to_contain_text("Sanic-Inspector-0")
    expect(page.locator("#events")).to_contain_text("eady")
    rate = page.locator("#summary > div", has_text="Requests/s").locator("dd")
    with load(server, "/pid"):
        expect(rate).to_have_text(re.compile(r"[1-9]"))
    # The lag is known after a few beats of the heartbeat.
    for meter in ("RSS", "CPU", "In flight", "Loop lag p99"):
        shown = page.locator("#workers .meter", has_text=meter).locator("dd").first
        expect(shown).to_have_text(re.compile(r"\d"), timeout=TIMEOUT_MS)


def test_a_worker_that_is_killed_is_seen_to_come_back(show: Show, expect: Any) -> None:
    _, page = show()
    expect(page.locator("#workers .phase")).to_have_text(["ready", "ready"])
    before = pids(page)
    os.kill(before["Sanic-Server-0-0"], SIGKILL)
    event = page.locator("#events li", has_text=f"[{before['Sanic-Server-0-0']}]").filter(has_text="SIGKILL")
    expect(event.locator(".level")).to_have_text(re.compile("error|warning"), timeout=TIMEOUT_MS)
    expect(page.locator("#announcer")).to_contain_text("SIGKILL")
    tile = page.get_by_role("listitem", name="Sanic-Server-0-0", exact=True)
    expect(tile.locator(".facts")).to_contain_text("1 restart", timeout=TIMEOUT_MS)
    expect(page.locator("#workers .phase")).to_have_text(["ready", "ready"], timeout=TIMEOUT_MS)
    after = pids(page)
    assert after["Sanic-Server-0-0"] != before["Sanic-Server-0-0"]
    assert after["Sanic-Server-1-0"] == before["Sanic-Server-1-0"]


def test_workers_are_restarted_and_scaled(show: Show, expect: Any) -> None:
    server, page = show()
    expect(page.locator("#workers .phase")).to_have_text(["ready", "ready"])
    before = pids(page)
    press(page, "Rolling restart")
    expect(last_operation(page)).to_contain_text("Done in", timeout=TIMEOUT_MS)
    rolled = {name: entry["pid"] for name, entry in server.settled(2).items()}
    assert not {*rolled.values()} & {*before.values()}

    press(page, "Restart Sanic-Server-1-0")
    expect(page.locator("#operations .outcome", has_text="Done in")).to_have_count(2, timeout=TIMEOUT_MS)
    restarted = {name: entry["pid"] for name, entry in server.settled(2).items()}
    assert [name for name in rolled if restarted[name] != rolled[name]] == ["Sanic-Server-1-0"]

    press(page, "One worker more")
    expect(page.locator("#workers > li")).to_have_count(3, timeout=TIMEOUT_MS)
    server.settled(3)
    field = page.get_by_role("textbox", name="Number of workers")
    field.fill("1")
    field.press("Enter")
    press(page, "Scale down")
    expect(page.locator("#workers > li")).to_have_count(1, timeout=TIMEOUT_MS)
    server.settled(1)


def test_a_roll_into_broken_code_fails_and_the_server_serves_on(
    show: Show, expect: Any, tmp_path: Path
) -> None:
    server, page = show()
    expect(page.locator("#workers .phase")).to_have_text(["ready", "ready"])
    before = pids(page)
    (tmp_path / "code").write_text("broken")
    press(page, "Rolling restart")
    expect(last_operation(page)).to_contain_text("Failed after", timeout=TIMEOUT_MS)
    expect(last_operation(page)).to_contain_text("SyntaxError: broken on purpose")
    expect(page.locator("#announcer")).to_contain_text("Failed after")
    assert {entry["pid"] for entry in server.settled(2).values()} == {*before.values()}
    (tmp_path / "code").unlink()
    press(page, "Rolling restart")
    expect(last_operation(page)).to_contain_text("Done in", timeout=TIMEOUT_MS)


def test_an_inspector_that_is_killed_is_found_again(show: Show, expect: Any) -> None:
    server, page = show()
    expect(page.locator("#connection")).to_have_text("Live")
    seen = page.evaluate_handle(
        """() => {
            const seen = [], connection = document.getElementById("connection");
            new MutationObserver(() => seen.push(connection.dataset.state))
                .observe(connection, { attributes: true });
            return seen;
        }"""
    )
    os.kill(server.table()["Sanic-Inspector-0"]["pid"], SIGKILL)
    expect(page.locator("#events")).to_contain_text("SIGKILL", timeout=TIMEOUT_MS)
    expect(page.locator("#connection")).to_have_text("Live", timeout=TIMEOUT_MS)
    assert "lost" in seen.json_value()
    expect(page.locator("#workers .phase")).to_have_text(["ready", "ready"])


def test_the_server_is_stopped_after_a_confirmation(show: Show, expect: Any) -> None:
    server, page = show()
    expect(page.locator("#connection")).to_have_text("Live")
    press(page, "Stop…")
    press(page, "Stop the server")
    assert server.wait() == 0
    expect(page.locator("#connection")).to_contain_text("Connection lost", timeout=TIMEOUT_MS)
    expect(last_operation(page)).to_contain_text("The server has stopped")


def test_a_wrong_key_shows_nothing(show: Show, expect: Any) -> None:
    _, page = show(SANIC_INSPECTOR_API_KEY=KEY)
    dialog = page.get_by_role("dialog", name="API key")
    field = dialog.get_by_label("Key", exact=True)
    field.fill("wrong")
    field.press("Enter")
    expect(dialog.get_by_role("alert")).to_contain_text("The key was refused")
    expect(page.locator("#workers > li")).to_have_count(0)
    field.fill(KEY)
    field.press("Enter")
    expect(page.locator("#workers .phase")).to_have_text(["ready", "ready"])
