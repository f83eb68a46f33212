"""One batch of events: commands that become one, and log lines about malformed ones."""

from __future__ import annotations

import logging
import os
import pickle
import signal
from pathlib import Path
from time import monotonic
from typing import Any, ClassVar

import pytest
from support.running import House, errors, logged, until

from worker import settings
from worker._control import throttle
from worker._control.coalesce import coalesce
from worker._control.throttle import MAX_LINES
from worker._core.messages import (
    Corrupt,
    Exited,
    Invalid,
    Manage,
    Opaque,
    Received,
    Restart,
    Scale,
    Stop,
    Terminate,
)
from worker._state.event_log import EventLog
from worker._supervisor.commands import DEFERRED, Commands
from worker._supervisor.loop import SLICE
from worker._supervisor.model import ServerPhase
from worker._supervisor.operations import Operations
from worker.constants import RestartOrder

pytestmark = pytest.mark.slow

FIRST, LAST = RestartOrder.STARTUP_FIRST, RestartOrder.SHUTDOWN_FIRST
GONE = Exited("a", 1, 0)
TORN = Corrupt("torn", b"")


def of(
    *names: str, files: str | None = "", order: RestartOrder = LAST, sender: int | None = None
) -> Received:
    return Received(Restart(names or None, files, order), sender)


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([], []),
        ([of("a")], [of("a")]),
        ([of("a"), of("a")], [of("a")]),
        ([of("b"), of("a", "b"), of("c", "a")], [of("b", "a", "c")]),
        ([of(), of()], [of()]),
        # "All" means only processes that restart with the server: a name may mean another one.
        ([of("a"), of(), of("b")], [of("a", "b"), of()]),
        ([of("a", order=FIRST), of("a")], [of("a", order=FIRST), of("a")]),
        ([of("a", files="x"), of("b", files="x")], [of("a", "b", files="x")]),
        ([of("a", files="x"), of("b"), of("c", files="x")], [of("a", "c", files="x"), of("b")]),
        ([of("a", files=None), of("b")], [of("a", files=None), of("b")]),
        ([of("a", sender=1), of("b", sender=2)], [of("a", "b", sender=1)]),
        *(
            ([of("a"), between, of("a"), of("b")], [of("a"), between, of("a", "b")])
            for between in (
                Received(Scale(2)),
                Received(Terminate()),
                Received(Stop()),
                Received(Invalid("x", "y"), 7),
                GONE,
                TORN,
            )
        ),
        ([of("a"), of("a"), GONE, TORN], [of("a"), GONE, TORN]),
    ],
)
def test_equal_restarts_are_merged(events: list[Any], expected: list[Any]) -> None:
    assert coalesce(events) == expected


def test_coalescing_does_not_unpickle_commands() -> None:
    opaque = Received(Opaque(pickle.dumps(Loading())))
    assert coalesce([of("a"), of("a"), opaque, of("a")]) == [of("a"), opaque, of("a")]
    assert not Loading.done


class Loading:
    """Record that it is unpickled; it is no command."""

    done: ClassVar[list[str]] = []

    def __setstate__(self, state: Any) -> None:
        self.done.append("loaded")

    def __getstate__(self) -> Any:
        return {"some": "state"}


class Waiting:
    """A supervisor that waits for the servers, and the manager whose verb is called."""

    phase = ServerPhase.STARTING

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.log = EventLog({})
        self.operations = Operations(monotonic, lambda slot: False, lambda slot: False, self.log)

    def name_of(self, pid: int | None) -> str:
        return f"process {pid}"

    def restart(self, **kwargs: Any) -> None:
        self.calls.append((kwargs["process_names"], kwargs["reloaded_files"]))


def obeying(waiting: Any) -> Commands:
    return Commands(waiting, waiting, waiting.name_of, lambda: False)


def test_a_pickled_command_is_loaded_after_earlier_commands(caplog: pytest.LogCaptureFixture) -> None:
    """Code that runs when a command is unpickled runs after the earlier commands."""
    waiting: Any = Waiting()
    waiting.phase = ServerPhase.RUNNING
    commands = obeying(waiting)
    Loading.done = waiting.calls
    commands.obey(of("a"))
    commands.obey(Received(Opaque(pickle.dumps(Loading())), 7))
    assert waiting.calls == [(["a"], ""), "loaded"]
    (message,) = errors(caplog)
    assert "Monitor received an invalid message" in message and "from process 7" in message


class TestDeferredCommands:
    TOO_MANY = (
        f"Monitor dropped a command from process 7: {DEFERRED} already wait until the servers have started."
    )

    def deferred(self, events: list[Received]) -> list[Any]:
        waiting: Any = Waiting()
        commands = obeying(waiting)
        for event in events:
            commands.obey(event)
        assert not waiting.calls
        deferred = commands.take_deferred()
        assert not commands.take_deferred()
        return deferred

    def test_equal_restarts_count_as_one(self, caplog: pytest.LogCaptureFixture) -> None:
        names = ["a", "b", "c", "d", "e"]
        assert self.deferred([of(name) for name in names * DEFERRED]) == [of(*names)]
        assert not errors(caplog)

    @pytest.mark.parametrize("differ", ["names", "files"])
    def test_distinct_commands_over_the_limit_are_dropped(
        self, differ: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        numbers = [str(number) for number in range(DEFERRED + 2)]
        if differ == "files":
            deferred = self.deferred([of(files=number, sender=7) for number in numbers])
            assert deferred == [of(files=number, sender=7) for number in numbers[:DEFERRED]]
        else:
            deferred = self.deferred([of(number, sender=7) for number in numbers])
            # The restart itself counts as well.
            assert deferred == [of(*numbers[: DEFERRED - 1], sender=7)]
        assert errors(caplog) == [self.TOO_MANY] * (2 if differ == "files" else 3)

    def test_a_duplicate_restart_over_the_limit_is_not_reported(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        numbers = [of(files=str(number), sender=7) for number in range(DEFERRED)]
        again = [*numbers, numbers[0], of(files="another", sender=7), numbers[-1]]
        assert self.deferred(again) == numbers
        assert errors(caplog) == [self.TOO_MANY]


class TestRefusals:
    """A command that is refused is one line of the log; a traceback is for a fault of some code."""

    TASK = Manage("Server-0", print, {}, False, None, True, True, 1)

    @pytest.mark.parametrize(
        ("command", "line"),
        [
            (Scale(0), "Monitor refused a command from an unknown process: Cannot scale to 0 workers."),
            (
                Scale(65_000),
                "Monitor refused a command from an unknown process: Cannot scale to 65000 ",
            ),
            (TASK, "Monitor failed to manage worker Server-0: Worker Server-0 already exists"),
            (
                TASK.replace(ident="Task", transient=True, restartable=False),
                "Monitor failed to manage worker Task: Cannot create a transient worker that is not",
            ),
            (
                TASK.replace(ident="Task", workers=65_000),
                "Monitor refused a command from an unknown process: Cannot manage 65000 processes of Task: ",
            ),
        ],
    )
    def test_a_refusal_is_one_log_line(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, command: Any, line: str
    ) -> None:
        house = House(tmp_path)
        try:
            house.manager._loop._commands.obey(Received(command))
        finally:
            house.close()
        (record,) = (record for record in caplog.records if record.levelno >= logging.ERROR)
        assert record.getMessage().startswith(line)
        assert "\n" not in record.getMessage()
        assert not record.exc_info

    @pytest.mark.parametrize("error", [ValueError, TypeError, UnicodeError])
    @pytest.mark.parametrize("verb", ["restart", "manage"])
    def test_an_error_of_other_code_is_logged_with_a_traceback(
        self, verb: str, error: type[Exception], caplog: pytest.LogCaptureFixture
    ) -> None:
        """The arguments of a process bring code of their own, which runs when they are pickled."""

        def fails(*args: Any, **kwargs: Any) -> None:
            raise error("a mistake")

        waiting: Any = Waiting()
        waiting.phase = ServerPhase.RUNNING
        waiting.settings = settings.resolve({})
        setattr(waiting, verb, fails)
        obeying(waiting).obey(Received(self.TASK if verb == "manage" else Restart(None)))
        (record,) = (record for record in caplog.records if record.levelno >= logging.ERROR)
        assert record.exc_info is not None
        assert isinstance(record.exc_info[1], error)


@pytest.mark.usefixtures("main_is_heard")
class TestFlood:
    def test_a_burst_of_restarts_is_merged(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        house = House(tmp_path)
        calls: list[Any] = []
        restart = house.manager.restart

        def noting(**kwargs: Any) -> None:
            calls.append(kwargs["process_names"])
            restart(**kwargs)

        house.manager.restart = noting  # type: ignore[method-assign]

        def act() -> None:
            house.said("ready")
            # Both come in the loop's own thread, so it receives them in one wait.
            names = ["Sanic-Server-0-0", "nobody", "Sanic-Server-0-0", "no one"]
            house.call(lambda: house.manager._loop.do(lambda: [house.send(f"{n}:") for n in names] and None))
            house.said("ready", 2)
            logged(caplog, "Failed to restart processes: nobody, no one")

        house.run(act)
        assert calls == [["Sanic-Server-0-0", "nobody", "no one"]]

    def test_an_exit_is_handled_before_the_remaining_commands(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path, number=2)
        logger = logging.getLogger("sanic.root")

        def slow(*, reloaded_files: str, **kwargs: Any) -> None:
            """Take as long as the loop gives to all commands."""
            logger.info("restart %s", reloaded_files)
            if reloaded_files == "3":
                os.kill(victim, signal.SIGKILL)
                os.waitid(os.P_PID, victim, os.WEXITED | os.WNOWAIT)
            until = monotonic() + SLICE
            while monotonic() < until:
                pass

        house.manager.restart = slow  # type: ignore[method-assign]
        victim = 0

        def act() -> None:
            nonlocal victim
            victim = house.said("ready", 2)[0].pid
            house.call(
                lambda: house.manager._loop.do(lambda: [house.send(f"a:{n}") for n in range(20)] and None)
            )
            logged(caplog, "restart 19")

        house.run(act)
        order = [text for text in caplog.messages if text.startswith("restart") or "was killed by" in text]
        assert "was killed by SIGKILL" in order[4]
        assert [text for text in order if text.startswith("restart")] == [f"restart {n}" for n in range(20)]

    @pytest.mark.parametrize("message", ["", "__SCALE__:", "__SCALE__:-1", b"torn", ["x"]])
    def test_log_lines_about_malformed_messages_are_throttled(
        self,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
        message: Any,
    ) -> None:
        # The span ends when the test says so.
        monkeypatch.setattr(throttle, "SPAN", 1000.0)
        house = House(tmp_path)
        lines = house.manager._loop._commands.throttle
        untold = MAX_LINES + 60 if message == b"torn" else 30

        def send() -> None:
            for _ in range(MAX_LINES + 30):
                if message == b"torn":
                    os.write(house.publisher.fileno(), b"\xff\xff\xff\xfe" + pickle.dumps(None))
                house.send("" if message == b"torn" else message)

        def act() -> None:
            house.said("ready")
            house.call(lambda: house.manager._loop.do(send))
            until(lambda: lines._counts.total() == MAX_LINES + untold, "all counted")
            assert len(errors(caplog)) == MAX_LINES
            lines.flush_at = 0.0
            house.call(lambda: None)
            more = logged(caplog, "more lines like these")
            assert (
                more
                == f"Monitor suppressed {untold} more lines like these within a second, about Sanic-Main."
            )

        house.run(act)

    def test_a_flood_delays_neither_an_exit_nor_a_signal(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path, number=2)

        def act() -> None:
            victim = house.said("ready", 2)[0]
            flooding = os.fork()
            if not flooding:
                os.setsid()
                while True:
                    house.send("__SCALE__:x")
            try:
                logged(caplog, "more lines like these")
                os.kill(victim.pid, signal.SIGKILL)
                logged(caplog, f"{victim.name} [{victim.pid}] was killed by SIGKILL")
                os.kill(os.getpid(), signal.SIGTERM)
                until(lambda: house.manager._loop.is_over, "the stop")
            finally:
                os.kill(flooding, signal.SIGKILL)
                os.waitpid(flooding, 0)

        house.run(act, stops=False)
