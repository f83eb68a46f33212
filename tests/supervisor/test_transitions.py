"""The transition table: the decision for each event in each phase of a slot."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, get_args

import pytest

from worker._state.event_log import EventLog
from worker._supervisor import model, transitions
from worker._supervisor.lifecycle import Lifecycle
from worker._supervisor.model import Enter, ReportExpected, Situation, SlotRecord, StartProcess
from worker._supervisor.restart_policy import Exit
from worker._supervisor.transitions import TRANSITIONS
from worker.constants import Phase, ProcessState, RestartOrder
from worker.settings import resolve

SITUATION = Situation(
    record=SlotRecord(),
    state=ProcessState.STARTED,
    is_server=True,
    absence="",
    restart_policy="always",
    is_alive=False,
    is_occupied=False,
    has_previous=False,
    requests={},
    pending=None,
    waits_for_change=False,
    settings=resolve({}),
    now=100.0,
    chance=0.5,
)


def situation(phase: Phase = Phase.STOPPED, **changes: Any) -> Situation:
    return SITUATION.replace(record=SlotRecord(phase), **changes)


def test_the_table_covers_every_phase() -> None:
    assert set(TRANSITIONS) == set(Phase)


def test_the_table_covers_every_event() -> None:
    assert {event for row in TRANSITIONS.values() for event in row} == set(get_args(model.SlotEvent))


@pytest.mark.parametrize("phase", Phase)
def test_a_stop_is_obeyed_in_every_phase(phase: Phase) -> None:
    decide = TRANSITIONS[phase][model.StopSent]
    assert decide is (transitions.ignore if phase is Phase.STOPPING else transitions.stop)


def test_an_impossible_event_is_logged_and_ignored(caplog: pytest.LogCaptureFixture) -> None:
    """A process is ready in a slot that is stopped: no method of the slot is called."""
    slot: Any = SimpleNamespace(name="Sanic-Server-0-0")
    child: Any = None
    lifecycle = Lifecycle(
        lambda: [slot],
        resolve({}),
        lambda: 0.0,
        lambda: 0.5,
        lambda slot: False,
        lambda slot: False,
        list,
        EventLog({}),
    )
    # A namespace cannot be hashed; a slot that no record is kept of is not asked for one.
    lifecycle.phase = lambda slot: Phase.STOPPED  # type: ignore[method-assign]
    lifecycle.handle(slot, model.Ready(child))
    assert vars(slot) == {"name": "Sanic-Server-0-0"}
    assert caplog.messages == [
        "Sanic-Server-0-0: ignoring the event Ready, which is impossible in the phase STOPPED."
    ]


@pytest.mark.parametrize("alive", [True, False])
def test_the_next_process_waits_for_the_exit_of_the_current_one(alive: bool) -> None:
    """The exit of a process that had been stopped earlier does not count."""
    slot = situation(Phase.DRAINING, is_alive=alive)
    actions = transitions.start_after_exit(slot, model.StoppedExited(Exit("X", 1, 0)))
    started = [action for action in actions if isinstance(action, StartProcess)]
    assert started == ([] if alive else [StartProcess(RestartOrder.SHUTDOWN_FIRST)])


def test_a_decision_changes_nothing() -> None:
    slot = situation(Phase.STARTING)
    first = transitions.apply_restart_policy(slot, model.Exited(Exit("X", 1, 1)))
    assert transitions.apply_restart_policy(slot, model.Exited(Exit("X", 1, 1))) == first
    assert Enter(Phase.BACKOFF) in first
    assert slot.record == SlotRecord(Phase.STARTING)


def test_a_retry_is_due_after_its_backoff() -> None:
    actions = transitions.apply_restart_policy(situation(Phase.READY), model.Exited(Exit("X", 1, 1)))
    (changes,) = (
        action.changes
        for action in actions
        if isinstance(action, model.Update) and "restarts" in action.changes
    )
    assert changes["restarts"] == 1
    assert 100 < changes["retry_at"] < math.inf


def test_an_exit_in_a_stopping_slot_with_others_left_is_only_logged() -> None:
    exit_ = Exit("X", 1, 0, others_left=True)
    (action,) = transitions.mark_stopped(situation(Phase.STOPPING), model.Exited(exit_))
    assert isinstance(action, ReportExpected)
