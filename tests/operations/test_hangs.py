"""Servers that hang, each in its own way: found in time, named, with their stacks, and replaced."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from time import monotonic
from typing import Any, NamedTuple

import pytest
import trustme
from integration.harness import Server
from integration.test_health import switches
from integration.tools import free_port, wait_until
from support import cgroups
from support.delays import Delay, Stalls, counted_stalls
from system.test_proc import traced

from worker.constants import ExitCode

pytestmark = [pytest.mark.operations, pytest.mark.native]

APP = "apps.hanging:app"
LIMIT = 2.0
HANGS = re.compile(
    r"ERROR: (?P<name>\S+) \[(?P<pid>\d+)\] hangs: no progress for (?P<seconds>[\d.]+) s"
    r"(?:, of which it could not run for (?P<lost>[\d.]+) s)? \(hang_timeout: 2 s\)\. Cause: (?P<cause>\w+), "
)
# Longer than a server needs to be found and replaced, on a slow machine.
LONG = 40.0

Start = Callable[..., Server]


class Hang(NamedTuple):
    """A line of the log about a server that hangs."""

    name: str
    pid: int
    seconds: float
    lost: float
    cause: str
    text: str


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a server with a limit of 2 s, and wait until all of its workers serve."""
    with ExitStack() as stack:

        def run(*args: str, workers: int = 2, **options: Any) -> Server:
            limit = f"--hang-timeout={LIMIT:g}"
            # One stream for all: between two, the order of lines would be lost.
            server = Server.run(APP, limit, *args, cwd=tmp_path, workers=workers, closed="2>&1", **options)
            stack.enter_context(server)
            server.wait_ready().settled(workers)
            server.wait_line("The server is ready|Worker ready")
            return server

        yield run


def hangs(server: Server) -> list[Hang]:
    found = (HANGS.search(line.text) for line in [*server.output.lines])
    return [
        Hang(
            one["name"],
            int(one["pid"]),
            float(one["seconds"]),
            float(one["lost"] or 0),
            one["cause"],
            one.string,
        )
        for one in found
        if one
    ]


def wait_hangs(server: Server, count: int = 1) -> list[Hang]:
    """Wait until this many servers were found to hang."""
    return server.output.wait(
        lambda: found if len(found := hangs(server)) >= count else [], f"{count} hangs", LONG
    )


@contextmanager
def asked(server: Server, path: str) -> Iterator[int]:
    """Send a request that gets no answer; yield the pid of the worker that has it."""
    before = len(server.events("hangs") + server.events("pauses") + server.events("deadlocked"))
    with contextlib.closing(socket.create_connection(("127.0.0.1", server.port))) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())

        def begun() -> list[Any]:
            found = server.events("hangs") + server.events("pauses") + server.events("deadlocked")
            return sorted(found, key=lambda event: event.at)[before:]

        yield server.output.wait(begun, f"the handler of {path}", LONG)[0].pid


def pids(server: Server, count: int) -> dict[str, int]:
    return {name: entry["pid"] for name, entry in server.settled(count).items()}


def replaced(server: Server, pid: int, count: int) -> None:
    """Wait until another process has taken the place of this one, and all serve."""
    wait_until(lambda: pid not in server.processes(), f"the end of process {pid}", LONG)
    assert pid not in pids(server, count).values()


def stacks_of(server: Server, pid: int) -> str:
    """Return the stacks of a process in the log."""
    rest = server.log().partition(f" [{pid}]:\n")[2]
    assert rest, server.log()
    return re.split(r"^(?:Main|Srv)", rest, maxsplit=1, flags=re.MULTILINE)[0]


@pytest.fixture
def stalls() -> Iterator[Stalls]:
    """Return a function that tells for how long this process could not run."""
    with counted_stalls() as counted:
        yield counted


def found_in_time(hang: Hang, delay: Delay) -> bool:
    """Whether a hang was found within 1.2 times the limit, and the time that its machine was overloaded."""
    return hang.seconds + 0.05 >= LIMIT and hang.seconds <= 1.2 * LIMIT + hang.lost + delay.seconds + 0.1


@pytest.mark.parametrize(
    ("how", "cause", "place"),
    [
        ("block", "loop", "in block"),
        ("spin", "loop", "in spin"),
        ("lock", "loop", "theirs.acquire()"),
        ("keep_the_gil", "interpreter", "in keep_the_gil"),
        # The signal for the stacks must not end that call, or the worker would go on.
        ("keep_the_gil_in_a_call", "interpreter", "in keep_the_gil_in_a_call"),
    ],
)
def test_a_worker_that_hangs_is_found_in_time_named_and_replaced(
    how: str, cause: str, place: str, start: Start, stalls: Stalls
) -> None:
    server = start()
    before, delay = pids(server, 2), Delay(server.pid, stalls, LIMIT)
    with asked(server, f"/hang/{how}") as pid:
        (hang,) = wait_hangs(server)
        assert (hang.pid, hang.cause) == (pid, cause)
        assert found_in_time(hang, delay), (hang, delay.seconds)
        replaced(server, pid, 2)
    assert place in stacks_of(server, pid)
    if cause == "loop":
        assert f"It is handling GET /hang/{how}, for " in hang.text
        assert "Thread MainThread" in stacks_of(server, pid)
    (name,) = (name for name, one in before.items() if one == pid)
    after = pids(server, 2)
    assert {one: after[one] for one in after if one != name} == {
        one: before[one] for one in after if one != name
    }
    assert len(hangs(server)) == 1
    log = server.log()
    assert (
        log.index("hangs: no progress") < log.index("Stacks of") < log.index("requested by Sanic-Main (hang)")
    )


def test_requests_are_answered_meanwhile_and_the_hang_is_shown(start: Start) -> None:
    port = free_port()
    server = start(f"--health-port={port}")
    with asked(server, "/hang/block") as pid:
        (hang,) = wait_hangs(server)
        replaced(server, pid, 2)
    assert server.table()[hang.name]["why"].startswith(f"{hang.name} [{pid}] hangs: no progress for ")
    metrics = server.request("GET", "/metrics", port=port).text
    assert 'sanic_worker_hangs_total{cause="loop"} 1.0' in metrics
    assert 'sanic_worker_hangs_total{cause="frozen"} 0.0' in metrics


def test_a_worker_that_hangs_in_its_stop_is_killed_with_its_stacks_in_the_log(start: Start) -> None:
    # The stop is requested before the limit for hangs is over, and ends after it.
    server = start("--hang-timeout=5", "--graceful-timeout=7")
    with asked(server, "/hang/block") as pid:
        assert server.stop() == ExitCode.KILLED
    log = server.log()
    assert "in block" in log.partition(f"[{pid}] does not stop. Its stacks:")[2]
    assert log.index("does not stop") < log.index(f"[{pid}] did not exit within 7 s of the stop")
    # The other one stopped in time.
    assert log.count("does not stop") == 1
    assert "hangs: no progress" not in log


def test_the_only_worker_is_replaced_before_it_is_killed(start: Start) -> None:
    server = start(workers=1)
    with asked(server, "/hang/block") as pid:
        wait_hangs(server)
        line = server.wait_line(rf"\[{pid}\] did not exit within 3 s of the stop. Killing it", timeout=LONG)
        ready = server.wait_events("after_server_start", 2)
        assert ready[1].at < line.at
        replaced(server, pid, 1)


def test_a_stopped_worker_is_killed_as_soon_as_its_replacement_serves(start: Start, stalls: Stalls) -> None:
    server = start()
    delay = Delay(server.pid, stalls, LIMIT)
    pid = min(pids(server, 2).values())
    os.kill(pid, SIGSTOP)
    (hang,) = wait_hangs(server)
    assert (hang.pid, hang.cause) == (pid, "stopped")
    assert found_in_time(hang, delay), (hang, delay.seconds)
    server.wait_line(rf"\[{pid}\] hangs, and cannot stop\. Killing it", timeout=LONG)
    replaced(server, pid, 2)
    assert "stopped by a signal" in stacks_of(server, pid)


@pytest.mark.parametrize("controller", ["freezer", cgroups.V2])
def test_a_frozen_worker_is_replaced(controller: str, start: Start) -> None:
    server = start()
    pid = min(pids(server, 2).values())
    with cgroups.group(controller) as group:
        group.add(pid)
        group.freeze()
        (hang,) = wait_hangs(server)
        assert (hang.pid, hang.cause) == (pid, "frozen")
        server.wait_line(rf"\[{pid}\] hangs, and cannot stop\. Killing it", timeout=LONG)
        # With version 1, the process ends when it is thawed.
        group.thaw()
        replaced(server, pid, 2)


def test_workers_that_hang_together_are_replaced_one_at_a_time(start: Start) -> None:
    server = start(workers=3)
    before = pids(server, 3)
    for pid in before.values():
        os.kill(pid, SIGSTOP)
    found = wait_hangs(server, 3)
    assert {hang.pid for hang in found} == {*before.values()}
    wait_until(lambda: not {*before.values()} & server.processes().keys(), "the end of all three", LONG)
    assert not {*pids(server, 3).values()} & {*before.values()}
    step = r"requested by Sanic-Main \(hang\)|Restart finished"
    wait_until(lambda: len(re.findall(step, server.log())) >= 6, "the end of the last restart", LONG)
    assert [one[0] for one in re.findall(step, server.log())] == ["r", "R"] * 3


def test_a_deadlock_of_asyncio_is_no_hang(start: Start) -> None:
    server = start()
    with asked(server, "/deadlock") as deadlocked:
        # Another worker that hangs shows that the time has passed.
        others = {*pids(server, 2).values()} - {deadlocked}
        os.kill(min(others), SIGSTOP)
        replaced(server, wait_hangs(server)[0].pid, 2)
        assert deadlocked in pids(server, 2).values()
        assert {hang.pid for hang in hangs(server)} == others


@pytest.mark.parametrize(("how", "name"), [("debug", "pdb"), ("trace", "the trace function of apps.hanging")])
def test_a_worker_under_a_python_debugger_is_kept(how: str, name: str, start: Start) -> None:
    server = start("--graceful-timeout=1")
    with asked(server, f"/hang/{how}") as pid:
        server.wait_line(
            rf"\[{pid}\] has made no progress .* a debugger is at work in it: {name}", timeout=LONG
        )
        # It is looked at again, without another line.
        (other,) = {event.pid for event in server.events("after_server_start")} - {pid}
        os.kill(other, SIGSTOP)
        wait_hangs(server)
        wait_until(lambda: other not in server.processes(), "the end of the other one", LONG)
        assert pid in server.processes()
        assert server.log().count("a debugger is at work") == 1
    assert {hang.pid for hang in hangs(server)} == {other}


def test_a_worker_under_a_debugger_of_c_is_kept(start: Start) -> None:
    server = start()
    pid = min(pids(server, 2).values())
    with traced(pid):
        server.wait_line(
            rf"\[{pid}\] has made no progress .* a debugger is at work in it: process {os.getpid()}",
            timeout=LONG,
        )
    # It goes on when the debugger has left it.
    assert pid in pids(server, 2).values()
    assert not hangs(server)


@pytest.mark.parametrize("debug", ["--debug", "--dev"])
def test_no_worker_is_replaced_in_debug_mode(debug: str, start: Start) -> None:
    server = start(debug, "--graceful-timeout=1")
    server.wait_line("hang_timeout has no effect with --debug")
    with asked(server, "/hang/block") as pid:
        began = monotonic()
        wait_until(lambda: monotonic() > began + 2.5 * LIMIT, "the end of the limit")
        assert pid in server.processes()
    assert not hangs(server)


@pytest.mark.parametrize("which", ["main", "all"])
def test_a_suspended_main_process_replaces_no_worker(which: str, start: Start) -> None:
    """It continues first, and finds beats that are late by the time in which the workers were suspended."""
    server = start()
    before = pids(server, 2)
    suspended = [server.pid, *(before.values() if which == "all" else ())]
    for _ in range(3):
        for pid in suspended:
            os.kill(pid, SIGSTOP)
        began = monotonic()
        wait_until(lambda began=began: monotonic() > began + 1.5 * LIMIT, "the end of the limit")
        for pid in suspended:
            os.kill(pid, SIGCONT)
    assert pids(server, 2) == before
    # It still finds a worker that hangs.
    os.kill(before["Sanic-Server-0-0"], SIGSTOP)
    wait_hangs(server)
    replaced(server, before["Sanic-Server-0-0"], 2)
    assert {hang.pid for hang in hangs(server)} == {before["Sanic-Server-0-0"]}


def test_a_worker_whose_replacement_fails_stays_until_one_succeeds(start: Start, tmp_path: Path) -> None:
    server = start()
    (tmp_path / "broken").touch()
    with asked(server, "/hang/block") as pid:
        wait_hangs(server)
        server.wait_line(r"Keeping the previous worker", timeout=LONG)
        server.wait_line(rf"\[{pid}\] still hangs: .* The next attempt follows in 2 s", timeout=LONG)
        server.wait_line(rf"\[{pid}\] still hangs: .* The next attempt follows in 4 s", timeout=LONG)
        assert pid in server.processes()
        (tmp_path / "broken").unlink()
        replaced(server, pid, 2)
    assert len(hangs(server)) == 1


def test_a_worker_that_hangs_in_a_request_while_it_starts_is_found(start: Start, tmp_path: Path) -> None:
    server = start(workers=1)
    (tmp_path / "waiting").touch()
    with asked(server, "/hang/block") as pid:
        wait_hangs(server)
        # The first one accepts no more requests.
        with asked(server, "/hang/block") as next_:
            assert next_ != pid
            # The one after it is to start.
            (tmp_path / "waiting").unlink()
            hang = wait_hangs(server, 2)[1]
            assert hang.pid == next_
            # A start may take much longer.
            assert hang.seconds < 4 * LIMIT + hang.lost
            replaced(server, next_, 1)


def test_a_worker_that_goes_on_before_its_replacement_is_kept(start: Start, tmp_path: Path) -> None:
    server = start()
    (tmp_path / "broken").touch()
    with asked(server, "/pause/8.0") as pid:
        wait_hangs(server)
        line = server.wait_line(
            rf"\[{pid}\] makes progress again, after [\d.]+ s without\. Keeping it", timeout=LONG
        )
        seconds = re.search(r"after ([\d.]+) s", line.text)
        assert seconds is not None
        assert float(seconds[1]) > 7
        assert pid in pids(server, 2).values()
        # It may hang again, which is another event.
        os.kill(pid, SIGSTOP)
        wait_hangs(server, 2)
        # By now no replacement for the first one starts any more.
        (tmp_path / "broken").unlink()
        replaced(server, pid, 2)


def test_workers_that_spin_on_one_cpu_are_found(start: Start, stalls: Stalls, tmp_path: Path) -> None:
    """Each runs for a quarter of the time, which extends its limit to at most four times as much."""
    server = start(workers=4)
    before = {*pids(server, 4).values()}
    cpu = min(os.sched_getaffinity(0))
    for pid in before:
        for thread in os.listdir(f"/proc/{pid}/task"):
            os.sched_setaffinity(int(thread), {cpu})
    delay = Delay(server.pid, stalls, LIMIT)
    # No other worker takes the last requests if the first one that spins is found by then.
    (tmp_path / "broken").touch()
    with ExitStack() as stack:
        while len(spinning := {event.pid for event in server.events("hangs")}) < 4:
            stack.enter_context(asked(server, "/hang/spin"))
        assert spinning == before
        found = wait_hangs(server, 4)
        assert {hang.pid for hang in found} == before
        for hang in found:
            assert hang.cause == "loop"
            assert hang.seconds <= 4 * LIMIT + 0.2 * LIMIT + delay.seconds + 0.1
        (tmp_path / "broken").unlink()
        wait_until(lambda: not before & server.processes().keys(), "the end of all four", 2 * LONG)
    pids(server, 4)


def test_a_worker_of_http3_is_killed_before_the_next_one_starts(tmp_path: Path) -> None:
    pytest.importorskip("aioquic")
    certificate = trustme.CA().issue_cert("localhost")
    certificate.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    args = ("--http=3", f"--cert={tmp_path / 'cert.pem'}", f"--key={tmp_path / 'key.pem'}")
    args = (f"--hang-timeout={LIMIT:g}", *args)
    with Server.run(APP, *args, cwd=tmp_path, workers=1, closed="2>&1") as server:
        (first,) = server.wait_events("after_server_start")
        server.wait_line("Worker ready")
        os.kill(first.pid, SIGSTOP)
        (hang,) = wait_hangs(server)
        assert hang.text.endswith("Restarting it.")
        killed = server.wait_line(rf"\[{first.pid}\] hangs, and cannot stop. Killing it", timeout=LONG)
        second = server.wait_events("after_server_start", 2)[1]
        assert killed.at < second.at
        server.wait_line(r"Restart finished: 1 of 1")


def test_idle_processes_sleep(start: Start) -> None:
    """The main process wakes up once in the limit, and a server every fifth of it."""
    server = start()
    servers = pids(server, 2).values()
    seconds = 5 * LIMIT

    def quiet() -> bool:
        """Whether no process woke up more often than it may, once more excepted."""
        before = {pid: switches(pid) for pid in (server.pid, *servers)}
        began = monotonic()
        wait_until(lambda: monotonic() > began + seconds, "ten seconds")
        passed = monotonic() - began
        more = {pid: switches(pid) - before[pid] for pid in before}
        return more[server.pid] <= passed / LIMIT + 1 and all(
            more[pid] <= passed / (LIMIT / 5) + 2 for pid in servers
        )

    wait_until(quiet, "few wakeups", 60)
