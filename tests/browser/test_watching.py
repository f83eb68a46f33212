"""The page follows the server: workers, figures, operations and events, as they change."""

from __future__ import annotations

import re
from typing import Any

import pytest
from support.chromium import has_font
from support.fake_inspector import FakeInspector, operation, servers, worker

UNKNOWN = "\u2013"
# The events that the page keeps.
MAX_EVENTS = 200
HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>&amp;\u202e"


def tile(page: Any, name: str) -> Any:
    """Return the tile of a worker by its accessible name."""
    return page.get_by_role("listitem", name=name, exact=True)


def meter(page: Any, name: str, label: str) -> Any:
    """Return one measure of a worker."""
    return tile(page, name).locator(".meter").filter(has_text=label).locator("dd")


def test_a_tile_shows_what_is_known_of_a_worker(page: Any, inspector: FakeInspector, expect: Any) -> None:
    one = inspector.worker("Sanic-Server-0-0")
    one.update(requests=100, cpu_seconds=2.0, in_flight=7, loop_lag_p99=0.0123, restarts=3, uptime=7_384.0)
    inspector.push()
    one.update(requests=350, cpu_seconds=2.5)
    inspector.push(2)
    shown = tile(page, "Sanic-Server-0-0")
    expect(shown.locator(".phase")).to_have_text("ready")
    expect(shown.locator(".facts")).to_have_text("pid 4250 · up 2 h 3 min · 3 restarts")
    for label, text in {
        "Requests/s": "125",
        "In flight": "7",
        "Loop lag p99": "12 ms",
        "RSS": "80 MiB",
        "CPU": "25 %",
    }.items():
        expect(meter(page, "Sanic-Server-0-0", label)).to_have_text(text)
        line = shown.locator(".meter").filter(has_text=label).locator(".line")
        expect(line).to_have_attribute("d", re.compile(r"M\d"))


def test_the_figures_are_sums_over_the_workers(page: Any, inspector: FakeInspector, expect: Any) -> None:
    inspector.server.update(restarts=12, backlog=3)
    inspector.push()
    for number, one in enumerate(inspector.workers, 1):
        one.update(requests=one["requests"] + 1_000 * number, in_flight=number, connections=10)
    inspector.push()
    figures = page.locator("#summary")
    for label, text in {
        "Workers ready": "2 of 2",
        "Requests/s": "3000",
        "In flight": "3",
        "Connections": "20",
        "Memory": "80 MiB",
        "Restarts": "12",
        "Backlog": "3",
    }.items():
        shown = figures.locator("div", has=page.get_by_text(label, exact=True)).locator("dd")
        expect(shown).to_have_text(text)
    expect(page.get_by_role("heading", level=1)).to_have_text("shop")
    expect(page).to_have_title("2/2 ready · shop")


def test_unknown_values_are_dashes(page: Any, inspector: FakeInspector, expect: Any) -> None:
    unknown = ("in_flight", "loop_lag_p99", "rss_bytes", "pss_bytes", "cpu_seconds", "requests", "restarts")
    inspector.worker("Sanic-Server-0-0").update(dict.fromkeys(unknown))
    inspector.server.update(dict.fromkeys(("backlog", "uptime", "state_bytes")))
    inspector.push()
    for label in ("Requests/s", "In flight", "Loop lag p99", "RSS", "CPU"):
        expect(meter(page, "Sanic-Server-0-0", label)).to_have_text(UNKNOWN)
    expect(tile(page, "Sanic-Server-0-0").locator(".facts")).to_have_text("pid 4250 · up 1 min 1 s")


def test_a_worker_in_backoff_shows_why(page: Any, inspector: FakeInspector, expect: Any) -> None:
    why = "exited with code 1 after 3.2 s"
    inspector.worker("Sanic-Server-1-0").update(
        phase="backoff", pid=None, uptime=None, why=why, next_restart_in=2.5, restarts=1
    )
    inspector.push()
    shown = tile(page, "Sanic-Server-1-0")
    expect(shown.locator(".phase")).to_have_text("backoff")
    expect(shown.locator(".why")).to_have_text(why)
    expect(shown.locator(".facts")).to_have_text("no process · starts in 2.5 s · 1 restart")
    expect(page).to_have_title("1/2 ready · shop")


def test_workers_come_and_go(page: Any, inspector: FakeInspector, expect: Any) -> None:
    inspector.workers = servers(3)
    inspector.push()
    expect(page.locator("#workers > li")).to_have_count(3)
    del inspector.workers[1]
    inspector.push()
    expect(page.locator("#workers > li")).to_have_count(2)
    expect(tile(page, "Sanic-Server-1-0")).to_have_count(0)


def test_other_processes_are_listed_apart(page: Any, inspector: FakeInspector, expect: Any) -> None:
    expect(page.get_by_role("heading", name="Other processes")).to_have_count(0)
    inspector.workers.append(worker("Sanic-Reloader-0", server=False, pid=99))
    inspector.push()
    others = page.get_by_role("list", name="Other processes")
    expect(others.get_by_role("listitem")).to_contain_text("Sanic-Reloader-0")
    expect(others).to_contain_text("pid 99")
    expect(page.locator("#workers > li")).to_have_count(2)


def test_events_are_shown_newest_first_and_bounded(page: Any, inspector: FakeInspector, expect: Any) -> None:
    for number in range(1, MAX_EVENTS + 11):
        inspector.log("process_ready", f"event {number}.")
    inspector.push()
    events = page.get_by_role("list", name="Events").get_by_role("listitem")
    expect(events.first).to_contain_text(f"event {MAX_EVENTS + 10}.")
    expect(events).to_have_count(MAX_EVENTS)
    expect(events.last).to_contain_text("event 11.")


def test_events_before_the_page_was_opened_are_shown(
    open_tab: Any, inspector: FakeInspector, expect: Any
) -> None:
    inspector.log("server_ready", "Server ready.")
    inspector.log("process_exited", "It exited.", "error")
    page = open_tab()
    page.goto(inspector.url)
    events = page.get_by_role("list", name="Events").get_by_role("listitem")
    expect(events).to_have_count(2)
    expect(events.first).to_contain_text("It exited.")
    inspector.log("process_ready", "It is ready again.")
    inspector.push()
    expect(events).to_have_count(3)
    expect(events.first).to_contain_text("It is ready again.")


def test_the_level_of_an_event_is_a_word(page: Any, inspector: FakeInspector, expect: Any) -> None:
    for level in ("info", "warning", "error"):
        inspector.log("process_exited", "text", level)
    inspector.push()
    levels = page.locator("#events .level")
    expect(levels).to_have_text(["error", "warning", "info"])
    signs = levels.evaluate_all("all => all.map(one => getComputedStyle(one, '::before').content)")
    assert len({*signs}) == 3


def test_important_events_are_announced(page: Any, inspector: FakeInspector, expect: Any) -> None:
    announced = page.get_by_role("log", name="Announcements")
    assert announced.get_attribute("aria-live") == "polite"
    inspector.log("process_exited", "Sanic-Server-0-0 exited.", "error")
    inspector.log("process_started", "Sanic-Server-0-0 started.")
    inspector.log("server_ready", "Server ready.")
    inspector.push()
    expect(page.locator("#events")).to_contain_text("started")
    expect(announced.locator("p")).to_have_text(["Sanic-Server-0-0 exited.", "Server ready."])
    for number in range(20):
        inspector.log("process_exited", f"exit {number}.", "error")
    inspector.push()
    expect(announced.locator("p")).to_have_text([f"exit {number}." for number in range(15, 20)])


def test_an_operation_of_another_client_is_followed(page: Any, inspector: FakeInspector, expect: Any) -> None:
    one = operation(id="x", by="signal SIGHUP")
    inspector.operations.insert(0, one)
    inspector.push()
    shown = page.get_by_role("list", name="Operations").get_by_role("listitem")
    expect(shown).to_contain_text("by signal SIGHUP")
    expect(shown).to_contain_text("Running: 3 of 8 workers replaced")
    bar = page.get_by_role("progressbar", name="Restart")
    assert bar.evaluate("bar => [bar.value, bar.max]") == [3, 8]
    one.update(status="done", done=8, seconds=1.25, text="8 of 8 workers replaced")
    inspector.log("operation_ended", "Restart finished.", operation="x")
    inspector.push()
    expect(shown).to_contain_text("Done in 1.3 s: 8 of 8 workers replaced")
    expect(bar).to_have_count(0)
    expect(page.locator("#announcer")).to_contain_text("Done in 1.3 s")


@pytest.mark.parametrize("size", [12, 64])
def test_all_workers_fit_on_a_screen(open_tab: Any, inspector: FakeInspector, expect: Any, size: int) -> None:
    if not has_font():
        pytest.skip("Liberation Sans is not installed: run scripts/browser.py as root")
    inspector.workers = servers(size)
    for number, one in enumerate(inspector.workers):
        one.update(phase="replacing" if number % 2 else "ready", requests=0, rss_bytes=900 * 2**20)
    inspector.workers.append(worker("Sanic-Inspector-0", server=False))
    inspector.log("process_exited", "A long text. " * 30, "error")
    page = open_tab(viewport={"width": 1440, "height": 900})
    page.goto(inspector.url)
    tiles = page.locator("#workers > li")
    expect(tiles).to_have_count(size)
    for one in inspector.workers:
        one.update(requests=98_765, cpu_seconds=2.0)
    inspector.push()
    expect(meter(page, "Sanic-Server-0-0", "Requests/s")).to_have_text("98.8k")
    assert page.evaluate("document.documentElement.scrollHeight <= innerHeight")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    # Nothing of a tile is cut off.
    cut = "all => all.filter(one => one.scrollWidth > one.clientWidth || one.scrollHeight > one.clientHeight)"
    assert tiles.evaluate_all(f"all => ({cut})(all).map(one => one.ariaLabel)") == []
    assert tiles.locator(".name").evaluate_all(f"all => ({cut})(all).map(one => one.textContent)") == []
    overlapping = """all => all.filter((one) => {
        const boxes = [...one.querySelectorAll('.head > *')].map((part) => part.getBoundingClientRect());
        return boxes.some((box, index) => index && box.left < boxes[index - 1].right - 1);
    }).length"""
    assert tiles.evaluate_all(overlapping) == 0


def test_the_page_fits_on_a_phone(open_tab: Any, inspector: FakeInspector, expect: Any) -> None:
    inspector.log("process_exited", "unbroken" * 40, "error")
    page = open_tab(viewport={"width": 360, "height": 740})
    page.goto(inspector.url)
    expect(page.locator("#events li")).to_have_count(1)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_hostile_texts_stay_text(page: Any, inspector: FakeInspector, expect: Any) -> None:
    inspector.workers = [worker(HOSTILE, why=HOSTILE, phase=HOSTILE), worker("__proto__", pid=1)]
    inspector.workers += [worker("constructor", pid=2), worker(HOSTILE * 50, server=False)]
    inspector.server.update(app=HOSTILE, version=HOSTILE)
    inspector.log(HOSTILE, HOSTILE, HOSTILE)
    inspector.operations.append(operation(kind=HOSTILE, by=HOSTILE, text=HOSTILE, reason=HOSTILE))
    inspector.push()
    expect(page.get_by_role("heading", level=1)).to_have_text(HOSTILE)
    expect(page.locator("#events .text")).to_have_text(HOSTILE)
    expect(page.locator("#operations .kind")).to_have_text(HOSTILE)
    expect(page.locator("#workers .why").first).to_have_text(HOSTILE)
    expect(page.locator("#workers > li")).to_have_count(3)
    expect(tile(page, "__proto__").locator(".facts")).to_contain_text("pid 1")
    assert page.locator("img").count() == 0
    assert page.locator("body script").count() == 1
    assert page.title() != "taken"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_browser_refuses_html_from_text(page: Any, problems: list[str]) -> None:
    """The policy is the second lock, should a script ever make HTML from text."""
    attempt = """() => {
        try { document.body.innerHTML = "<b>x</b>"; return "done"; } catch (error) { return error.name; }
    }"""
    with page.expect_console_message(lambda message: "TrustedHTML" in message.text):
        assert page.evaluate(attempt) == "TypeError"
    assert any("TrustedHTML" in problem for problem in problems)
    problems.clear()
