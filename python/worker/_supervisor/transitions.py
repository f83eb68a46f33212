"""The transition table of a slot, and its decisions: pure functions from a situation and an event to actions.

:data:`TRANSITIONS` names the decision for each event in each phase. An event without an entry is impossible
in that phase: it is logged and ignored.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

from worker._supervisor.model import (
    Abort,
    Acknowledge,
    Action,
    BackoffOver,
    ContinueAlone,
    Enter,
    Exited,
    Forget,
    HandOver,
    KillUnready,
    MarkDone,
    MarkProven,
    MarkReady,
    PreviousExited,
    QueueRequest,
    Ready,
    Report,
    ReportExpected,
    ReportStart,
    RestartDue,
    RollBack,
    SetState,
    ShowNotServing,
    Situation,
    SlotEvent,
    StartAsked,
    Started,
    StartFailed,
    StartProcess,
    StartTimedOut,
    StopCurrent,
    StoppedExited,
    StopSent,
    Update,
    WriteEntry,
)
from worker._supervisor.operation import Kind
from worker._supervisor.restart_policy import Decision, Exit, decide
from worker._supervisor.rollout import STARTING_PHASES, merge
from worker.constants import Phase, ProcessState, RestartOrder

__all__ = ["TRANSITIONS", "Decide"]

Actions = list[Action]
Decide = Callable[[Situation, Any], Actions]


def await_ready(slot: Situation, event: Started) -> Actions:
    """Wait until the process is ready."""
    report: Actions = [] if event.child is None else [ReportStart(event.child)]
    return [Enter(Phase.REPLACING if slot.has_previous else Phase.STARTING), *report]


def start(slot: Situation, event: StartAsked | RestartDue | BackoffOver) -> Actions:
    """Start the next process. A request resets the exits in a row."""
    actions: Actions = [StartProcess(RestartOrder.SHUTDOWN_FIRST)]
    return actions if slot.pending is None else [Update({"exits": ()}), *actions]


def start_after_exit(slot: Situation, event: Exited | StoppedExited) -> Actions:
    """Start the next process, once the one before it has exited."""
    logged: Actions = [_stopped(event.exit)]
    return logged if slot.is_alive else [*logged, StartProcess(RestartOrder.SHUTDOWN_FIRST)]


def restart(slot: Situation, event: RestartDue) -> Actions:
    """Replace the process, in the order of the rollout."""
    if event.mode.order is RestartOrder.STARTUP_FIRST or event.mode.at_once:
        return [StartProcess(event.mode.order)]
    return [Enter(Phase.DRAINING), StopCurrent()]


def replace_starting(slot: Situation, event: RestartDue) -> Actions:
    """Replace the starting process; one that is ready stays."""
    return [StartProcess(event.mode.order, replaces_starting=True)]


def mark_ready(slot: Situation, event: Ready) -> Actions:
    """Count the process as ready."""
    actions: Actions = [MarkReady(event.child), Enter(Phase.READY)]
    if slot.is_server and slot.state < ProcessState.ACKED:
        actions.append(Acknowledge())
    if slot.record.last_exit is not None:
        actions += [
            WriteEntry({"why": f"{slot.record.last_exit}. It was replaced."}),
            Update({"last_exit": None}),
        ]
    return [*actions, MarkDone()]


def hand_over(slot: Situation, event: Ready) -> Actions:
    """Count the process as ready, and stop the previous one."""
    return [*mark_ready(slot, event), HandOver()]


def kill_unready(slot: Situation, event: StartTimedOut) -> Actions:
    """Kill the process; its exit is a failed start."""
    return [KillUnready(event.child)]


def roll_back(slot: Situation, event: Exited) -> Actions:
    """Keep the previous process, and abort the rollout."""
    exit, request = event.exit, slot.record.request  # noqa: A001
    actions: Actions = [Enter(Phase.READY), RollBack()]
    if exit.is_address_in_use and request is not None and request.order is RestartOrder.SHUTDOWN_FIRST:
        # The code may be correct: it cannot bind the address while the previous process runs.
        text = "Keeping the previous worker until it is restarted with SHUTDOWN_FIRST, as requested."
        again = request if slot.pending is None else merge(request, slot.pending)
        report = ReportExpected(exit, text, logging.INFO)
        return [*actions, MarkProven(request.operations), QueueRequest(again), report]
    aborted, text = _abort(slot, exit, rolled_back=True)
    return [*actions, *aborted, Report(exit, _keeping(text))]


def continue_alone(slot: Situation, event: PreviousExited) -> Actions:
    """Wait for the starting process; no other one serves now."""
    return [
        Enter(Phase.STARTING),
        ContinueAlone(),
        Report(event.exit, "The worker that replaces it is starting."),
    ]


def apply_restart_policy(slot: Situation, event: Exited) -> Actions:
    """Apply the restart policy."""
    return _after_exit(slot, event.exit)


def start_failed(slot: Situation, event: StartFailed) -> Actions:
    """Keep the processes that run; without one, treat it as an exit."""
    exit, phase = event.exit, slot.record.phase  # noqa: A001
    refused = event.is_refused and phase in (Phase.READY, *STARTING_PHASES)
    if refused or (event.order is RestartOrder.STARTUP_FIRST and slot.is_alive):
        # Only a starting process, which was to be replaced, may have been stopped.
        aborted, text = _abort(slot, exit)
        return [
            Enter(phase if refused else Phase.READY),
            *aborted,
            ReportExpected(exit, _keeping(text), logging.ERROR),
        ]
    return [Enter(Phase.DRAINING)] if slot.is_alive else _after_exit(slot, exit)


def stop(slot: Situation, event: StopSent) -> Actions:
    """Start no more processes."""
    return [
        Forget(),
        Update({"retry_at": math.inf}),
        Enter(Phase.STOPPING if slot.is_occupied else Phase.STOPPED),
    ]


def mark_stopped(slot: Situation, event: Exited | StoppedExited) -> Actions:
    """Once no process is left, the slot is stopped."""
    actions: Actions = [_stopped(event.exit)]
    if event.exit.others_left:
        return actions
    actions.append(Enter(Phase.STOPPED))
    if slot.state < ProcessState.TERMINATED:
        # The process exited by itself while the server began to stop.
        actions.append(SetState(_final_state(event.exit)))
    return actions


def report_stopped(slot: Situation, event: StoppedExited) -> Actions:
    """Only report the exit: another process fills the slot, or none is to."""
    return [_stopped(event.exit)]


def ignore(slot: Situation, event: StopSent) -> Actions:
    """Do nothing."""
    return []


def _after_exit(slot: Situation, exit: Exit) -> Actions:  # noqa: A002
    record = slot.record
    actions: Actions = [SetState(_final_state(exit), force=True), ShowNotServing()]
    if exit.others_left and exit.ready_for is None and exit.is_address_in_use:
        text = "Restarting it when the previous worker has exited."
        again: Actions = (
            [QueueRequest(record.request)] if record.request is not None and slot.pending is None else []
        )
        return [*actions, Enter(Phase.DRAINING), *again, ReportExpected(exit, text, logging.INFO)]
    aborted, text = _abort(slot, exit) if record.request is not None and exit.ready_for is None else ([], "")
    if slot.waits_for_change and slot.is_server and exit.has_run and exit.ready_for is None:
        reason = "Restarting it at the next file change."
        decision = Decision(math.inf, True, reason, record.exits)
    else:
        decision = decide(
            record.exits, exit, slot.restart_policy, slot.settings, slot.chance, absence=slot.absence
        )
    actions += [
        *aborted,
        Update({"exits": decision.exits}),
        Report(
            exit,
            decision.reason + (f" {text.capitalize()}." if text else ""),
            decision.delay,
            len(decision.exits),
        ),
    ]
    if decision.delay < math.inf:
        changes = {"restarts": record.restarts + 1, "retry_at": slot.now + decision.delay}
        return [*actions, Update(changes), Enter(Phase.BACKOFF)]
    if decision.failed:
        return [*actions, Enter(Phase.FAILED), SetState(ProcessState.FAILED, force=True)]
    return [*actions, Enter(Phase.STOPPED)]


def _abort(slot: Situation, exit: Exit, *, rolled_back: bool = False) -> tuple[Actions, str]:  # noqa: A002
    """Return actions that drop all requests older than the failed process, and their description.

    Returns:
        tuple[Actions, str]: The actions, and a description: ``rollout aborted, 1 worker not restarted``. It
            is empty if nothing was requested.
    """
    dropped = {one: request for one, request in slot.requests.items() if request.made_at <= exit.started_at}
    failed = [slot.record.request] if slot.record.request is not None else []
    operations = tuple(one for request in (*failed, *dropped.values()) for one in request.operations)
    is_scaling = any(one.kind is Kind.SCALE_UP for one in operations)
    text = f"{'scaling' if is_scaling else 'rollout'} aborted" if operations or dropped else ""
    if dropped:
        workers = "1 worker" if len(dropped) == 1 else f"{len(dropped)} workers"
        text += f", {workers} not {'started' if is_scaling else 'restarted'}"
    return [Forget(tuple(dropped)), Abort(operations, str(exit), rolled_back)], text


def _keeping(aborted: str) -> str:
    return f"Keeping the previous worker{'; ' if aborted else ''}{aborted}."


def _stopped(exit: Exit) -> ReportExpected:  # noqa: A002
    return ReportExpected(exit, "Its stop was requested.", logging.DEBUG)


def _final_state(exit: Exit) -> ProcessState:  # noqa: A002
    return ProcessState.COMPLETED if exit.code == 0 else ProcessState.FAILED


TRANSITIONS: Mapping[Phase, Mapping[type[SlotEvent], Decide]] = {
    Phase.STOPPED: {
        StartAsked: start,
        Started: await_ready,
        StartFailed: start_failed,
        RestartDue: start,
        StopSent: stop,
        StoppedExited: report_stopped,
    },
    Phase.STARTING: {
        RestartDue: replace_starting,
        Started: await_ready,
        StartFailed: start_failed,
        Ready: mark_ready,
        StartTimedOut: kill_unready,
        Exited: apply_restart_policy,
        StopSent: stop,
        StoppedExited: report_stopped,
    },
    Phase.READY: {
        RestartDue: restart,
        Started: await_ready,
        StartFailed: start_failed,
        Exited: apply_restart_policy,
        StopSent: stop,
        StoppedExited: report_stopped,
    },
    Phase.REPLACING: {
        RestartDue: replace_starting,
        Started: await_ready,
        StartFailed: start_failed,
        Ready: hand_over,
        StartTimedOut: kill_unready,
        Exited: roll_back,
        PreviousExited: continue_alone,
        StopSent: stop,
        StoppedExited: report_stopped,
    },
    Phase.DRAINING: {
        Started: await_ready,
        StartFailed: start_failed,
        Exited: start_after_exit,
        StoppedExited: start_after_exit,
        StopSent: stop,
    },
    Phase.BACKOFF: {
        RestartDue: start,
        BackoffOver: start,
        Started: await_ready,
        StartFailed: start_failed,
        StopSent: stop,
        StoppedExited: report_stopped,
    },
    Phase.FAILED: {
        RestartDue: start,
        Started: await_ready,
        StartFailed: start_failed,
        StopSent: stop,
        StoppedExited: report_stopped,
    },
    Phase.STOPPING: {
        Exited: mark_stopped,
        StoppedExited: mark_stopped,
        StopSent: ignore,
    },
}
"""The lifecycle of a slot: the decision for each event, by phase."""
