"""The snapshot of the server: from the state and from the kernel, at no cost between two of them."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from support.processes import Children
from support.running import until

from worker._inspect import status
from worker._inspect.health import readiness
from worker._inspect.metrics import expose
from worker._inspect.status import Sampler
from worker._state import event_log, events, schema
from worker._state.event_log import EventLog
from worker._state.shared import SharedState
from worker._system import proc
from worker._system.listen_queue import ListenQueue, queue_length
from worker.constants import MAIN_NAME

SERVER_KEYS = {
    "app",
    "version",
    "core",
    "sanic",
    "pid",
    "uptime",
    "workers_wanted",
    "workers_ready",
    "stops_in",
    "preload",
    "restarts",
    "backlog",
    "state_bytes",
    "state_max_bytes",
    "last_event",
}
WORKER_KEYS = {
    "name",
    "server",
    "phase",
    "state",
    "pid",
    "uptime",
    "restarts",
    "requests",
    "in_flight",
    "connections",
    "loop_lag_p50",
    "loop_busy",
    "loop_lag_p99",
    "heartbeat_age",
    "rss_bytes",
    "pss_bytes",
    "cpu_seconds",
    "why",
    "next_restart_in",
}
ONE = "Sanic-Server-0-0"

CHANGE = events.FilesChanged(level=0, text="a.py has changed", files=("a.py",), by="", operation="")


@pytest.fixture
def children() -> Iterator[Children]:
    with Children() as children:
        yield children


@pytest.fixture
def state() -> Iterator[SharedState]:
    state = SharedState(8 << 20)
    state[MAIN_NAME] = {"pid": os.getpid()}
    yield state
    state.close()


def entry(pid: int, phase: str = "ready", **more: Any) -> dict[str, Any]:
    return {"server": True, "state": "ACKED", "pid": pid, "phase": phase, **more}


def wait_for_signal() -> None:
    signal.pause()


def only(sampler: Sampler) -> dict[str, Any]:
    """Return the only worker of a snapshot."""
    (worker,) = sampler.status()["workers"]
    assert isinstance(worker, dict)
    return worker


def settle(memory: Any = None) -> None:
    """Wait until no thread reads memory."""
    until(lambda: all(one.name != "memory" for one in threading.enumerate()), "the end of the reader")
    # From CPython 3.13 on, a thread counts as alive for a moment after it has left that list.
    if memory is not None:
        memory._reader.join()


@pytest.mark.native
class TestSnapshot:
    def test_has_all_keys_and_json_can_hold_it(self, state: SharedState) -> None:
        state[ONE] = entry(os.getpid())
        found = Sampler(state, {"app": "shop"}).status()
        assert found.keys() == {"time", "server", "workers", "operations"}
        assert found["server"].keys() == SERVER_KEYS
        assert found["workers"][0].keys() == WORKER_KEYS
        assert json.loads(json.dumps(found)) == found
        assert datetime.fromisoformat(found["time"]).tzinfo is not None
        settle()

    def test_shows_the_server(self, state: SharedState) -> None:
        state[ONE] = entry(os.getpid())
        server = Sampler(state, {"app": "shop"}).status()["server"]
        assert (server["app"], server["core"], server["pid"]) == ("shop", "native", os.getpid())
        assert (server["workers_wanted"], server["workers_ready"]) == (1, 1)
        assert 0 < server["uptime"] < 24 * 3600
        assert 0 < server["state_bytes"] < server["state_max_bytes"] <= 8 << 20
        settle()

    def test_shows_what_a_worker_has_used(self, state: SharedState, children: Children) -> None:
        pid = children.fork(wait_for_signal)
        state[ONE] = entry(pid, restarts=2, why="It exited.")
        worker = only(Sampler(state, {}))
        assert (worker["name"], worker["server"], worker["pid"]) == (ONE, True, pid)
        assert (worker["restarts"], worker["why"]) == (2, "It exited.")
        assert worker["rss_bytes"] > 1 << 20
        assert worker["cpu_seconds"] >= 0
        assert 0 <= worker["uptime"] < 60
        settle()

    def test_shows_the_numbers_that_the_worker_writes(self, state: SharedState) -> None:
        state[ONE] = entry(os.getpid())
        sampler = Sampler(state, {})
        before = only(sampler)
        assert [before[key] for key in ("requests", "in_flight", "loop_lag_p50", "heartbeat_age")] == [
            None
        ] * 4
        state.beat(3, in_flight=2, connections=5, loop_lag_p50=0.001, loop_lag_p99=0.25, loop_busy=0.5)
        worker = only(sampler)
        assert (worker["requests"], worker["in_flight"], worker["connections"]) == (3, 2, 5)
        assert [worker[key] for key in ("loop_lag_p50", "loop_lag_p99", "loop_busy")] == [0.001, 0.25, 0.5]
        assert 0 <= worker["heartbeat_age"] < 30
        settle()

    def test_a_process_that_is_gone_has_no_figures(self, state: SharedState, children: Children) -> None:
        pid = children.fork(int)
        children.settle(pid)
        children.reap(pid)
        state[ONE] = entry(pid)
        found = Sampler(state, {}).status()
        worker = found["workers"][0]
        assert [worker[key] for key in ("uptime", "rss_bytes", "pss_bytes", "cpu_seconds")] == [None] * 4
        assert found["server"]["workers_ready"] == 0
        settle()

    def test_a_slot_in_backoff_has_no_process(self, state: SharedState) -> None:
        soon = datetime.now(tz=timezone.utc) + timedelta(seconds=30)
        state[ONE] = entry(os.getpid(), "backoff", next_restart_at=soon)
        found = Sampler(state, {}).status()
        worker = found["workers"][0]
        assert (worker["pid"], worker["uptime"], worker["rss_bytes"]) == (None, None, None)
        assert 0 < worker["next_restart_in"] <= 30
        assert (found["server"]["workers_wanted"], found["server"]["workers_ready"]) == (1, 0)

    @pytest.mark.parametrize(
        ("phase", "wanted", "ready"),
        [
            ("starting", 1, 0),
            ("ready", 1, 1),
            ("replacing", 1, 1),
            ("draining", 1, 0),
            ("failed", 1, 0),
            ("stopped", 1, 0),
            ("stopping", 0, 0),
        ],
    )
    def test_counts_the_servers_by_phase(
        self, state: SharedState, phase: str, wanted: int, ready: int
    ) -> None:
        state[ONE] = entry(os.getpid(), phase)
        state["Sanic-Inspector-0"] = {**entry(os.getpid()), "server": False}
        server = Sampler(state, {}).status()["server"]
        assert (server["workers_wanted"], server["workers_ready"]) == (wanted, ready)
        settle()

    def test_a_worker_that_a_signal_has_stopped_is_not_ready(
        self, state: SharedState, children: Children
    ) -> None:
        pid = children.fork(wait_for_signal)
        state[ONE] = entry(pid)
        sampler = Sampler(state, {})
        assert [worker.is_ready for worker in sampler.servers()] == [True]
        os.kill(pid, signal.SIGSTOP)
        os.waitid(os.P_PID, pid, os.WSTOPPED)
        assert [worker.is_ready for worker in sampler.servers()] == [False]
        os.kill(pid, signal.SIGCONT)
        os.waitid(os.P_PID, pid, os.WCONTINUED)
        assert [worker.is_ready for worker in sampler.servers()] == [True]

    def test_values_of_users_are_not_unpickled(self, state: SharedState) -> None:
        state[ONE] = {**entry(os.getpid()), "mine": Explosive()}
        assert only(Sampler(state, {}))["name"] == ONE
        settle()

    @pytest.mark.parametrize("value", ["x", -1, pytest.param(10**400, id="huge"), math.nan, b"x", [1], None])
    def test_a_value_of_another_type_counts_as_absent(self, state: SharedState, value: Any) -> None:
        state[ONE] = entry(os.getpid(), restarts=value, requests_before=value, why=[value])
        sampler = Sampler(state, {})
        state.beat(2)
        worker = only(sampler)
        assert (worker["restarts"], worker["requests"], worker["why"]) == (0, 2, None)
        assert readiness(sampler)["status"] == "ok"
        assert b'sanic_worker_requests_total{slot="Sanic-Server-0-0"} 2.0' in expose(sampler, "")[0]
        settle()

    def test_the_requests_of_a_slot_never_become_fewer(self, state: SharedState) -> None:
        state[ONE] = entry(os.getpid(), requests_before=40)
        sampler = Sampler(state, {})
        state.beat(2)
        assert only(sampler)["requests"] == 42
        # The process has exited; the main process has not added its requests yet.
        state.update_entry(ONE, {"phase": "backoff"})
        assert only(sampler)["requests"] == 42
        state.update_entry(ONE, {"requests_before": 45})
        assert only(sampler)["requests"] == 45
        settle()


@pytest.mark.native
class TestLastEvent:
    def test_is_found_wherever_the_log_begins_anew(self, state: SharedState) -> None:
        log, sampler = EventLog(state), Sampler(state, {})
        cells, _ = schema.SHEETS["events"]
        seq = 0
        for more in (0, 1, 2, cells - 3, 1, cells, 1, 2 * cells + 7):
            for _ in range(more):
                log.append(CHANGE)
            seq += more
            assert sampler.status()["server"]["last_event"] == seq
            assert Sampler(state, {}).status()["server"]["last_event"] == seq

    def test_only_new_events_are_decoded(self, state: SharedState, monkeypatch: pytest.MonkeyPatch) -> None:
        log = EventLog(state)
        for _ in range(500):
            log.append(CHANGE)
        decoded: list[bytes] = []
        monkeypatch.setattr(
            event_log.json,
            "loads",
            lambda data: decoded.append(data) or json.JSONDecoder().decode(data.decode()),
        )
        assert event_log.last_seq(state, 498) == 500
        assert len(decoded) == 2


class Explosive:
    """A value that must not be unpickled."""

    def __reduce__(self) -> Any:
        return explode, ()


def explode() -> None:
    raise AssertionError("a value of a user was unpickled")


def test_a_plain_mapping_shows_what_it_has() -> None:
    state: dict[str, Any] = {
        MAIN_NAME: {"pid": os.getpid()},
        "a": {"server": True, "state": "ACKED", "serving": True, "pid": os.getpid()},
        "b": {"server": True, "state": "STARTED", "serving": False, "pid": os.getpid()},
        "c": {"server": True, "state": "TERMINATED", "pid": os.getpid()},
        "d": {"server": True, "state": "TERMINATED", "phase": "backoff", "pid": 1},
    }
    found = Sampler(state, {}).status()
    assert [worker["phase"] for worker in found["workers"]] == ["ready", "starting", "stopping", "backoff"]
    server = found["server"]
    assert (server["workers_wanted"], server["workers_ready"]) == (3, 1)
    assert (server["state_bytes"], server["state_max_bytes"], server["last_event"]) == (None, None, 0)
    settle()


def test_a_plain_mapping_may_hold_anything() -> None:
    broken = {"requests": "x", "in_flight": math.nan, "last_beat": 3, "serving": "x", "next_restart_at": 4}
    state = {MAIN_NAME: {"pid": os.getpid()}, "a": {"server": True, "state": 7, "pid": os.getpid(), **broken}}
    sampler = Sampler(state, {})
    worker = only(sampler)
    assert {worker[key] for key in ("state", "requests", "in_flight", "next_restart_in")} == {None}
    assert readiness(sampler)["status"] == "failed"
    assert expose(sampler, "")
    settle()


def test_a_process_that_does_not_start_by_itself_is_stopped() -> None:
    state = {MAIN_NAME: {"pid": os.getpid()}, "idle": {"server": False, "state": "NONE"}}
    worker = only(Sampler(state, {}))
    assert (worker["phase"], worker["pid"]) == ("stopped", None)


class TestProportionalMemory:
    def test_is_read_behind_the_request_and_shown_by_a_later_one(self) -> None:
        memory = status._ProportionalMemory()
        pid = os.getpid()
        assert memory.read([pid]) == {}
        settle(memory)
        assert (memory.read([pid])[pid] or 0) > 1 << 20

    def test_no_thread_reads_while_the_values_are_fresh(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(status, "PSS_REFRESH", 3600.0)
        memory = status._ProportionalMemory()
        memory.read([os.getpid()])
        settle(memory)
        first = memory._reader
        assert all(memory.read([os.getpid()]) for _ in range(10))
        assert memory._reader is first

    def test_old_values_are_read_again_and_very_old_ones_are_not_shown(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        memory = status._ProportionalMemory()
        pid = os.getpid()
        memory.read([pid])
        settle(memory)
        monkeypatch.setattr(status, "PSS_REFRESH", 0.0)
        first = memory._reader
        assert memory.read([pid])[pid] is not None
        assert memory._reader is not first
        settle(memory)
        monkeypatch.setattr(status, "PSS_MAX_AGE", 0.0)
        assert memory.read([pid]) == {}
        settle(memory)

    def test_one_refresh_is_bounded_and_the_next_one_goes_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(status, "PSS_BUDGET", -1.0)
        read: list[int] = []
        monkeypatch.setattr(proc, "pss_bytes", lambda pid: read.append(pid) or 1)
        memory = status._ProportionalMemory()
        for count in (1, 2, 3):
            memory.read([101, 102, 103])
            settle(memory)
            assert read == [101, 102, 103][:count]

    def test_a_process_that_is_gone_has_none(self, children: Children) -> None:
        pid = children.fork(int)
        children.reap(pid)
        memory = status._ProportionalMemory()
        memory.read([pid])
        settle(memory)
        assert memory.read([pid]) == {pid: None}

    def test_processes_that_are_gone_are_forgotten(self, monkeypatch: pytest.MonkeyPatch) -> None:
        memory = status._ProportionalMemory()
        memory.read([os.getpid()])
        settle(memory)
        memory.read([os.getppid()])
        settle(memory)
        assert memory._values.keys() == {os.getppid()}


class TestListenQueue:
    def test_counts_the_connections_that_wait_on_all_sockets(
        self, children: Children, tmp_path: Path
    ) -> None:
        with ExitStack() as stack:
            tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            unix = stack.enter_context(socket.socket(socket.AF_UNIX))
            unix.bind(str(tmp_path / "socket"))
            unix.listen(5)
            server = children.fork(wait_for_signal)
            # Only the main process holds this one: it is not the server's.
            stack.enter_context(other := socket.create_server(("127.0.0.1", 0)))
            queue = ListenQueue()
            assert queue.length(os.getpid(), server) == 0
            for address in (tcp.getsockname(), tcp.getsockname(), other.getsockname()):
                stack.enter_context(socket.create_connection(address))
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(str(tmp_path / "socket"))
            until(lambda: queue.length(os.getpid(), server) == 3, "three that wait")
            stack.enter_context(tcp.accept()[0])
            assert queue.length(os.getpid(), server) == 2
            # The main process knows its sockets.
            assert queue_length([os.fstat(one.fileno()).st_ino for one in (tcp, unix)]) == 2
            assert queue_length([]) is None

    def test_ipv6_is_counted(self, children: Children) -> None:
        try:
            sock = socket.create_server(("::1", 0), family=socket.AF_INET6)
        except OSError:
            pytest.skip("this machine has no IPv6")
        with sock:
            server = children.fork(wait_for_signal)
            queue = ListenQueue()
            assert queue.length(os.getpid(), server) == 0
            with socket.create_connection(sock.getsockname()[:2]):
                until(lambda: queue.length(os.getpid(), server) == 1, "one that waits")

    def test_is_not_known_without_a_socket(self, children: Children) -> None:
        pid = children.fork(wait_for_signal)
        assert ListenQueue().length(pid, pid) is None
        assert ListenQueue().length(os.getpid(), 2**22 + 1) is None

    def test_is_not_known_where_the_kernel_refuses(
        self, children: Children, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)):
            server = children.fork(wait_for_signal)
            queue = ListenQueue()
            assert queue.length(os.getpid(), server) == 0

            def refuse(*_: object) -> Any:
                raise PermissionError

            monkeypatch.setattr("worker._system.listen_queue.socket.socket", refuse)
            assert queue.length(os.getpid(), server) is None


class TestUsage:
    def test_the_name_of_a_program_may_hold_anything(self, children: Children) -> None:
        def rename() -> None:
            Path("/proc/self/comm").write_text(") S 1 (")
            signal.pause()

        pid = children.fork(rename)
        until(lambda: ") S 1 (" in Path(f"/proc/{pid}/comm").read_text(), "the new name")
        usage = proc.usage(pid)
        assert usage is not None
        assert usage.is_running
        assert 0 <= usage.uptime < 60

    def test_a_process_that_has_exited_does_not_run(self, children: Children) -> None:
        pid = children.fork(int)
        children.settle(pid)
        usage = proc.usage(pid)
        assert usage is None or not usage.is_running
        children.reap(pid)
        assert proc.usage(pid) is None
        assert proc.pss_bytes(pid) is None
