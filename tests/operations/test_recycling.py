"""Servers that reach a limit are replaced under load, one at a time, without a failed request."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from integration.harness import Server
from integration.test_supervision import steady
from integration.tools import wait_until
from support.modes import WORKERS_IMPORT

from operations.quic import get, http3
from worker._core import IS_NATIVE

pytestmark = pytest.mark.operations

ONE = "Sanic-Server-0-0"
LEAKING = """
import os
from apps import steering
from sanic import Sanic, text

Sanic.start_method = os.environ["START_METHOD"]
app = Sanic("leaking")
app.add_route(steering.whoami, "/whoami")
app.add_route(steering.workers, "/workers")
kept = []

if os.path.exists("broken"):
    raise RuntimeError("broken code")

@app.get("/leak/<size:int>")
async def leak(request, size):
    kept.append(os.urandom(1024) * size)
    return text(str(os.getpid()))
"""
REPLACED = r"(Sanic-Server-\d-0) \[(\d+)\] (has|takes) .* Replacing it\."

Start = Callable[..., Server]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    (tmp_path / "leaking.py").write_text(LEAKING)
    with ExitStack() as stack:

        def run(*args: str, waits: bool = True, **options: Any) -> Server:
            server = Server.run("leaking:app", *args, cwd=tmp_path, **options)
            stack.enter_context(server)
            if waits:
                server.wait_ready().settled(options.get("workers", 2))
            return server

        yield run


def replacements(server: Server) -> list[tuple[str, str]]:
    """Return the slot and the pid of each server whose replacement has begun."""
    return [
        (found[1], found[2]) for line in server.log().splitlines() if (found := re.search(REPLACED, line))
    ]


def await_replacements(server: Server, count: int) -> None:
    """Wait until so many servers were replaced, and the last operation has ended."""
    wait_until(lambda: len(replacements(server)) >= count, f"{count} servers replaced", 60)
    wait_until(lambda: server.log().count("1 of 1 worker replaced") >= count, "the end of the last one", 60)


def test_a_leak_is_recycled_under_load(start: Start) -> None:
    server = start("--max-rss=120M", "--min-uptime=1", workers=2)
    # 200 times 256 KiB a second: far more than 100 MB a minute.
    with steady(server, "/leak/256", "--rate=200") as seen:
        await_replacements(server, 3)
    assert seen["failures"] == []
    assert "of memory (max_rss: 120.0 MiB for this process)" in server.log()
    assert server.stop() == 0
    assert server.log("err") == ""


def test_servers_are_replaced_after_their_requests_under_keep_alive_load(start: Start) -> None:
    server = start("--max-requests=60", "--recycle-jitter=0.5", "--min-uptime=0.2", workers=4)
    before = {entry["pid"] for entry in server.settled(4).values()}
    with steady(server, "/leak/1", "--rate=200") as seen:
        await_replacements(server, 5)
    assert seen["failures"] == []
    limits = {int(found[1]) for found in re.finditer(r"max_requests: (\d+) for this", server.log())}
    assert all(30 <= limit <= 60 for limit in limits)
    assert len(limits) > 1, "the processes draw different limits"
    assert len({pid for _, pid in replacements(server)}) == len(replacements(server)), (
        "none is replaced twice"
    )
    assert before & {int(pid) for _, pid in replacements(server)}
    assert server.stop() == 0


def test_a_limit_of_one_request_makes_no_storm(start: Start) -> None:
    server = start("--max-requests=1", "--min-uptime=2", workers=1)
    with steady(server, "/leak/1", "--rate=50") as seen:
        await_replacements(server, 3)
        began = [line.at for line in server.output.lines if re.search(REPLACED, line.text)]
    assert seen["failures"] == []
    # Each process ran for two seconds. A line may be read late, but not early.
    assert all(at >= server.started_at + 2.0 * number for number, at in enumerate(began, 1))
    assert server.stop() == 0


def test_a_lifetime_ends_without_a_request(start: Start) -> None:
    server = start("--max-lifetime=1", "--min-uptime=0.1", "--recycle-jitter=0", workers=1)
    before = server.settled(1)[ONE]["pid"]
    wait_until(lambda: server.settled(1)[ONE]["pid"] != before, "another process", 30)
    assert server.stop() == 0
    assert "has run for" in server.log()


@pytest.mark.modes(*WORKERS_IMPORT)
def test_code_that_does_not_start_leaves_the_old_process_and_is_tried_again(
    start: Start, tmp_path: Path
) -> None:
    args = ("--max-requests=1", "--min-uptime=0.1", "--backoff-max=1")
    server = start(*args, workers=1, start_method="spawn", waits=False)
    server.wait_line("Worker ready")
    # Before the first request, after which it is replaced.
    (tmp_path / "broken").touch()
    before = server.get("/whoami")["pid"]
    wait_until(lambda: server.log().count("Keeping the previous worker") >= 2, "two failed replacements", 60)
    assert server.get("/whoami")["pid"] == before
    assert len(replacements(server)) == 1, "it is told once"
    (tmp_path / "broken").unlink()
    wait_until(lambda: server.get("/whoami")["pid"] != before, "another process", 60)
    assert server.stop() == 0


@pytest.mark.skipif(not IS_NATIVE, reason="the run is on the pure core anyway")
def test_the_pure_core_recycles_too(start: Start) -> None:
    server = start("--max-requests=50", "--min-uptime=0.2", workers=2, env={"WORKER_CORE": "pure"})
    with steady(server, "/leak/1", "--rate=100") as seen:
        await_replacements(server, 2)
    assert seen["failures"] == []
    assert server.stop() == 0


def test_a_server_of_http3_is_replaced_once_its_port_is_free(tmp_path: Path) -> None:
    with http3(tmp_path, LEAKING, "--max-requests=1", "--min-uptime=0.1") as server:
        status, before = get(server, tmp_path, "/leak/1")
        assert status == 200
        server.wait_line(f"{ONE} .{before.decode()}. has received 1 requests")
        server.wait_line("1 of 1 worker replaced")
        status, after = get(server, tmp_path, "/leak/1")
        assert status == 200
        assert after != before
        assert server.stop() == 0
