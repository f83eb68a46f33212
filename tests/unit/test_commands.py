"""One batch of events: which commands become one, and how much is said of those that are none."""

from __future__ import annotations

import os
import pickle
import signal
from pathlib import Path
from typing import Any

import pytest

from worker.commands import DEFERRED, Commands, coalesce
from worker.complaints import COMPLAINTS
from worker.constants import RestartOrder
from worker.messages import Corrupt, Exited, Invalid, Opaque, Received, Restart, Scale, Stop, Terminate

from .running import House, errors, logged, until

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
        # All means only those that restart with the server: a name may mean another one.
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
def test_equal_restarts_become_one(events: list[Any], expected: list[Any]) -> None:
    assert list(coalesce(events)) == expected


def test_what_is_opaque_is_loaded() -> None:
    events = [Received(Opaque(pickle.dumps(what)), 7) for what in (["x"], 0)]
    invalid, stop = coalesce(events)
    assert isinstance(invalid, Received) and isinstance(invalid.command, Invalid) and invalid.sender == 7
    assert stop == Received(Stop(), 7)


def test_a_pickle_is_loaded_only_when_its_turn_comes() -> None:
    """What it does when it is loaded comes after what was asked for before."""
    done: list[str] = []
    events = [Received(Scale(1)), Received(Opaque(pickle.dumps(Loading())))]
    Loading.done = done
    done.extend("obeyed" if event == Received(Scale(1)) else "invalid" for event in coalesce(events))
    assert done == ["obeyed", "loaded", "invalid"]


class Loading:
    """Notes that it is loaded."""

    done: list[str]

    def __setstate__(self, state: Any) -> None:
        self.done.append("loaded")

    def __getstate__(self) -> Any:
        return {"some": "state"}


class Waiting:
    """A loop that waits for the servers, and the manager whose verb it calls."""

    starting = True
    ended = stop_asked = False

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def name_of(self, pid: int | None) -> str:
        return f"process {pid}"

    def restart(self, **kwargs: Any) -> None:
        self.calls.append((kwargs["process_names"], kwargs["reloaded_files"]))


class TestWhileTheServersStart:
    def obeyed(self, events: list[Received]) -> list[Any]:
        waiting: Any = Waiting()
        commands = Commands(waiting, waiting)
        for event in events:
            commands.obey(event)
        assert not waiting.calls
        waiting.starting = False
        commands.obey_deferred()
        return list(waiting.calls)

    def test_any_number_of_equal_restarts_is_one(self, caplog: pytest.LogCaptureFixture) -> None:
        names = ["a", "b", "c", "d", "e"]
        assert self.obeyed([of(name) for name in names * DEFERRED]) == [(names, "")]
        assert not errors(caplog)

    def test_there_is_an_end_to_others(self, caplog: pytest.LogCaptureFixture) -> None:
        numbers = range(DEFERRED + 2)
        obeyed = self.obeyed([of("a", files=str(number), sender=7) for number in numbers])
        assert obeyed == [(["a"], str(number)) for number in numbers[:DEFERRED]]
        wait = f"{DEFERRED} others wait already until the servers have started"
        assert errors(caplog) == [f"Monitor dropped a message, from process 7: {wait}"] * 2


@pytest.mark.usefixtures("main_is_heard")
class TestFlood:
    def test_a_burst_of_restarts_is_one(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        house = House(tmp_path)
        calls: list[Any] = []
        restart = house.manager.restart

        def noting(**kwargs: Any) -> None:
            calls.append(kwargs["process_names"])
            restart(**kwargs)

        house.manager.restart = noting  # type: ignore[method-assign]

        def act() -> None:
            house.said("ready")
            # Both in the loop's own thread: it finds them in one wait.
            names = ["Sanic-Server-0-0", "nobody", "Sanic-Server-0-0", "no one"]
            house.call(lambda: house.manager._loop.do(lambda: [house.send(f"{n}:") for n in names] and None))
            house.said("ready", 2)
            logged(caplog, "Failed to restart processes: nobody, no one")

        house.run(act)
        assert calls == [["Sanic-Server-0-0", "nobody", "no one"]]

    @pytest.mark.parametrize("message", ["", "__SCALE__:", "__SCALE__:-1", b"torn", ["x"]])
    def test_nonsense_is_told_in_part(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, message: Any
    ) -> None:
        house = House(tmp_path)

        def send() -> None:
            for _ in range(COMPLAINTS + 30):
                if message == b"torn":
                    os.write(house.publisher.fileno(), b"\xff\xff\xff\xfe" + pickle.dumps(None))
                house.send("" if message == b"torn" else message)

        def act() -> None:
            house.said("ready")
            house.call(lambda: house.manager._loop.do(send))
            more = logged(caplog, "more messages like these at once")
            told = [text for text in errors(caplog) if text != more]
            assert len(told) == COMPLAINTS
            untold = COMPLAINTS + 60 if message == b"torn" else 30
            assert more == f"Monitor received {untold} more messages like these at once, from Sanic-Main"

        house.run(act)

    def test_it_hides_neither_an_exit_nor_a_signal(
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
                logged(caplog, "more messages like these at once")
                os.kill(victim.pid, signal.SIGKILL)
                logged(caplog, f"{victim.name} [{victim.pid}] was killed by SIGKILL")
                os.kill(os.getpid(), signal.SIGTERM)
                until(lambda: house.manager._loop.ended, "the stop")
            finally:
                os.kill(flooding, signal.SIGKILL)
                os.waitpid(flooding, 0)

        house.run(act)
