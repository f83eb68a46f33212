"""Every worker that exits is replaced, no stop hangs, no worker is orphaned, no request is lost."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from signal import SIGHUP, SIGKILL
from time import monotonic
from typing import Any

import pytest
from support.modes import HAS_PRELOAD, MODE, NOT_FORK, WORKERS_IMPORT

from worker.constants import ExitCode

from .harness import Server
from .tools import HERE, free_port, port_is_free, status, wait_until

Run = Callable[..., Server]
APP = "apps.supervised:app"
# The managed processes that a reload replaces.
REPLACED = ("transient", "configured")
ONE, TWO = "Sanic-Server-0-0", "Sanic-Server-1-0"

pytestmark = pytest.mark.ours


@contextlib.contextmanager
def steady(server: Server, path: str, *options: str) -> Iterator[dict[str, Any]]:
    """Make load from another process before, while and after the body runs; the mapping has the outcomes."""
    command = [sys.executable, str(HERE / "load.py"), str(server.port), path, *options]
    seen: dict[str, Any] = {}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "under way\n"
            yield seen
        finally:
            out, _ = process.communicate("", timeout=60)
            seen.update(json.loads(out))
            print(seen)


def pids(server: Server, count: int) -> dict[str, int]:
    """Return the pid of each server, once all serve."""
    return {name: entry["pid"] for name, entry in server.settled(count).items()}


def all_new(server: Server, before: dict[str, int]) -> dict[str, int]:
    """Wait until each server is a new process, and no other is left."""

    def look() -> dict[str, int]:
        found = pids(server, len(before))
        return found if not set(found.values()) & {*before.values()} else {}

    found = wait_until(look, "a new process for each", 60)
    wait_until(lambda: not {*before.values()} & set(server.processes()), "the old ones gone", 60)
    return found


@contextlib.contextmanager
def hanging(server: Server, way: str) -> Iterator[int]:
    """Make the answering worker hang in this way; return its pid."""
    connection = HTTPConnection("127.0.0.1", server.port, timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", f"/hang/{way}")
        (event,) = server.wait_events("hangs", way=way)
        yield event.pid


class TestExit:
    def test_a_killed_worker_is_replaced(self, run: Run) -> None:
        server = run(APP).wait_ready()
        before = pids(server, 2)
        os.kill(before[ONE], SIGKILL)
        wait_until(lambda: pids(server, 2)[ONE] != before[ONE], "another process")
        server.wait_line(rf"{ONE} \[{before[ONE]}\] was killed by SIGKILL .* Restarting it ")
        after = server.table()
        assert after[TWO]["pid"] == before[TWO]
        assert (after[ONE]["last_exit"], after[ONE]["restarts"]) == ("SIGKILL", 1)
        assert server.stop() == 0

    @pytest.mark.modes(*WORKERS_IMPORT)
    def test_broken_code_and_its_repair(self, run: Run, tmp_path: Path) -> None:
        """A reload into code that does not start changes nothing; the next reload mends it."""
        server = run(APP).wait_ready()
        before = pids(server, 2)
        (tmp_path / "code").write_text("broken")
        server.signal(SIGHUP)
        server.wait_line("Keeping the previous worker; rollout aborted, 1 worker not restarted")
        assert pids(server, 2) == before
        (entry,) = wait_until(
            lambda: [
                entry
                for entry in server.table().values()
                if entry.get("last_exit") and entry["state"] == "ACKED"
            ],
            "an exit in the state",
        )
        assert entry["last_exit"] == "exit code 1"
        assert "SyntaxError: broken on purpose" in entry["why"]
        (tmp_path / "code").unlink()
        server.signal(SIGHUP)
        all_new(server, before)
        assert server.stop() == 0

    @pytest.mark.modes(*WORKERS_IMPORT)
    def test_the_main_process_has_an_exit_code_of_its_own_if_all_servers_failed(
        self, run: Run, tmp_path: Path
    ) -> None:
        server = run(APP, "--max-consecutive-failures=2", "--backoff-initial=0.01").wait_ready()
        before = pids(server, 2)
        (tmp_path / "code").write_text("broken")
        for pid in before.values():
            os.kill(pid, SIGKILL)
        assert server.wait() == ExitCode.CRASH_LOOP
        assert "No server can run any more. Shutting down." in server.log()
        assert "It is FAILED" in server.log()

    def test_reloader_and_inspector_are_replaced(self, run: Run) -> None:
        env = {"SANIC_INSPECTOR": "true", "SANIC_INSPECTOR_PORT": "0"}
        server = run(APP, "--reload", env=env).wait_ready()
        names = ("Sanic-Reloader-0", "Sanic-Inspector-0")
        for name in names:
            os.kill(wait_until(lambda name=name: server.table().get(name, {}).get("pid"), name), SIGKILL)
        for name in names:
            wait_until(lambda name=name: server.table()[name].get("restarts") == 1, "it replaced")
        assert server.stop() == 0


class TestStop:
    @pytest.mark.parametrize("way", ["spins", "sleeps", "stopped", "ignores", "hangs"])
    def test_a_worker_that_hangs_is_killed_after_the_timeout(self, run: Run, way: str) -> None:
        def stop(timeout: int) -> float:
            server = run(APP, env={"SANIC_WORKER_GRACEFUL_TIMEOUT": str(timeout)}).wait_ready()
            pids(server, 2)
            with hanging(server, way) as pid:
                began = monotonic()
                assert server.stop() == ExitCode.KILLED
                took = monotonic() - began
            assert f"[{pid}] did not exit within {timeout} s of the stop. Killing it." in server.log("err")
            assert took >= timeout
            return took

        # The graceful timeout once, not twice. The longer one is for a slow machine.
        assert any(stop(timeout) < 2 * timeout - 0.1 for timeout in (2, 10))

    @pytest.mark.parametrize("seconds", [1.5, pytest.param(12.0, marks=pytest.mark.soak)])
    def test_a_request_has_the_whole_graceful_timeout(self, run: Run, seconds: float) -> None:
        server = run(APP).wait_ready()
        pids(server, 2)
        answers: list[str] = []
        connection = HTTPConnection("127.0.0.1", server.port, timeout=30)
        with contextlib.closing(connection):
            connection.request("GET", f"/slow/{seconds}")
            thread = threading.Thread(target=lambda: answers.append(connection.getresponse().read().decode()))
            thread.start()
            wait_until(lambda: in_flight(server), "the request taken")
            assert server.stop() == 0
            thread.join()
        assert answers == ["slow"]
        assert len(server.events("after_server_stop")) == 2


def in_flight(server: Server) -> bool:
    """Whether a worker has accepted and read a connection to the server."""
    end = f":{server.port:04X}"
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    taken = [row for row in rows if row[1].endswith(end) and row[3] == "01" and row[9] != "0"]
    return bool(taken) and all(row[4].endswith(":00000000") for row in taken)


class TestOrphans:
    @pytest.mark.parametrize("method", ["spawn", "fork"])
    def test_no_process_is_left(self, run: Run, method: str) -> None:
        """Within a second; a machine that stalls does not do so three times."""
        assert any(killed_main(run, method) < 1 for _ in range(3))

    def test_a_request_in_flight_is_answered(self, run: Run, tmp_path: Path) -> None:
        server = run(APP).wait_ready()
        pids(server, 2)
        connection = HTTPConnection("127.0.0.1", server.port, timeout=30)
        with contextlib.closing(connection):
            connection.request("GET", "/held")
            wait_until(lambda: in_flight(server), "the request taken")
            server.signal(SIGKILL)
            wait_until(lambda: port_is_free(server.port), "the port bindable")
            assert server.processes(), "the port is free before the answer"
            (tmp_path / "let go").touch()
            assert connection.getresponse().read() == b"held"
        wait_until(lambda: not server.processes(), "all gone", 10)

    def test_a_worker_that_hangs_in_c_code_is_killed(self, run: Run) -> None:
        """With the native core; the thread of the pure one waits for the interpreter."""
        env = {"SANIC_WORKER_GRACEFUL_TIMEOUT": "1", "WORKER_CORE": "native"}
        server = run(APP, env=env).wait_ready()
        pids(server, 2)
        with hanging(server, "hangs"):
            server.signal(SIGKILL)
            wait_until(lambda: not server.processes(), "all gone")


def killed_main(run: Run, method: str) -> float:
    """Kill the main process with idle workers, a kept connection, helpers and managed processes.

    Returns the time until all are gone, seconds.
    """
    env = {"SANIC_INSPECTOR": "true", "SANIC_INSPECTOR_PORT": "0"}
    server = run("apps.managed:app", "--reload", start_method=method, env=env).wait_ready()
    pids(server, 2)
    server.wait_events("managed", 6)
    kept = HTTPConnection("127.0.0.1", server.port, timeout=30)
    with contextlib.closing(kept):
        kept.request("GET", "/whoami")
        kept.getresponse().read()
        server.signal(SIGKILL)
        began = monotonic()
        wait_until(lambda: not server.processes(), "all processes gone")
        wait_until(lambda: port_is_free(server.port), "the port bindable")
        return monotonic() - began


class TestReload:
    @pytest.mark.parametrize("close", [True, False], ids=["close", "keep-alive"])
    @pytest.mark.parametrize("order", ["STARTUP_FIRST", "SHUTDOWN_FIRST"])
    @pytest.mark.modes(*NOT_FORK)
    def test_no_request_is_lost(self, run: Run, tmp_path: Path, order: str, close: bool) -> None:
        reloads_under_load(run, tmp_path, order, close, 1, 0.2)

    @pytest.mark.parametrize("apart", [0.1, 0.5, pytest.param(2.0, marks=pytest.mark.soak)])
    def test_two_reloads_close_together_leave_one_process_per_slot(self, run: Run, apart: float) -> None:
        two_reloads(run, apart, 3)


class TestAddressInUse:
    """An application that binds an address of its own in its only worker."""

    RELOAD = "__ALL_PROCESSES__:hello.py"

    def test_the_log_names_the_setting(self, run: Run) -> None:
        server = run(APP, workers=1, env={"BIND": str(free_port())}).wait_ready()
        before = pids(server, 1)
        server.post("/send", [self.RELOAD])
        server.wait_line("set SANIC_WORKER_RELOAD_ORDER=SHUTDOWN_FIRST")
        line = server.wait_line("Keeping the previous worker").text
        assert ": EADDRINUSE: [Errno 98]" in line
        assert pids(server, 1) == before
        assert server.stop() == 0

    def test_with_shutdown_first_the_new_worker_waits_for_the_address(self, run: Run, tmp_path: Path) -> None:
        server = run(
            APP, "--reload-order=SHUTDOWN_FIRST", workers=1, env={"BIND": str(free_port())}
        ).wait_ready()
        before = pids(server, 1)
        with contextlib.closing(HTTPConnection("127.0.0.1", server.port, timeout=30)) as connection:
            connection.request("GET", "/held")
            wait_until(lambda: in_flight(server), "the request taken")
            server.post("/send", [self.RELOAD])
            server.wait_line("Restarting it when the previous worker has exited.")
            (tmp_path / "let go").touch()
            assert connection.getresponse().read() == b"held"
        all_new(server, before)
        assert "restarts" not in server.table()[ONE]
        assert server.stop() == 0


def reload(server: Server, order: str) -> None:
    server.post("/m/restart", {"all_workers": True, "zero_downtime": order == "STARTUP_FIRST"})


def reloads_under_load(
    run: Run, folder: Path, order: str, close: bool, times: int, burn: float, worst: float | None = None
) -> dict[str, Any]:
    """Reload several times with 200 requests a second, into code whose import takes a processor some time."""
    server = run(APP).wait_ready()
    first = last = pids(server, 2)
    (folder / "code").write_text(f"burn {burn}")
    with steady(server, "/pid", *(["--close"] if close else [])) as seen:
        for _ in range(times):
            reload(server, order)
            last = all_new(server, last)
    assert seen["failures"] == []
    assert {*map(str, first.values())} & seen["pids"].keys()
    assert {*map(str, last.values())} & seen["pids"].keys()
    assert worst is None or seen["worst"] < worst, seen
    assert server.stop() == 0
    return seen


def two_reloads(run: Run, apart: float, times: int) -> None:
    """The second reload comes while the first is under way; in the end there is one process for each slot."""
    server = run("apps.managed:app").wait_ready()
    before = pids(server, 2)
    server.wait_events("done", 2)
    server.wait_events("managed", 7)
    # The main process, its tracker, two servers, the endless managed process, the process of the state, and
    # the preload process.
    count = 2 + 2 + 7 + (os.environ.get("WORKER_CORE") == "pure") + HAS_PRELOAD
    wait_until(lambda: len(server.processes()) == count, "all processes")
    if MODE == "app":
        # Managed processes that a reload does not replace keep the preload process that they are from. On a
        # slow machine they may be from none.
        kept = [event.pid for event in server.events("managed") if event.value("label") not in REPLACED]
        count += bool({int(status(pid)[1]) for pid in kept} - {server.pid})
    for _ in range(times):
        reload(server, "STARTUP_FIRST")
        threading.Event().wait(apart)
        reload(server, "STARTUP_FIRST")
        before = all_new(server, before)
        wait_until(lambda: len(server.processes()) == count, "as many processes as before", 30)
    assert server.stop() == 0
