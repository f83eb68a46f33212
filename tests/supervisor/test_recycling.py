"""When the main process replaces a server that has reached a limit: decided without a clock or a process."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from worker._core.messages import Recycle
from worker._supervisor.commands import Commands
from worker._supervisor.duties import recycling
from worker._supervisor.duties.recycling import Recycling, check_memory_percent
from worker._supervisor.model import ServerPhase
from worker.constants import Phase
from worker.settings import resolve

LIMIT = Recycle("max_requests", 11, 10)


class Child:
    """A server that was ready at a time."""

    is_current = True

    def __init__(self, pid: int, ready_at: float = 0.0) -> None:
        self.base = SimpleNamespace(pid=pid)
        self.slot = SimpleNamespace(name=f"s{pid}", is_server=True, phase=Phase.READY)
        self.ready_at = ready_at
        self.recycle: Recycle | None = None
        self.recycle_asked_at = math.inf

    def ask(self, at: float, limit: Recycle = LIMIT) -> None:
        self.recycle, self.recycle_asked_at = limit, at

    def __str__(self) -> str:
        return f"{self.slot.name} [{self.base.pid}]"


class Children(list[Child]):
    """The processes of a supervisor."""

    def by_pid(self, pid: int | None) -> Child | None:
        return next((child for child in self if child.base.pid == pid), None)


class Supervisor:
    """The supervisor, as the duty sees it."""

    phase = ServerPhase.RUNNING

    def __init__(self, *children: Child) -> None:
        self.children = Children(children)
        self.operations: list[str] = []
        self.log: list[Any] = []

    def slot_phase(self, slot: Any) -> Phase:
        return slot.phase  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def replaced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The pids of the processes whose replacement began; each is an operation under way."""
    found: list[int] = []

    def replace(supervisor: Any, child: Any, reason: str) -> None:
        found.append(child.base.pid)
        supervisor.operations.append(reason)

    monkeypatch.setattr(recycling, "replace", replace)
    return found


def duty(supervisor: Supervisor, **given: Any) -> Recycling:
    settings = resolve({"max_requests": 10, "min_uptime": 10, "backoff_max": 30, **given})
    made: Any = supervisor
    return Recycling(made, settings, [])


def run(due: Recycling) -> float:
    """Perform the duty at the time for which it asks; return the time."""
    now = due.due_at
    assert now < math.inf
    due.perform(now)
    return now


def test_nothing_is_due_until_a_server_asks() -> None:
    assert duty(Supervisor(Child(1))).due_at == math.inf


def test_one_is_replaced_at_a_time_in_the_order_of_asking(replaced: list[int]) -> None:
    one, two = Child(1), Child(2)
    supervisor = Supervisor(one, two)
    due = duty(supervisor)
    two.ask(50.0)
    one.ask(51.0)
    run(due)
    assert replaced == [2]
    assert due.due_at == math.inf, "an operation is under way"
    supervisor.operations.clear()
    supervisor.children.remove(two)
    run(due)
    assert replaced == [2, 1]


def test_a_server_is_replaced_at_min_uptime_at_the_earliest(replaced: list[int]) -> None:
    child = Child(1, ready_at=100.0)
    child.ask(101.0)
    due = duty(Supervisor(child))
    assert due.due_at == 110.0
    due.perform(109.0)
    assert replaced == []
    due.perform(110.0)
    assert replaced == [1]


def test_a_failed_replacement_is_tried_again_after_a_pause(replaced: list[int]) -> None:
    child = Child(1)
    child.ask(50.0)
    supervisor = Supervisor(child)
    due = duty(supervisor)
    run(due)
    # The operation has failed: the same process serves.
    supervisor.operations.clear()
    due.perform(60.0)
    assert replaced == [1]
    assert due.due_at == 90.0
    due.perform(90.0)
    assert replaced == [1, 1]
    # It is told and counted once.
    assert [event.cause for event in supervisor.log] == ["max_requests"]


def test_after_a_failure_the_others_wait_too(replaced: list[int]) -> None:
    one, two = Child(1), Child(2)
    one.ask(50.0)
    two.ask(51.0)
    supervisor = Supervisor(one, two)
    due = duty(supervisor)
    run(due)
    supervisor.operations.clear()
    due.perform(60.0)
    assert due.due_at == 90.0


@pytest.mark.parametrize("phase", [Phase.REPLACING, Phase.DRAINING, Phase.STARTING])
def test_a_server_that_is_replaced_for_another_reason_is_dropped(phase: Phase) -> None:
    child = Child(1)
    child.ask(50.0)
    child.slot.phase = phase
    assert duty(Supervisor(child)).due_at == math.inf


@pytest.mark.parametrize("phase", [ServerPhase.STARTING, ServerPhase.STOPPING])
def test_nothing_is_replaced_while_the_server_starts_or_stops(phase: ServerPhase) -> None:
    child = Child(1)
    child.ask(50.0)
    supervisor = Supervisor(child)
    supervisor.phase = phase
    assert duty(supervisor).due_at == math.inf


@pytest.mark.parametrize(
    ("limit", "text"),
    [
        (Recycle("max_requests", 957, 953), "s1 [1] has received 957 requests (max_requests: 953 for this"),
        (
            Recycle("max_lifetime", 3410.2, 3402.0),
            "has run for 3410 s (max_lifetime: 3402 s for this process)",
        ),
        (Recycle("max_rss", 210 << 20, 200 << 20), "takes 210.0 MiB of memory (max_rss: 200.0 MiB for this"),
    ],
)
def test_the_event_has_the_figures(limit: Recycle, text: str) -> None:
    child = Child(1)
    child.ask(50.0, limit)
    supervisor = Supervisor(child)
    run(duty(supervisor))
    (event,) = supervisor.log
    assert text in event.text
    assert event.fields == {
        "slot": "s1",
        "pid": 1,
        "cause": limit.cause,
        "value": limit.value,
        "limit": limit.limit,
    }


def test_the_first_limit_of_a_process_counts() -> None:
    child = Child(1)
    supervisor: Any = Supervisor(child)
    commands: Any = SimpleNamespace(_supervisor=supervisor)
    later = Recycle("max_rss", 2, 1)
    for limit, sender in ((LIMIT, 1), (later, 1), (later, 2), (later, None)):
        Commands._note_limit(commands, limit, sender)
    assert child.recycle == LIMIT


@pytest.mark.parametrize(
    ("percent", "limit", "servers", "part"),
    [
        (20.0, None, 1, "has no effect: the control group has no memory limit"),
        (20.0, 1 << 30, 5, ""),
        (40.0, 1 << 30, 4, "max_memory_percent is 40 for each of 4 servers"),
    ],
)
def test_a_percentage_that_protects_nothing_is_warned_of(
    percent: float, limit: int | None, servers: int, part: str
) -> None:
    found = check_memory_percent(percent, limit, servers)
    assert part in found
    assert bool(found) == bool(part)
