"""The duties about hangs, in zero time: at which moments they look, ask, report and replace."""

from __future__ import annotations

import logging
import math
import weakref
from types import SimpleNamespace
from typing import Any

import pytest

from worker._state import events
from worker._supervisor.child import ChildProcess
from worker._supervisor.duties import hangs, overdue
from worker._supervisor.duties.hangs import HangWatch
from worker._supervisor.duties.overdue import OverdueServers
from worker._system import stacks
from worker._system.stacks import Stacks
from worker.constants import ProcessState

LIMIT = 10.0
PAUSE = 2.0
ANSWER = Stacks(
    "Requests in progress: 1\n  GET /slow, for 9.0 s, running in the main thread\n", "interpreter"
)


class Collection:
    """Answers as the test says, or not yet."""

    question = 7
    answers: Stacks | None = ANSWER

    def __init__(self, *_: object) -> None:
        type(self).made = getattr(type(self), "made", 0) + 1

    def step(self) -> Stacks | None:
        return self.answers


class Machine:
    """A supervisor, its servers and their facts, as the duties see them; and the clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.beats: dict[int, float] = {}
        self.answered = (7, 7)
        self.lost: dict[int, float] = {}
        self.states: dict[int, str] = {}
        self.tracers: dict[int, int] = {}
        self.suspended = 0.0
        self.frozen = False
        self.children: list[ChildProcess] = []
        self.counted_ready: list[int] = []
        self.busy = False
        self.replaced: list[int] = []
        self.events: list[events.Event] = []
        self.log = SimpleNamespace(append=self.events.append)

    def add(self, pid: int, beat: float = 1000.0) -> ChildProcess:
        base, state = SimpleNamespace(pid=pid), ProcessState.STARTED
        slot: Any = SimpleNamespace(
            name=f"s{pid}", is_server=True, exclusive=False, note=lambda _: None, current=base, state=state
        )
        child = ChildProcess(slot, base, 0.0, 0.0, ready_at=900.0)
        self.children.append(child)
        self.beats[pid] = beat
        return child

    # The state

    def last_beat(self, pid: int) -> float | None:
        return self.beats.get(pid)

    def answers(self, pid: int) -> tuple[int, int]:
        return self.answered

    def replace(self, _: object, child: ChildProcess, reason: str, grace: float) -> None:
        assert not self.busy
        child.grace, self.busy = grace, True
        self.replaced.append(child.base.pid)

    def count_ready(self, _: object, child: ChildProcess) -> None:
        self.counted_ready.append(child.base.pid)
        child.ready_at = self.now

    def those(self, *, is_ready: bool) -> list[ChildProcess]:
        return [child for child in self.children if child.is_ready is is_ready]

    def run(self, duty: Any, until: float) -> list[float]:
        """Perform a duty whenever it is due; return the times."""
        times = []
        while (due := duty.due_at) <= until:
            assert len(times) < 1000, f"it is due too often: {times[-5:]}"
            self.now = max(self.now, due)
            times.append(self.now)
            duty.perform(self.now)
        self.now = max(self.now, until)
        return times

    @property
    def hung(self) -> list[tuple[int, str]]:
        return [(event.pid, event.cause) for event in self.events if isinstance(event, events.HangDetected)]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    monkeypatch.setattr(hangs, "time", SimpleNamespace(monotonic=lambda: machine.now))
    monkeypatch.setattr(hangs.proc, "run_delay", lambda pid: machine.lost.get(pid, 0.0))
    monkeypatch.setattr(hangs.proc, "state", lambda pid: machine.states.get(pid, "S"))
    monkeypatch.setattr(hangs.proc, "tracer", lambda pid: machine.tracers.get(pid, 0))
    group = SimpleNamespace(throttled_seconds=lambda: 0.0, is_frozen=lambda: machine.frozen)
    monkeypatch.setattr(hangs.cgroup, "own", lambda *_: group)
    monkeypatch.setattr(hangs, "_waited_and_suspended", lambda: (0.0, machine.suspended))
    monkeypatch.setattr(hangs.replacement, "ready_servers", lambda _: machine.those(is_ready=True))
    monkeypatch.setattr(hangs.replacement, "starting_servers", lambda _: machine.those(is_ready=False))
    monkeypatch.setattr(hangs.replacement, "count_ready", machine.count_ready)
    monkeypatch.setattr(hangs.replacement, "may_replace", lambda _: not machine.busy)
    monkeypatch.setattr(hangs.replacement, "replace", machine.replace)
    monkeypatch.setattr(hangs, "Collection", Collection)
    monkeypatch.setattr(stacks, "Collection", Collection)
    Collection.answers = ANSWER
    return machine


@pytest.fixture
def duty(machine: Machine) -> HangWatch:
    return HangWatch(machine, machine, LIMIT)  # type: ignore[arg-type]


class TestLooks:
    def test_one_in_the_limit_while_all_beat(self, machine: Machine, duty: HangWatch) -> None:
        machine.add(1)
        machine.beats = {1: math.inf}
        assert machine.run(duty, 1065) == [1010, 1020, 1030, 1040, 1050, 1060]
        assert not machine.hung

    def test_a_late_beat_has_one_more_at_the_end_of_its_limit(
        self, machine: Machine, duty: HangWatch
    ) -> None:
        machine.add(1, beat=1005)
        assert machine.run(duty, 1015) == [1010, 1015]
        machine.run(duty, 1017)
        assert machine.hung == [(1, "loop")]
        (event,) = machine.events
        assert isinstance(event, events.HangDetected)
        assert (event.seconds, event.limit, event.request) == (10, LIMIT, "GET /slow, for 9.0 s")

    def test_a_server_that_has_exited_is_not_kept(self, machine: Machine, duty: HangWatch) -> None:
        """Its descriptors are closed before the next look."""
        child = weakref.ref(machine.add(1))
        machine.run(duty, 1000 + LIMIT)
        machine.children.clear()
        assert child() is None

    def test_a_server_that_has_not_begun_to_beat_is_left(self, machine: Machine, duty: HangWatch) -> None:
        machine.add(1)
        machine.beats.clear()
        assert machine.run(duty, 1100) == [1010 + 10 * number for number in range(10)]
        assert not machine.hung

    def test_a_beat_before_the_judgement_is_no_hang(self, machine: Machine, duty: HangWatch) -> None:
        machine.add(1, beat=1000)
        assert machine.run(duty, 1010.5)[0] == 1010
        machine.beats[1] = 1010.4
        machine.run(duty, 1015)
        assert not machine.hung

    def test_an_absence_of_the_main_process_starts_all_anew(self, machine: Machine, duty: HangWatch) -> None:
        machine.add(1, beat=1000)
        machine.now = 1500.0
        machine.run(duty, 1509)
        assert not machine.hung
        machine.run(duty, 1512)
        assert machine.hung == [(1, "loop")]

    def test_so_does_an_absence_after_the_question(self, machine: Machine, duty: HangWatch) -> None:
        machine.add(1, beat=1000)
        machine.run(duty, 1010)
        machine.suspended = 60.0
        machine.run(duty, 1019)
        assert not machine.hung
        machine.run(duty, 1022)
        assert machine.hung == [(1, "loop")]

    def test_overload_extends_the_limit(self, machine: Machine, duty: HangWatch) -> None:
        machine.add(1, beat=1000)
        machine.lost[1] = 6.0
        machine.run(duty, 1015.9)
        assert not machine.hung
        machine.run(duty, 1018)
        assert machine.hung == [(1, "loop")]
        assert "of which it could not run for 6.0 s" in machine.events[0].text


class TestJudgement:
    @pytest.mark.parametrize(
        ("answers", "state", "frozen", "cause"),
        [
            ((7, 6), "S", False, "interpreter"),
            ((6, 6), "S", False, "native"),
            ((6, 6), "T", False, "stopped"),
            ((6, 6), "D", False, "uninterruptible"),
            ((6, 6), "D", True, "frozen"),
        ],
    )
    def test_names_the_cause(
        self, machine: Machine, duty: HangWatch, answers: Any, state: str, frozen: bool, cause: str
    ) -> None:
        child = machine.add(1, beat=1000)
        machine.answered, machine.states[1], machine.frozen = answers, state, frozen
        machine.run(duty, 1012)
        assert machine.hung == [(1, cause)]
        assert child.stop_limit(60) == 0

    def test_waits_for_the_stacks(self, machine: Machine, duty: HangWatch) -> None:
        machine.add(1, beat=1000)
        Collection.answers = None
        machine.run(duty, 1020)
        assert not machine.hung
        Collection.answers = ANSWER
        machine.run(duty, 1021)
        assert machine.hung == [(1, "loop")]

    def test_a_process_that_has_exited_meanwhile_does_not_hang(
        self, machine: Machine, duty: HangWatch
    ) -> None:
        machine.add(1, beat=1000)
        machine.states[1] = "Z"
        machine.run(duty, 1012)
        machine.children.clear()
        machine.run(duty, 1035)
        assert not machine.hung

    def test_a_debugger_is_reported_once_and_the_server_judged_when_it_has_left(
        self, machine: Machine, duty: HangWatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        machine.add(1, beat=1000)
        machine.tracers[1] = 4711
        with caplog.at_level(logging.WARNING):
            machine.run(duty, 1060)
        assert sum("a debugger is at work in it: process 4711" in line for line in caplog.messages) == 1
        assert not machine.hung
        machine.tracers.clear()
        machine.run(duty, 1080)
        assert machine.hung == [(1, "loop")]

    def test_a_server_whose_debugger_has_just_left_has_time_to_beat(
        self, machine: Machine, duty: HangWatch
    ) -> None:
        machine.add(1, beat=1000)
        machine.tracers[1] = 4711
        Collection.answers = None
        machine.run(duty, 1011)
        machine.tracers.clear()
        Collection.answers = ANSWER
        machine.run(duty, 1015)
        machine.beats[1] = 1015
        machine.run(duty, 1024)
        assert not machine.hung

    def test_the_server_says_which_debugger_is_at_work(
        self, machine: Machine, duty: HangWatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        machine.add(1, beat=1000)
        Collection.answers = ANSWER._replace(debugger="pdb")
        machine.run(duty, 1030)
        assert "a debugger is at work in it: pdb." in caplog.text
        assert not machine.hung

    def test_a_held_gil_that_is_released_while_it_is_asked_for_is_reported(
        self, machine: Machine, duty: HangWatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        machine.add(1, beat=1000)
        Collection.answers = None
        machine.run(duty, 1010)
        machine.beats[1], Collection.answers = 1010.1, Stacks("Thread 0x1", "faulthandler")
        machine.run(duty, 1012)
        assert (
            "makes progress again, after 10.1 s without. Its stacks in that time:\nThread 0x1" in caplog.text
        )
        assert not machine.hung


class TestReplacement:
    def test_is_one_at_a_time(self, machine: Machine, duty: HangWatch) -> None:
        first, second = machine.add(1), machine.add(2)
        machine.run(duty, 1012)
        assert len(machine.hung) == 2
        assert machine.replaced == [1]
        assert (first.grace, second.grace) == (hangs.GRACE, math.inf)
        machine.run(duty, 1025)
        assert machine.replaced == [1]
        machine.children.remove(first)
        machine.busy = False
        machine.run(duty, 1025)
        assert machine.replaced == [1, 2]

    def test_is_tried_again_ever_later(
        self, machine: Machine, duty: HangWatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        machine.add(1)
        machine.run(duty, 1012)
        for number, delay in enumerate((10, 20, 40, 80, 160, 160), 1):
            machine.busy = False
            machine.run(duty, machine.now + delay - 0.5)
            assert len(machine.replaced) == number
            assert f"The next attempt follows in {delay} s" in caplog.text
            machine.run(duty, machine.now + 1)
        assert len(machine.hung) == 1

    def test_is_dropped_when_the_server_makes_progress(
        self, machine: Machine, duty: HangWatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        child = machine.add(1)
        machine.answered, machine.busy = (6, 6), True
        machine.run(duty, 1012)
        assert (machine.hung, machine.replaced) == ([(1, "native")], [])
        machine.beats[1], machine.busy = 1012.5, False
        machine.run(duty, 1013)
        assert machine.replaced == []
        assert "makes progress again, after 12.5 s without. Keeping it." in caplog.text
        assert child.stop_limit(60) == 60

    def test_an_error_does_not_have_it_tried_at_once(
        self, machine: Machine, duty: HangWatch, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> None:
            raise ConnectionError

        machine.add(1)
        monkeypatch.setattr(hangs.replacement, "replace", fail)
        with pytest.raises(ConnectionError):
            machine.run(duty, 1012)
        machine.run(duty, 1015)
        assert len(machine.hung) == 1


class TestStarts:
    @pytest.fixture
    def child(self, machine: Machine) -> ChildProcess:
        child = machine.add(1)
        child.ready_at = math.inf
        return child

    def test_a_request_that_blocks_a_start_is_a_hang(
        self, machine: Machine, duty: HangWatch, child: ChildProcess
    ) -> None:
        machine.run(duty, 1000 + 1.5 * LIMIT)
        assert machine.counted_ready == [1]
        assert machine.hung == [(1, "loop")]

    def test_a_start_that_blocks_without_a_request_goes_on(
        self, machine: Machine, duty: HangWatch, child: ChildProcess
    ) -> None:
        Collection.answers = Stacks("Thread MainThread (most recent call last):\n", "interpreter")
        # For each of the limits a look, the question, and its end.
        assert len(machine.run(duty, 1000 + 10 * LIMIT)) <= 10 * (2 + 1 / hangs.POLL)
        assert not machine.counted_ready
        assert not machine.hung


class TestStops:
    @pytest.fixture
    def stops(self, machine: Machine) -> OverdueServers:
        settings: Any = SimpleNamespace(graceful_timeout=20.0, hang_timeout=LIMIT)
        return OverdueServers(machine, machine, settings)  # type: ignore[arg-type]

    def test_a_server_without_a_stop_is_not_looked_at(self, machine: Machine, stops: OverdueServers) -> None:
        machine.add(1)
        assert stops.due_at == math.inf

    def test_stacks_are_in_the_log_once_before_the_kill(
        self, machine: Machine, stops: OverdueServers, caplog: pytest.LogCaptureFixture
    ) -> None:
        machine.add(1).stop_sent_at = 1000.0
        Collection.answers = None
        assert machine.run(stops, 1018)[0] == 1018
        Collection.answers = ANSWER
        machine.run(stops, 1020)
        assert caplog.text.count("s1 [1] does not stop. Its stacks:\nRequests in progress: 1") == 1
        assert stops.due_at == math.inf

    def test_a_server_that_has_exited_is_not_kept(self, machine: Machine, stops: OverdueServers) -> None:
        machine.add(1, beat=1017.0).stop_sent_at = 1000.0
        assert machine.run(stops, 1020)
        child = weakref.ref(machine.children.pop())
        assert child() is None

    def test_a_server_that_makes_progress_has_none(
        self, machine: Machine, stops: OverdueServers, caplog: pytest.LogCaptureFixture
    ) -> None:
        machine.add(1, beat=1017.0).stop_sent_at = 1000.0
        machine.run(stops, 1020)
        assert "does not stop" not in caplog.text

    def test_a_start_that_does_not_end_has_its_stacks_in_the_log(
        self, machine: Machine, stops: OverdueServers, caplog: pytest.LogCaptureFixture
    ) -> None:
        child = machine.add(1, beat=1029.0)
        child.ready_at, child.ready_by, child.start_limit = math.inf, 1030.0, 30.0
        assert machine.run(stops, 1030) == [1028]
        # An event loop that waits for a coroutine makes progress, and is killed all the same.
        assert caplog.text.count("s1 [1] does not start. Its stacks:\nRequests in progress: 1") == 1
        child.stop_sent_at = 1030.0
        machine.beats[1] = 1030.0
        machine.run(stops, 1050)
        assert "s1 [1] does not stop" in caplog.text

    def test_nor_has_one_that_is_replaced_because_it_hangs(
        self, machine: Machine, stops: OverdueServers
    ) -> None:
        child = machine.add(1)
        child.stop_sent_at, child.grace = 1000.0, hangs.GRACE
        assert stops.due_at == math.inf
        assert overdue.LEAD * 2 > hangs.GRACE
