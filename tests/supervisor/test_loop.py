"""The loop executes commands: real processes over a real control channel."""

from __future__ import annotations

import gc
import logging
import os
import signal
import struct
import threading
from pathlib import Path
from typing import Any

import pytest
from control.test_receive import Odd, RaisesWhenLoaded
from support import targets
from support.running import House, errors, lives, logged, until, wait_for_end

from worker._core.messages import Manage, Received
from worker._supervisor.model import ServerPhase
from worker.constants import RestartOrder
from worker.process import WorkerProcess

ONE, TWO, THREE = (f"Sanic-Server-{number}-0" for number in range(3))
EIGHT = ("Errand", targets.errand, {}, False, True, True, True, 1)


pytestmark = [pytest.mark.usefixtures("main_is_heard"), pytest.mark.slow]


def frozen() -> bool:
    """Whether the collector passes over the main process's objects. (On CPython 3.12 some hundred always
    are.)
    """
    return gc.get_freeze_count() > 5_000


class TestCommands:
    def test_a_restart_replaces_one_server_or_all(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path, number=2)

        def act() -> None:
            before = {said.name: said.pid for said in house.said("ready", 2)}
            house.send(f"{ONE}:")
            house.said("ready", 3)
            house.said("SIGTERM", 1)
            assert house.until(ONE, state="ACKED")["starts"] == 2
            assert house.entry(ONE)["pid"] != before[ONE]
            assert house.entry(TWO)["pid"] == before[TWO]
            house.send("__ALL_PROCESSES__:")
            house.said("ready", 5)
            house.said("SIGTERM", 3)
            wait_for_end(before[TWO])
            assert house.until(ONE, state="ACKED", serving=True)["starts"] == 3
            assert house.until(TWO, state="ACKED", serving=True)["starts"] == 2

        house.run(act)
        assert errors(caplog) == []

    def test_the_new_process_receives_the_reloaded_files(self, tmp_path: Path) -> None:
        house = House(tmp_path)

        def act() -> None:
            house.said("ready")
            house.plan("shows_its_birth")
            house.send("__ALL_PROCESSES__:a.py,C:\\b.py")
            (born,) = (said.what for said in house.said(None, 3) if isinstance(said.what, dict))
            assert born["config"] == {"RELOADED_FILES": "a.py,C:\\b.py"}
            house.said("ready", 2)

        house.run(act)

    def test_a_worker_inherits_nothing_of_the_main_process(self, tmp_path: Path) -> None:
        house = House(tmp_path, "shows_its_birth")
        files = {fd: targets.file_of(fd) for fd in (house._subscriber.fileno(), house._publisher.fileno())}
        house.kwargs["files"] = files
        house.manager.transient.clear()
        house.manager.create_server()

        def act() -> None:
            born = house.said(None)[0]
            assert born.what["has"] == [house._publisher.fileno()]
            assert born.what["sid"] == born.pid
            assert born.what["wakeup"] == -1
            assert born.what["sigterm"] and born.what["sigint"]
            assert born.what["identifier"] == "Srv 1"
            house.said("ready")

        house.run(act)

    def test_scaling_up_and_down(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        house = House(tmp_path, number=2)

        def act() -> None:
            house.said("ready", 2)
            house.send("__SCALE__:4")
            house.said("ready", 4)
            assert {said.name for said in house.heard} == {f"Sanic-Server-{n}-0" for n in range(4)}
            house.all_acked()
            house.send("__SCALE__:4")
            logged(caplog, "No change needed. There are already 4 workers.")
            house.send("__SCALE__:2")
            # The youngest are stopped, and their entries removed.
            gone = house.said("SIGINT", 2)
            assert {said.name for said in gone} == {"Sanic-Server-2-0", "Sanic-Server-3-0"}
            until(lambda: set(house.state.copy()) == {"Sanic-Main", ONE, TWO}, "their entries gone")
            house.send("__SCALE__:3")
            house.until("Sanic-Server-4-0", state="ACKED")

        house.run(act)
        assert errors(caplog) == []
        assert "Scaling from 2 to 4 workers" in caplog.messages
        assert "Scaling from 4 to 2 workers" in caplog.messages

    def test_scaling_down_removes_a_failed_server_first(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path, number=3, max_consecutive_failures=1)

        def act() -> None:
            ready = {said.name: said.pid for said in house.said("ready", 3)}
            house.all_acked()
            os.kill(ready[ONE], signal.SIGKILL)
            house.until(ONE, state="FAILED")
            house.send("__SCALE__:2")
            until(lambda: set(house.state.copy()) == {"Sanic-Main", TWO, THREE}, "its entry gone")
            assert lives(ready[TWO]) and lives(ready[THREE])

        house.run(act)
        assert len(errors(caplog)) == 1

    @pytest.mark.parametrize(
        ("message", "refused"),
        [
            ("__SCALE__:0", "Cannot scale to 0 workers."),
            ("__SCALE__:-3", "Cannot scale to 0 workers."),
            (
                "__SCALE__:6",
                "Cannot scale to 6 workers: max_workers is 5. Set SANIC_WORKER_MAX_WORKERS to allow more.",
            ),
            (
                (*EIGHT[:7], 6),
                (
                    "Cannot manage 6 processes of Errand: max_workers is 5. Set SANIC_WORKER_MAX_WORKERS to "
                    "allow more."
                ),
            ),
        ],
    )
    def test_a_command_beyond_the_limits_is_refused(
        self, message: Any, refused: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path, max_workers=5)

        def act() -> None:
            (said,) = house.said("ready")
            house.send(message)
            assert logged(caplog, refused) == f"Monitor refused a command from Sanic-Main: {refused}"
            assert lives(said.pid)

        house.run(act)
        assert house.heard[-1].what == "SIGINT"
        assert len(errors(caplog)) == 1

    @pytest.mark.parametrize(
        "message",
        [
            "__SCALE__:abc",
            "__SCALE__",
            EIGHT[:6],
            12,
            ["list"],
            Odd(ValueError("no"), "bool"),
            Odd(ValueError("no"), "bool", "repr"),
            RaisesWhenLoaded(ValueError("no")),
            RaisesWhenLoaded(SystemExit(3)),
        ],
        ids=lambda message: type(message).__name__,
    )
    def test_a_message_that_is_no_command_is_logged(
        self, message: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path)

        def act() -> None:
            house.said("ready")
            house.send(message)
            line = logged(caplog, "Monitor received an invalid message: ")
            assert ", from Sanic-Main: " in line
            house.call(lambda: None)

        house.run(act)
        assert len(errors(caplog)) == 1
        assert house.heard[-1].what == "SIGINT"

    def test_a_message_nested_too_deep_for_repr_is_logged(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also if each message is logged, as with --debug -vv."""
        caplog.set_level(logging.DEBUG, "sanic.root")
        monkeypatch.setattr(logging.getLogger("sanic.root"), "filters", [])
        house = House(tmp_path)
        depth = 5000
        payload = b"\x80\x04" + b"]" * depth + b"a" * (depth - 1) + b"."

        def act() -> None:
            house.said("ready")
            house.send_raw(struct.pack("!i", len(payload)) + payload)
            logged(caplog, "Monitor received an invalid message: [[")
            house.call(lambda: None)

        house.run(act)

    @pytest.mark.parametrize("message", [None, "", 0, [], False, b""], ids=repr)
    def test_an_empty_message_is_ignored(
        self, message: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path)

        def act() -> None:
            house.said("ready")
            house.send(message)
            logged(caplog, "Monitor ignored an empty message from Sanic-Main.")
            house.call(lambda: None)

        house.run(act)
        assert house.heard[-1].what == "SIGINT"

    def test_data_that_is_no_frame_is_dropped(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        house = House(tmp_path)

        def act() -> None:
            house.said("ready")
            house.send_raw(struct.pack("!i", -7) + b"rubbish")
            line = logged(caplog, "Monitor dropped data from Sanic-Main that is no message: ")
            assert "It begins with b'\\xff" in line
            house.send("__SCALE__:2")
            house.said("ready", 2)

        house.run(act)

    def test_log_lines_name_the_sender_of_a_command(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path)

        def act() -> None:
            house.said("ready")
            house.plan("terminates_and_exits early")
            house.send("__SCALE__:2")
            assert logged(caplog, "its error is in the log above").startswith(TWO + " [")
            stranger = os.fork()
            if not stranger:
                house.send("__SCALE__:0")
                os._exit(0)
            os.waitpid(stranger, 0)
            logged(caplog, f"Monitor refused a command from process {stranger}: ")

        house.run(act)

    def test_managed_processes_are_started_and_removed(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path, max_workers=5)
        kwargs = {"journal": house.kwargs["journal"], "gate": house.kwargs["gate"], "a": 1}

        def act() -> None:
            house.said("ready")
            # A pickle has no connections, so the call goes through the loop's own thread.
            manage = Manage("Errand", targets.errand, kwargs, False, True, False, True, 2)
            house.call(
                lambda: house.manager._loop.do(lambda: house.manager._loop._commands.obey(Received(manage)))
            )
            assert {said.name for said in house.said(["a"], 2)} == {"Sanic-Errand-0", "Sanic-Errand-1"}
            house.open_gate(2)
            # It is not tracked: when it is done, it is removed.
            logged(caplog, "Removed worker Errand")
            assert set(house.state.copy()) == {"Sanic-Main", ONE}

            waits = Manage("Later", targets.errand, kwargs, False, True, True, False, 1)
            house.call(
                lambda: house.manager._loop.do(lambda: house.manager._loop._commands.obey(Received(waits)))
            )
            house.until("Sanic-Later-0", state="NONE")
            house.send("Sanic-Later-0:")
            house.said(["a", "config"])
            house.open_gate()
            house.until("Sanic-Later-0", state="COMPLETED")

        house.run(act)
        assert errors(caplog) == []

    def test_managing_through_the_control_channel(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path)

        def act() -> None:
            house.said("ready")
            house.send(("Task", targets.nothing, {}, False, True, True, True, 1))
            house.until("Sanic-Task-0", state="COMPLETED")
            house.send(("Task", targets.nothing, {}, False, True, True, True, 1))
            logged(caplog, "Monitor failed to manage worker Task: ")
            house.call(lambda: None)
            house.send(("Seven", targets.nothing, {}, False, True, True, True))
            house.until("Sanic-Seven-0", state="COMPLETED")

        house.run(act)
        assert errors(caplog) == ["Monitor failed to manage worker Task: Worker Task already exists"]
        assert not any(record.exc_info for record in caplog.records)
        assert house.heard[-1].what == "SIGINT"

    def test_commands_are_deferred_until_all_servers_acked(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path, "acks_behind_the_gate")

        def act() -> None:
            house.said("at the gate")
            house.send("__SCALE__:2")
            house.send(("Task", targets.nothing, {}, False, True, True, True, 1))
            house.send("__SCALE__:abc")
            logged(caplog, "invalid message")
            house.call(lambda: None)
            assert set(house.state.copy()) == {"Sanic-Main", ONE}
            house.open_gate(2)
            house.until("Sanic-Task-0", state="COMPLETED")
            house.said("ready", 2)

        house.run(act)
        assert "Scaling from 1 to 2 workers" in caplog.messages

    def test_a_command_that_raises_is_logged(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """The loop calls a replaced verb, and accepts any result."""
        house = House(tmp_path)

        def scale(number: int) -> None:
            raise RuntimeError(f"not {number}")

        house.manager.scale = scale  # type: ignore[method-assign]

        def act() -> None:
            house.said("ready")
            house.send("__SCALE__:2")
            logged(caplog, "Monitor failed to execute a command from Sanic-Main")
            house.call(lambda: None)

        house.run(act)
        (record,) = (record for record in caplog.records if record.levelno >= logging.ERROR)
        assert record.exc_info and str(record.exc_info[1]) == "not 2"


def test_an_exit_at_the_time_of_the_stop_is_no_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A signal that reaches all processes may end a worker before the main process has stopped it."""
    house = House(tmp_path)

    def act() -> None:
        pid = house.said("ready")[0].pid
        until(lambda: house.manager._supervisor.phase is ServerPhase.RUNNING, "the end of the start")

        def both() -> None:
            os.kill(pid, signal.SIGKILL)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            os.kill(os.getpid(), signal.SIGTERM)

        house.call(lambda: house.manager._loop.do(both))

    house.run(act, stops=False)
    assert not errors(caplog)
    assert "Received signal SIGTERM. Shutting down." in caplog.messages


def test_heap_is_frozen_while_the_loop_runs(tmp_path: Path) -> None:
    house = House(tmp_path)
    gc.unfreeze()
    assert not frozen()
    house.run(lambda: until(frozen, "a frozen heap"))
    assert not frozen()


class TestCallsFromOtherThreads:
    """A call from another thread, while the loop runs."""

    def test_calls_run_in_the_thread_of_the_loop(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path)
        threads: set[str] = set()

        class Watching(WorkerProcess):
            def start(self) -> None:
                threads.add(threading.current_thread().name)
                super().start()

        def act() -> None:
            house.said("ready")
            for process in house.manager.transient_processes:
                process.__class__ = Watching
            house.manager.restart(process_names=[ONE], restart_order=RestartOrder.SHUTDOWN_FIRST)
            house.said("ready", 2)
            assert threads == {"MainThread"}
            house.manager.scale(2)
            house.said("ready", 3)
            house.manager.shutdown_server("Server-0")
            assert house.said("SIGINT")[0].name == ONE
            until(lambda: ONE not in house.state.copy(), "its entry gone")
            house.manager.shutdown()

        house.run(act, stops=False)
        assert errors(caplog) == []

    def test_invalid_arguments_raise_in_the_caller(self, tmp_path: Path) -> None:
        house = House(tmp_path, max_workers=2)

        def act() -> None:
            house.said("ready")
            with pytest.raises(ValueError, match=r"^Cannot scale to 0 workers\.$"):
                house.manager.scale(0)
            with pytest.raises(ValueError, match=r"max_workers is 2"):
                house.manager.scale(3)
            with pytest.raises(KeyError):
                house.manager.shutdown_server("Server-7")

        house.run(act)

    def test_failures_in_the_loop_are_logged(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        house = House(tmp_path)

        def act() -> None:
            house.said("ready")
            house.manager.restart(process_names=["nobody"])
            logged(caplog, "Failed to restart processes: nobody")
            house.manager.restart(restart_order=None, x=object)  # type: ignore[arg-type]
            house.said("ready", 2)
            house.manager.restarter = None  # type: ignore[assignment]
            house.manager.restart()
            logged(caplog, "Monitor failed to execute a command from Sanic-Main")

        house.run(act)
