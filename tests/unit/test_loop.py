"""What the loop does with what it is told, and with what happens: real processes over a real pipe."""

from __future__ import annotations

import logging
import os
import signal
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sanic.exceptions import ServerKilled

from worker import launch, loop
from worker.constants import RestartOrder
from worker.manager import WorkerManager
from worker.process import WorkerProcess

from . import targets
from .running import House, errors, listening, lives, logged, until, wait_for_end
from .test_inbox import Odd, RaisesWhenLoaded

ONE, TWO, THREE = (f"Sanic-Server-{number}-0" for number in range(3))
EIGHT = ("Errand", targets.errand, {}, False, True, True, True, 1)


@pytest.fixture(autouse=True)
def _listening(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with listening(caplog):
        yield


class TestAcks:
    @pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
    def test_it_is_ready_when_all_are(
        self, method: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path, number=2, method=method)

        def act() -> None:
            house.said("ready", 2)
            for name in (ONE, TWO):
                entry = house.until(name, state="ACKED", serving=True)
                assert entry["starts"] == 1
                assert lives(entry["pid"])
            house.all_acked()

        house.run(act)
        assert sorted(said.name for said in house.heard if said.what == "SIGINT") == [ONE, TWO]
        assert errors(caplog) == []

    def test_a_server_that_serves_is_ready(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """The ack may be lost: another write has covered it."""
        house = House(tmp_path, "only_serves")
        house.run(lambda: house.until(ONE, state="ACKED") and None)
        assert errors(caplog) == []

    def test_over_a_plain_dict(self, tmp_path: Path) -> None:
        """A fork has its own copy of it; the ack comes from elsewhere."""
        state: dict[str, Any] = {}
        house = House(tmp_path, "never_acks", state=state)

        def act() -> None:
            house.said("ready")
            house.until(ONE, state="STARTED")
            state[ONE] = {**state[ONE], "state": "ACKED"}
            house.all_acked()

        house.run(act)
        assert state == {"Sanic-Main": {"pid": os.getpid()}}

    def test_those_who_are_slow_are_named_at_the_threshold(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(WorkerManager, "THRESHOLD", 4)
        house = House(tmp_path, "acks_behind_the_gate", number=3)

        def act() -> None:
            house.said("at the gate", 3)
            house.open_gate()
            house.said("ready")

        with pytest.raises(ServerKilled):
            house.run(act, stops=False)
        (acked,) = (said.name for said in house.heard if said.what == "ready")
        slow = ", ".join(sorted({ONE, TWO, THREE} - {acked}))
        assert errors(caplog) == [
            "Not all workers acknowledged a successful startup. Shutting down.\n\n"
            f"No word of {slow} within the allowed time, which is 0.4 seconds. It is set by "
            "WorkerManager.THRESHOLD, in tenths of a second."
        ]
        assert not any(lives(said.pid) for said in house.heard)
        assert "SIGINT" not in {said.what for said in house.heard}

    @pytest.mark.parametrize(
        ("plan", "how"),
        [
            ("exits 3", "ended with exit code 3"),
            ("exits 0", "ended with exit code 0"),
            ("kills_itself 9", "was killed by SIGKILL"),
            ("kills_itself 11", "was killed by SIGSEGV"),
            ("kills_itself 40", "was killed by signal 40"),
        ],
    )
    def test_a_server_that_dies_before_its_ack(
        self, plan: str, how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path, plan)
        with pytest.raises(ServerKilled):
            house.run(stops=False)
        (message,) = errors(caplog)
        assert message.startswith(
            f"Not all workers acknowledged a successful startup. Shutting down.\n\n{ONE} ["
        )
        assert f"] {how} before it was ready. Where the log does not say why" in message

    def test_the_others_are_killed_with_their_children(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path, "never_acks")
        (tmp_path / "other").write_text("stubborn")
        house.manager.manage("Other", targets.server, {**house.kwargs, "plan": str(tmp_path / "other")})
        grandchildren: list[int] = []

        def act() -> None:
            (ready,) = house.said("ready")
            grandchildren.extend(said.what for said in house.said(None, 2) if said.what != "ready")
            os.kill(ready.pid, signal.SIGKILL)

        with pytest.raises(ServerKilled):
            house.run(act, stops=False)
        assert len(errors(caplog)) == 1
        (grandchild,) = grandchildren
        wait_for_end(grandchild)

    def test_a_word_of_early_termination(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        house = House(tmp_path, "terminates_and_exits early")
        with pytest.raises(ServerKilled):
            house.run(stops=False)
        (message,) = errors(caplog)
        assert "] failed to start; its error is in the log above." in message
        assert ONE in message

    def test_a_process_that_is_no_server_may_end(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path, "acks_behind_the_gate")
        for name, plan in (("Good", "exits 0"), ("Bad", "exits 2")):
            (tmp_path / name).write_text(plan)
            house.manager.manage(name, targets.server, {**house.kwargs, "plan": str(tmp_path / name)})

        def act() -> None:
            house.said("at the gate")
            house.until("Sanic-Good-0", state="COMPLETED")
            house.until("Sanic-Bad-0", state="FAILED")
            house.open_gate()
            house.said("ready")

        house.run(act)
        (message,) = errors(caplog)
        assert message.startswith("Sanic-Bad-0 [") and message.endswith("] ended with exit code 2")

    def test_a_process_that_is_no_server_fails_to_start(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path, "acks_behind_the_gate")
        (tmp_path / "other").write_text("fails_late")
        house.manager.manage("Other", targets.server, {**house.kwargs, "plan": str(tmp_path / "other")})

        def act() -> None:
            logged(caplog, "failed to start")
            house.open_gate()
            house.said("ready", 2)

        house.run(act)
        (message,) = errors(caplog)
        assert message.startswith("Sanic-Other-0 [")


class TestDeaths:
    @pytest.mark.parametrize(
        ("plan", "how", "state"),
        [
            ("acks_and_exits 0", "ended with exit code 0", "COMPLETED"),
            ("acks_and_exits 5", "ended with exit code 5", "FAILED"),
        ],
    )
    def test_a_server_that_ends_after_its_ack_is_named(
        self, plan: str, how: str, state: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path, plan)

        def act() -> None:
            (said,) = house.said("acked")
            house.until(ONE, state="ACKED")
            house.all_acked()
            house.open_gate()
            house.until(ONE, state=state)
            assert errors(caplog) == [f"{ONE} [{said.pid}] {how}"]

        house.run(act)

    def test_killed(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        house = House(tmp_path, number=2)

        def act() -> None:
            victim, _ = house.said("ready", 2)
            house.all_acked()
            os.kill(victim.pid, signal.SIGKILL)
            house.until(victim.name, state="FAILED")
            assert errors(caplog) == [f"{victim.name} [{victim.pid}] was killed by SIGKILL"]

        house.run(act)
        assert [said.what for said in house.heard if said.what != "ready"] == ["SIGINT"]

    def test_the_message_of_a_dying_process_counts_before_its_exit(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """``app.stop()`` in a worker: a word, and gone; that is a stop, no death."""
        house = House(tmp_path, "terminates_behind_the_gate")

        def act() -> None:
            house.said("at the gate")
            house.open_gate()

        house.run(act, stops=False)
        assert errors(caplog) == []

    def test_a_stop_comes_before_the_ack(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        house = House(tmp_path, "acks_behind_the_gate")

        def act() -> None:
            house.said("at the gate")
            house.send("__TERMINATE__")

        house.run(act, stops=False)
        assert errors(caplog) == []

    def test_the_state_is_gone(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """The process that holds it may be killed; main goes on and ends in order."""
        house = House(tmp_path, number=2)

        def act() -> None:
            victim, _ = house.said("ready", 2)
            house.all_acked()
            os.kill(house.state_pid, signal.SIGKILL)
            wait_for_end(house.state_pid)
            house.state = {}
            os.kill(victim.pid, signal.SIGKILL)
            assert logged(caplog, "was killed by SIGKILL").startswith(victim.name)

        house.run(act)
        assert len(errors(caplog)) == 1


class TestCommands:
    def test_a_restart(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
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

    def test_the_files_reach_the_new_process(self, tmp_path: Path) -> None:
        house = House(tmp_path)

        def act() -> None:
            house.said("ready")
            house.plan("shows_its_birth")
            house.send("__ALL_PROCESSES__:a.py,C:\\b.py")
            (born,) = (said.what for said in house.said(None, 3) if isinstance(said.what, dict))
            assert born["config"] == {"RELOADED_FILES": "a.py,C:\\b.py"}
            house.said("ready", 2)

        house.run(act)

    def test_a_child_of_the_loop_has_nothing_of_mains(self, tmp_path: Path) -> None:
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

    def test_scaling(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
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
            # The youngest leave, and their entries with them.
            gone = house.said("SIGINT", 2)
            assert {said.name for said in gone} == {"Sanic-Server-2-0", "Sanic-Server-3-0"}
            until(lambda: set(house.state.copy()) == {"Sanic-Main", ONE, TWO}, "their entries gone")
            house.send("__SCALE__:3")
            house.until("Sanic-Server-4-0", state="ACKED")

        house.run(act)
        assert errors(caplog) == []
        assert "Scaling from 2 to 4 workers" in caplog.messages
        assert "Scaling from 4 to 2 workers" in caplog.messages

    def test_a_dead_one_goes_first(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        house = House(tmp_path, number=3)

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
            ((*EIGHT[:7], 6), "6 processes of Errand: max_workers is 5"),
        ],
    )
    def test_what_is_refused(
        self, message: Any, refused: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path, max_workers=5)

        def act() -> None:
            (said,) = house.said("ready")
            house.send(message)
            assert logged(caplog, refused) == f"Refused a command of Sanic-Main: {refused}"
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
    def test_what_is_no_command(self, message: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
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

    @pytest.mark.parametrize("message", [None, "", 0, [], False, b""], ids=repr)
    def test_what_is_falsy_ends_nothing(
        self, message: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path)

        def act() -> None:
            house.said("ready")
            house.send(message)
            logged(caplog, "Monitor received an empty message from Sanic-Main, and goes on")
            house.call(lambda: None)

        house.run(act)
        assert house.heard[-1].what == "SIGINT"

    def test_what_is_no_message(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        house = House(tmp_path)

        def act() -> None:
            house.said("ready")
            house.send_raw(struct.pack("!i", -7) + b"rubbish")
            line = logged(caplog, "Monitor dropped what is no message, from Sanic-Main: ")
            assert "it begins with b'\\xff" in line
            house.send("__SCALE__:2")
            house.said("ready", 2)

        house.run(act)

    def test_the_sender_is_named(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        house = House(tmp_path)

        def act() -> None:
            house.said("ready")
            house.plan("terminates_and_exits early")
            house.send("__SCALE__:2")
            assert logged(caplog, "failed to start").startswith(TWO + " [")
            stranger = os.fork()
            if not stranger:
                house.send("__SCALE__:0")
                os._exit(0)
            os.waitpid(stranger, 0)
            logged(caplog, f"Refused a command of process {stranger}: ")

        house.run(act)

    def test_managing(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        house = House(tmp_path, max_workers=5)
        kwargs = {"journal": house.kwargs["journal"], "gate": house.kwargs["gate"], "a": 1}

        def act() -> None:
            house.said("ready")
            # What crosses the pipe as a pickle has no connections; the loop is told in its own words.
            manage = loop.Manage("Errand", targets.errand, kwargs, False, True, False, True, 2)
            house.call(lambda: house.manager._loop.do(lambda: house.manager._loop._obey(manage, None)))
            assert {said.name for said in house.said(["a"], 2)} == {"Sanic-Errand-0", "Sanic-Errand-1"}
            house.open_gate(2)
            # Nobody tracks it: when it is done, it is gone.
            logged(caplog, "Removed worker Errand")
            assert set(house.state.copy()) == {"Sanic-Main", ONE}

            waits = loop.Manage("Later", targets.errand, kwargs, False, True, True, False, 1)
            house.call(lambda: house.manager._loop.do(lambda: house.manager._loop._obey(waits, None)))
            house.until("Sanic-Later-0", state="NONE")
            house.send("Sanic-Later-0:")
            house.said(["a", "config"])
            house.open_gate()
            house.until("Sanic-Later-0", state="COMPLETED")

        house.run(act)
        assert errors(caplog) == []

    def test_managing_through_the_pipe(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        house = House(tmp_path)

        def act() -> None:
            house.said("ready")
            house.send(("Task", targets.nothing, {}, False, True, True, True, 1))
            house.until("Sanic-Task-0", state="COMPLETED")
            house.send(("Task", targets.nothing, {}, False, True, True, True, 1))
            logged(caplog, "Failed to manage worker Task")
            house.call(lambda: None)
            house.send(("Seven", targets.nothing, {}, False, True, True, True))
            house.until("Sanic-Seven-0", state="COMPLETED")

        house.run(act)
        assert errors(caplog) == ["Failed to manage worker Task"]
        assert house.heard[-1].what == "SIGINT"

    def test_commands_wait_for_the_acks(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
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

    def test_what_fails_ends_nothing(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Whoever replaces a verb is obeyed, whatever it does."""
        house = House(tmp_path)

        def scale(number: int) -> None:
            raise RuntimeError(f"not {number}")

        house.manager.scale = scale  # type: ignore[method-assign]

        def act() -> None:
            house.said("ready")
            house.send("__SCALE__:2")
            logged(caplog, "Failed to obey a command of Sanic-Main")
            house.call(lambda: None)

        house.run(act)
        (record,) = (record for record in caplog.records if record.levelno >= logging.ERROR)
        assert record.exc_info and str(record.exc_info[1]) == "not 2"


class TestVerbs:
    """Of another thread, while the loop runs."""

    def test_are_handed_to_the_loop(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
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

    def test_refuse_at_once(self, tmp_path: Path) -> None:
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

    def test_that_fail_later_are_logged(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        house = House(tmp_path)

        def act() -> None:
            house.said("ready")
            house.manager.restart(process_names=["nobody"])
            logged(caplog, "Failed to restart processes: nobody")
            house.manager.restart(restart_order=None, x=object)  # type: ignore[arg-type]
            house.said("ready", 2)
            house.manager.restarter = None  # type: ignore[assignment]
            house.manager.restart()
            logged(caplog, "Failed to obey a command of a call from another thread")

        house.run(act)


class TestStops:
    @pytest.mark.parametrize("signum", targets.STOPS)
    def test_a_signal(self, signum: signal.Signals, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        house = House(tmp_path, number=2)

        def act() -> None:
            house.said("ready", 2)
            os.kill(os.getpid(), signum)

        house.run(act, stops=False)
        assert [said.what for said in house.heard] == ["ready", "ready", "SIGINT", "SIGINT"]
        assert f"Received signal {signum.name}. Shutting down." in caplog.messages
        assert errors(caplog) == []

    def test_a_signal_before_the_run(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        house = House(tmp_path, number=2)
        house.manager.manage("Errand", targets.errand, {}, auto_start=False)
        signal.raise_signal(signal.SIGTERM)
        house.run(stops=False)
        assert house.heard == []
        assert "Received signal SIGTERM. Shutting down." in caplog.messages

    def test_a_signal_between_two_starts(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        house = House(tmp_path, "never_acks", number=3)
        start = WorkerProcess.start

        def interrupted(process: WorkerProcess) -> None:
            start(process)
            signal.raise_signal(signal.SIGTERM)

        monkeypatch.setattr(WorkerProcess, "start", interrupted)
        house.run(stops=False)
        assert {said.name for said in house.heard} <= {ONE}

    def test_while_acks_are_awaited(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        house = House(tmp_path, "never_acks", number=2)

        def act() -> None:
            house.said("ready", 2)
            house.send("__SCALE__:3")
            house.call(lambda: None)

        house.run(act)
        assert [said.what for said in house.heard] == ["ready", "ready", "SIGINT", "SIGINT"]
        assert errors(caplog) == []
        # What waited for the acks is not begun any more.
        assert "Scaling from 2 to 3 workers" not in caplog.messages

    def test_a_death_by_the_same_signal_is_no_failure(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """SIGTERM to all at once, while the servers start: main's own comes first."""
        house = House(tmp_path, "acks_behind_the_gate", number=2)
        the_loop = house.manager._loop
        turn = the_loop.turn

        def all_at_once(at_most: float | None = None) -> None:
            the_loop.turn = turn  # type: ignore[method-assign]
            for said in house.said("at the gate", 2):
                os.kill(said.pid, signal.SIGTERM)
                wait_for_end(said.pid)
            signal.raise_signal(signal.SIGTERM)
            turn(at_most)

        the_loop.turn = all_at_once  # type: ignore[method-assign]
        house.run(stops=False)
        assert errors(caplog) == []

    def test_the_second_one_kills(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        house = House(tmp_path, "stubborn", number=2)
        grandchildren: list[int] = []

        def act() -> None:
            grandchildren.extend(said.what for said in house.said(None, 2))
            os.kill(os.getpid(), signal.SIGINT)
            logged(caplog, "Received signal SIGINT. Shutting down.")
            assert all(lives(said.pid) for said in house.heard)
            os.kill(os.getpid(), signal.SIGINT)

        house.run(act, stops=False)
        assert "Shutdown interrupted. Killing." in caplog.messages
        for pid in grandchildren:
            wait_for_end(pid)
        assert errors(caplog) == []

    def test_who_ignores_its_stop_is_killed_with_its_children(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path, "stubborn", graceful_timeout=0.3)
        said = []

        def act() -> None:
            said.extend(house.said(None))

        house.run(act)
        assert errors(caplog) == [f"{ONE} [{said[0].pid}] did not end within 0.3 seconds; killing it"]
        wait_for_end(said[0].what)

    def test_a_replaced_one_that_ignores_its_stop(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path, "stubborn", graceful_timeout=0.3)

        def act() -> None:
            (old,) = house.said(None)
            house.plan("serves")
            house.send("__ALL_PROCESSES__:")
            house.said("ready")
            logged(caplog, f"{ONE} [{old.pid}] did not end within 0.3 seconds; killing it")
            wait_for_end(old.pid)
            wait_for_end(old.what)
            assert house.until(ONE, state="ACKED")["pid"] != old.pid

        house.run(act)

    @pytest.mark.parametrize(("target", "times"), [(targets.counts_stops, 3), (targets.server, 1)])
    def test_who_obeys_the_first_is_told_again(
        self,
        target: Callable[..., None],
        times: int,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(loop, "TELL_AGAIN", 0.05)
        house = House(tmp_path, target=target)
        house.run(lambda: house.said("ready") and None)
        assert [said.what for said in house.heard] == ["ready", *["SIGINT"] * times]
        assert errors(caplog) == []

    def test_messages_that_come_after_it(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        house = House(tmp_path)

        def act() -> None:
            house.said("ready")
            house.send("__TERMINATE__")
            house.send("__SCALE__:3")

        house.run(act, stops=False)
        assert [said.what for said in house.heard] == ["ready", "SIGINT"]
        assert "Scaling from 1 to 3 workers" not in caplog.messages

    def test_what_was_before_is_restored(self, tmp_path: Path) -> None:
        house = House(tmp_path)
        one, other = os.pipe()
        os.set_blocking(other, False)
        before = signal.set_wakeup_fd(other)
        try:
            house.run()
            assert signal.set_wakeup_fd(before) == other
        finally:
            os.close(one)
            os.close(other)

    def test_a_signal_while_it_is_closed(self, tmp_path: Path) -> None:
        house = House(tmp_path)
        the_loop = house.manager._loop

        class Closing:
            """A monitor during whose close a signal comes."""

            def __init__(self, monitor: Any) -> None:
                self.monitor = monitor

            def __getattr__(self, name: str) -> Any:
                return getattr(self.monitor, name)

            def close(self) -> None:
                self.monitor.close()
                signal.raise_signal(signal.SIGTERM)

        def replace_monitor() -> None:
            assert the_loop._monitor is not None
            launch.disown(the_loop._monitor)
            the_loop._monitor = Closing(the_loop._monitor)
            launch.own(the_loop._monitor)

        def act() -> None:
            house.said("ready")
            house.call(lambda: the_loop.do(replace_monitor))

        house.run(act)
