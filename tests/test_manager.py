"""The manager: its process table, and its methods without a running loop."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing import Pipe, get_context
from pathlib import Path
from typing import Any

import pytest
from sanic.exceptions import ServerKilled
from support import targets
from support.running import House, errors, lives, logged, wait_for_end

from worker.constants import ProcessState, RestartOrder
from worker.manager import MonitorCycle, WorkerManager

ONE, TWO = "Sanic-Server-0-0", "Sanic-Server-1-0"


pytestmark = pytest.mark.usefixtures("main_is_heard")


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """Two servers over a plain dict; they are not run."""
    house = House(tmp_path, "never_acks", number=2, state={}, max_workers=5, graceful_timeout=1)
    yield house
    for process in house.manager.processes:
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process._current_process.join()
    house.state.clear()
    house.close()


class TestProcessTable:
    def test_initial_servers_and_state(self, house: House) -> None:
        manager = house.manager
        assert list(manager.transient) == ["Server-0", "Server-1"]
        assert manager.durable == {}
        assert (manager.num_server, manager.pid, manager._shutting_down) == (2, os.getpid(), False)
        assert house.state == {
            "Sanic-Main": {"pid": os.getpid()},
            ONE: {"server": True},
            TWO: {"server": True},
        }
        assert [one.ident for one in manager.transient_processes] == ["Srv 0", "Srv 1"]
        assert list(manager.processes) == []
        assert (manager.MAIN_IDENT, manager.MAIN_NAME, manager.THRESHOLD) == ("Sanic-Main", "Sanic-Main", 300)

    def test_zero_workers_are_refused(self) -> None:
        ends = Pipe(True)
        handlers = [signal.getsignal(signum) for signum in targets.STOPS]
        with pytest.raises(RuntimeError, match=r"^Cannot serve with no workers$"):
            WorkerManager(0, targets.nothing, {}, get_context("fork"), ends, {})
        assert [signal.getsignal(signum) for signum in targets.STOPS] == handlers
        for end in ends:
            end.close()

    def test_numbers_of_servers_are_not_reused(self, house: House) -> None:
        house.manager.shutdown_server()
        assert house.manager.create_server().ident == "Server-2"

    @pytest.mark.parametrize("transient", [True, False])
    def test_manage_adds_a_worker(self, house: House, transient: bool) -> None:
        worker = house.manager.manage("X", targets.nothing, {"a": 1}, transient=transient, workers=2)
        assert (house.manager.transient if transient else house.manager.durable)["X"] is worker
        assert (worker.restartable, worker.tracked, worker.auto_start) == (transient, True, True)
        assert sorted(one.name for one in worker.processes) == ["Sanic-X-0", "Sanic-X-1"]
        assert worker in house.manager.workers
        assert ("X", worker) in list(house.manager.all_workers)
        assert {*worker.processes} <= {*house.manager.transient_processes, *house.manager.durable_processes}

    def test_keywords_of_later_releases_are_accepted(self, house: House) -> None:
        worker = house.manager.manage(name="X", func=targets.nothing, kwargs={}, ident="xx")  # type: ignore[call-arg]
        assert (worker.ident, worker.label) == ("X", "xx")
        house.manager.shutdown_server(name="Server-0")  # type: ignore[call-arg]
        assert "Server-0" not in house.manager.transient

    def test_an_existing_name_is_refused(self, house: House) -> None:
        house.manager.manage("X", targets.nothing, {})
        for ident in ("X", "Server-0"):
            with pytest.raises(ValueError, match=f"^Worker {ident} already exists$"):
                house.manager.manage(ident, targets.nothing, {}, transient=True)

    def test_a_transient_worker_must_be_restartable(self, house: House) -> None:
        with pytest.raises(ValueError, match=r"^Cannot create a transient worker that is not restartable$"):
            house.manager.manage("X", targets.nothing, {}, transient=True, restartable=False)
        assert "X" not in house.manager.transient

    def test_only_untracked_workers_can_be_removed(
        self, house: House, caplog: pytest.LogCaptureFixture
    ) -> None:
        manager = house.manager
        tracked = manager.manage("X", targets.nothing, {})
        manager.remove_worker(tracked)
        assert errors(caplog) == ["Worker X is tracked and cannot be removed."]
        for transient in (True, False):
            one = manager.manage("Y", targets.nothing, {}, tracked=False, transient=transient)
            manager.remove_worker(one)
            assert "Removed worker Y" in caplog.messages
            assert "Sanic-Y-0" not in house.state
            assert one not in manager.workers

    def test_a_running_worker_cannot_be_removed(self, house: House, caplog: pytest.LogCaptureFixture) -> None:
        worker = house.manager.manage("Y", targets.server, house.kwargs, tracked=False)
        (process,) = worker.processes
        process.start()
        house.manager.remove_worker(worker)
        assert errors(caplog) == ["Worker Y has alive processes and cannot be removed."]
        assert worker in house.manager.workers


class TestCallsWithoutALoop:
    def start(self, house: House) -> list[int]:
        for process in house.manager.transient_processes:
            process.start()
        return [said.pid for said in sorted(house.said("ready", 2))]

    def test_restart_acts_at_once(self, house: House) -> None:
        old = self.start(house)
        house.manager.restart(process_names=[TWO])
        wait_for_end(old[1])
        assert lives(old[0])
        assert [one.pid == pid for one, pid in zip(house.manager.transient_processes, old, strict=True)] == [
            True,
            False,
        ]

    def test_zero_downtime_waits_for_the_ack_in_a_thread(self, house: House) -> None:
        """It stops the previous process as soon as the new one is acked."""
        old = self.start(house)
        house.manager.restart(process_names=[ONE], restart_order=RestartOrder.STARTUP_FIRST)
        (process,) = (one for one in house.manager.transient_processes if one.name == ONE)
        assert lives(old[0])
        process.set_state(ProcessState.ACKED)
        wait_for_end(old[0])

    def test_scaling_starts_and_removes_servers(self, house: House, caplog: pytest.LogCaptureFixture) -> None:
        house.manager.scale(3)
        assert house.said("ready")[0].name == "Sanic-Server-2-0"
        house.manager.scale(3)
        assert caplog.messages[-1] == "No change needed. There are already 3 workers."
        house.manager.scale(1)
        # Slots without a process are removed first.
        assert list(house.manager.transient) == ["Server-2"]
        assert house.manager.num_server == 1
        assert caplog.messages[-1] == "Scaling from 3 to 1 workers"

    @pytest.mark.parametrize(
        ("number", "match"),
        [
            (0, r"^Cannot scale to 0 workers\.$"),
            (-1, r"^Cannot scale to 0 workers\.$"),
            (
                6,
                r"^Cannot scale to 6 workers: max_workers is 5\. Set SANIC_WORKER_MAX_WORKERS to allow more",
            ),
        ],
    )
    def test_scaling_outside_the_limits_is_refused(self, house: House, number: int, match: str) -> None:
        with pytest.raises(ValueError, match=match):
            house.manager.scale(number)
        assert len(house.manager.transient) == house.manager.num_server == 2

    @pytest.mark.native
    def test_a_range_bounds_every_scaling(self, tmp_path: Path) -> None:
        house = House(tmp_path, "never_acks", number=1, state={}, workers="2..4")
        try:
            assert house.manager.num_server == 2
            for number in (1, 5):
                match = rf"^Cannot scale to {number} workers: the setting workers is 2\.\.4\.$"
                with pytest.raises(ValueError, match=match):
                    house.manager.scale(number)
            assert house.manager.num_server == 2
        finally:
            house.state.clear()
            house.close()

    def test_scaling_to_max_workers_is_allowed(self, house: House) -> None:
        house.manager.scale(5)
        assert len(house.manager.transient) == 5

    def test_shutdown_server_stops_one_server(self, house: House, caplog: pytest.LogCaptureFixture) -> None:
        one, two = self.start(house)
        house.manager.shutdown_server("Server-0")
        wait_for_end(one)
        assert lives(two)
        house.manager.shutdown_server()
        wait_for_end(two)
        house.manager.shutdown_server()
        assert errors(caplog) == ["Server shutdown failed because a server was not found."]
        with pytest.raises(KeyError, match="Server-9"):
            house.manager.shutdown_server("Server-9")
        house.said("SIGINT", 2)

    def test_shutdown_stops_all_servers_once(self, house: House) -> None:
        pids = self.start(house)
        house.manager.shutdown()
        assert house.manager._shutting_down
        for pid in pids:
            wait_for_end(pid)
        assert [said.what for said in house.said("SIGINT", 2)] == ["SIGINT"] * 2
        # A process that was stopped is not stopped again.
        house.manager.terminate()

    def test_terminate_stops_all_servers(self, house: House) -> None:
        pids = self.start(house)
        house.manager.terminate()
        for pid in pids:
            wait_for_end(pid)

    def test_kill_ends_all_servers(self, house: House, caplog: pytest.LogCaptureFixture) -> None:
        pids = self.start(house)
        with pytest.raises(ServerKilled):
            house.manager.kill()
        for pid in pids:
            wait_for_end(pid)
            assert any(line.endswith(f"[{pid}]") and line.startswith("Killing ") for line in caplog.messages)
        # Exited processes do no harm.
        with pytest.raises(ServerKilled):
            house.manager.kill()

    def test_a_signal_stops_and_a_second_one_kills(
        self, house: House, caplog: pytest.LogCaptureFixture
    ) -> None:
        pids = self.start(house)
        house.manager.shutdown_signal(signal.SIGTERM, None)
        house.said("SIGINT", 2)
        assert caplog.messages == ["Received signal SIGTERM. Shutting down."]
        house.manager.shutdown_signal(signal.SIGINT, None)
        assert caplog.messages[1] == "Shutdown interrupted. Killing."
        assert caplog.messages[-1] == "Received signal SIGINT. Shutting down."
        for pid in pids:
            wait_for_end(pid)

    def test_join_and_cleanup(self, house: House) -> None:
        self.start(house)
        house.manager.terminate()
        for process in house.manager.processes:
            process._move(ProcessState.ACKED)
        house.manager.join()
        assert [one.state for one in house.manager.processes] == [ProcessState.JOINED] * 2
        house.manager.cleanup()
        assert set(house.state) == {"Sanic-Main"}


class Channel:
    """Both ends of a connection that has no file descriptor."""

    def __init__(self) -> None:
        self.messages: deque[Any] = deque()

    def send(self, message: Any) -> None:
        self.messages.append(message)

    def poll(self, timeout: float) -> bool:
        return bool(self.messages)

    def recv(self) -> Any:
        return self.messages.popleft()

    def close(self) -> None:
        pass


class TestConnectionsWithoutADescriptor:
    def test_start_scaling_and_stop(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        channel = Channel()
        house = House(tmp_path, subscriber=channel, publisher=channel)
        house.kwargs["monitor_publisher"] = house._publisher
        house.manager.transient.clear()
        house.manager.create_server()

        def act() -> None:
            house.said("ready")
            channel.send("__SCALE__:2")
            house.said("ready", 2)
            channel.send(object())
            logged(caplog, "Monitor received an invalid message")
            channel.send("__TERMINATE__")

        house.run(act, stops=False)
        assert [said.what for said in house.heard] == ["ready", "ready", "SIGINT", "SIGINT"]

    def test_a_signal_sends_an_empty_message(self, tmp_path: Path) -> None:
        channel = Channel()
        house = House(tmp_path, subscriber=channel, publisher=channel, state={})
        house.manager.shutdown_signal(signal.SIGTERM, None)
        assert list(channel.messages) == [None]
        house.run(stops=False)

    def test_an_empty_message_ends_the_loop(self, tmp_path: Path) -> None:
        channel = Channel()
        house = House(tmp_path, subscriber=channel, publisher=channel, state={})
        house.manager.transient.clear()
        channel.send("")
        house.manager.monitor()
        assert house.manager._cycle() is MonitorCycle.BREAK
        assert not house.manager._shutting_down
        house.run(stops=False)

    def test_the_end_of_the_connection_is_logged(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Ends(Channel):
            def recv(self) -> Any:
                raise EOFError

        channel = Ends()
        house = House(tmp_path, subscriber=channel, publisher=channel, state={})
        house.manager.transient.clear()
        channel.send("anything")

        def act() -> None:
            logged(caplog, "the connection has ended (EOFError())")

        with pytest.raises(ServerKilled):
            house.run(act, stops=False)
        assert "No server can run any more. Shutting down." in errors(caplog)


class TestRun:
    def test_wrapped_methods_are_called(self, tmp_path: Path) -> None:
        """The loop obeys a message by the manager's own verb, with its usual arguments."""
        house = House(tmp_path)
        calls: list[tuple[Any, ...]] = []

        def noting(name: str, verb: Callable[..., None]) -> Callable[..., None]:
            def call(*args: Any, **kwargs: Any) -> None:
                calls.append((name, args, kwargs))
                verb(*args, **kwargs)

            return call

        for name in ("restart", "scale", "shutdown", "wait_for_ack"):
            setattr(house.manager, name, noting(name, getattr(house.manager, name)))

        def act() -> None:
            house.said("ready")
            house.send("__SCALE__:1")
            house.send(f"{ONE}:a,b:STARTUP_FIRST")
            house.said("ready", 2)
            house.send("__ALL_PROCESSES__:")
            house.said("ready", 3)
            house.send("__TERMINATE__")

        house.run(act, stops=False)
        first, last = RestartOrder.STARTUP_FIRST, RestartOrder.SHUTDOWN_FIRST
        assert calls == [
            ("wait_for_ack", (), {}),
            ("scale", (1,), {}),
            ("restart", (), {"process_names": [ONE], "reloaded_files": "a,b", "restart_order": first}),
            ("restart", (), {"process_names": None, "reloaded_files": "", "restart_order": last}),
            ("shutdown", (), {}),
        ]

    def test_a_process_without_auto_start_starts_on_request(self, tmp_path: Path) -> None:
        house = House(tmp_path)
        house.manager.manage("Later", targets.server, house.kwargs, auto_start=False, restartable=True)

        def act() -> None:
            house.said("ready")
            assert house.until("Sanic-Later-0", state="NONE") == {"server": False, "state": "NONE"}
            house.send("Sanic-Later-0:")
            assert house.said("ready", 2)[1].name == "Sanic-Later-0"

        house.run(act)
