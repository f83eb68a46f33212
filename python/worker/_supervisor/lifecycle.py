"""The lifecycle of all slots: takes events, has :mod:`~worker._supervisor.transitions` decide, and acts."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sanic.log import error_logger, logger

from worker._supervisor import model, reports
from worker._supervisor.model import (
    RestartRequest,
    ServerPhase,
    Situation,
    SlotEvent,
    SlotRecord,
    SlotView,
)
from worker._supervisor.operation import Kind, Operation
from worker._supervisor.operations import Operations
from worker._supervisor.restart_policy import Exit, why_not_started
from worker._supervisor.rollout import merge, plan
from worker._supervisor.transitions import TRANSITIONS
from worker.constants import NAME_LIMIT, Phase, ProcessState, RestartOrder, excerpt
from worker.process import WorkerProcess, get_now

if TYPE_CHECKING:
    from worker._state.event_log import EventLog
    from worker.settings import Settings

__all__ = ["IMPOSSIBLE", "Lifecycle"]

IMPOSSIBLE = "which is impossible in the phase"


class Lifecycle:
    """Keeps the record of each slot and the waiting restart requests, and performs the decided actions.

    Args:
        slots (Callable): Returns all slots of the process table.
        settings (Settings): The limits.
        clock (Callable): Returns the time, seconds.
        chance (Callable): Draws a number from 0 to 1, for the jitter of a backoff.
        is_occupied (Callable): Whether a process runs in a slot, or has not been collected.
        accepts (Callable): Whether a stopping process still accepts connections in a slot.
        started (Callable): Called after a process was started.
        log (EventLog): Takes the events that an operator is told.

    Attributes:
        server: The phase of the server.
        waits_for_change: Whether a server that fails to start is left until a file changes.
        holds_requests: Whether a restart request is held back until :meth:`release`.
        operations: The restarts and scalings under way.
    """

    def __init__(
        self,
        slots: Callable[[], Collection[WorkerProcess]],
        settings: Settings,
        clock: Callable[[], float],
        chance: Callable[[], float],
        is_occupied: Callable[[WorkerProcess], bool],
        accepts: Callable[[WorkerProcess], bool],
        started: Callable[[], None],
        log: EventLog,
    ) -> None:
        self._slots = slots
        self._settings = settings
        self._clock = clock
        self._chance = chance
        self._is_occupied = is_occupied
        self._started = started
        self._records: dict[WorkerProcess, SlotRecord] = {}
        self._requests: dict[WorkerProcess, RestartRequest] = {}
        self._held: dict[WorkerProcess, RestartRequest] = {}
        self.server = ServerPhase.NEW
        self.waits_for_change = False
        self.holds_requests = False
        self._log = log
        self.operations = Operations(clock, accepts, is_occupied, log)

    # Records

    def record(self, slot: WorkerProcess) -> SlotRecord:
        """Return the record of a slot."""
        return self._records.get(slot) or SlotRecord()

    def phase(self, slot: WorkerProcess) -> Phase:
        """Return the phase of a slot."""
        return self.record(slot).phase

    def forget(self, slot: WorkerProcess) -> None:
        """Drop the record of a slot that was removed."""
        self._records.pop(slot, None)

    def close(self) -> None:
        """Drop all records: they would keep the slots, and thereby the descriptors of processes."""
        self._records.clear()
        self._requests.clear()
        self._held.clear()

    @property
    def next_retry(self) -> float:
        """When the next backoff is over; ``inf`` if there is none, or no process is started any more."""
        if not self.server.starts_processes:
            return math.inf
        return min((self.record(slot).retry_at for slot in self._slots()), default=math.inf)

    def is_served(self) -> bool:
        """Return whether any server runs, or will."""
        gone = (Phase.STOPPED, Phase.FAILED)
        return any(self.phase(slot) not in gone for slot in self._slots() if slot.is_server)

    # Requests

    def operation(self, kind: Kind) -> AbstractContextManager[Operation]:
        """Make one operation, whose outcome is logged, of all requests in the body."""
        # An order that the operator has set is used without a canary.
        careful = self._settings.canary and self._settings.reload_order is not RestartOrder.SHUTDOWN_FIRST
        return self.operations.begun(kind, proven=not careful)

    def request(self, slot: WorkerProcess, order: RestartOrder, config: Mapping[str, Any]) -> None:
        """Restart a slot when it is its turn. Several waiting requests are merged."""
        if slot.exclusive and order is RestartOrder.STARTUP_FIRST:
            logger.info(
                "%s: its port cannot be bound twice. Restarting with SHUTDOWN_FIRST, not STARTUP_FIRST.",
                excerpt(slot.name, NAME_LIMIT),
            )
        with self.operation(Kind.RESTART) as operation:
            operation.add(slot)
            if files := config.get("reloaded_files"):
                operation.files = tuple(files.split(","))
        request = RestartRequest(order, self._clock(), config, (operation,))
        requests = self._held if self.holds_requests else self._requests
        requests[slot] = merge(requests.get(slot), request)

    @property
    def held(self) -> int:
        """The number of slots whose restart is held back."""
        return len(self._held)

    @property
    def requested(self) -> tuple[Operation, ...]:
        """The operations for which slots wait for their turn to be restarted."""
        return _operations(self._requests.values())

    def release(self) -> None:
        """Let the requests that were held back wait for their turn, as if they were made now."""
        now = self._clock()
        for slot, request in self._held.items():
            self._requests[slot] = merge(self._requests.get(slot), request.replace(made_at=now))
        self._held.clear()

    def abort_held(self, reason: str) -> None:
        """Drop the requests that were held back, and abort their operations."""
        self.operations.abort(_operations(self._held.values()), reason)
        self._held.clear()

    def start(self, slot: WorkerProcess, operation: Operation | None = None) -> None:
        """Start the first process of a slot. If the system refuses it, the restart policy decides.

        Raises:
            Exception: The process cannot be started at all.
        """
        if operation is not None:
            operation.add(slot)
            request = RestartRequest(RestartOrder.SHUTDOWN_FIRST, self._clock(), {}, (operation,))
            self._requests[slot] = request
        self.handle(slot, model.StartAsked())

    def stop(self) -> None:
        """Stop every process, and start no more."""
        for slot in [*self._slots()]:
            # In a slot whose process has just exited, the previous one may still serve.
            if self._is_occupied(slot) or slot.is_alive():
                slot.terminate()
        self.halt(ServerPhase.STOPPING)

    def halt(self, server: ServerPhase) -> None:
        """Start no more processes.

        Args:
            server (ServerPhase): The phase of the server from now on.
        """
        self.server = server
        self._requests.clear()
        self._held.clear()
        self.operations.stop()
        for slot in [*self._slots()]:
            self.handle(slot, model.StopSent())

    def run_due(self) -> None:
        """Start slots whose backoff is over, restart those whose turn it is, and log ended operations."""
        if not self.server.starts_processes:
            return
        self._start_due_slots()
        self.operations.settle([*self._slots()], self._is_pending)

    def _start_due_slots(self) -> None:
        now = self._clock()
        for slot in [slot for slot in self._slots() if self.record(slot).retry_at <= now]:
            self.handle(slot, model.BackoffOver())
        if not self._requests:
            return
        slots = {slot: self._view(slot) for slot in self._slots()}
        self._requests = {slot: request for slot, request in self._requests.items() if slot in slots}
        waiting, settings = self._requests.copy(), self._settings
        for slot, mode in plan(waiting, slots, settings.max_surge, settings.max_unavailable):
            # The start in another slot may have failed meanwhile, and aborted the rollout.
            if slot in self._requests:
                self.handle(slot, model.RestartDue(mode))

    def _is_pending(self, slot: WorkerProcess, operation: Operation) -> bool:
        """Return whether a slot waits for its new process in an operation."""
        requests = self._held.get(slot), self._requests.get(slot), self.record(slot).request
        return any(request is not None and operation in request.operations for request in requests)

    def _view(self, slot: WorkerProcess) -> SlotView:
        record = self.record(slot)
        return SlotView(record.phase, slot.is_server, slot.exclusive, record.has_replaced_starting)

    # From an event to actions

    def handle(self, slot: WorkerProcess, event: SlotEvent) -> None:
        """Decide the actions for an event, and perform them."""
        phase = self.phase(slot)
        decision = TRANSITIONS[phase].get(type(event))
        if decision is None:
            error_logger.error(
                f"%s: ignoring the event %s, {IMPOSSIBLE} %s.",
                excerpt(slot.name, NAME_LIMIT),
                type(event).__name__,
                phase.name,
            )
            return
        for action in decision(self._situation(slot), event):
            self._perform(slot, action)

    def _situation(self, slot: WorkerProcess) -> Situation:
        return Situation(
            record=self.record(slot),
            state=slot.state,
            is_server=slot.is_server,
            absence=slot.absence,
            restart_policy=slot.restart_policy,
            is_alive=slot.is_alive(),
            is_occupied=self._is_occupied(slot),
            has_previous=slot.previous is not None,
            requests=self._requests,
            pending=self._requests.get(slot),
            waits_for_change=self.waits_for_change,
            settings=self._settings,
            now=self._clock(),
            chance=self._chance(),
        )

    def _perform(self, slot: WorkerProcess, action: model.Action) -> None:
        match action:
            case model.Enter(phase):
                self._update(slot, phase=phase)
                slot.show_phase(phase)
            case model.Update(changes):
                self._update(slot, **changes)
            case model.StartProcess(order, replaces_starting):
                self._start_process(slot, order, replaces_starting)
            case model.StopCurrent():
                slot.stop_current()
            case model.HandOver():
                slot.hand_over()
            case model.RollBack():
                slot.roll_back()
            case model.ContinueAlone():
                slot.continue_alone()
            case model.ReportStart(child):
                self._log.append(reports.started(child, self._start_reason(slot)))
            case model.MarkReady(child):
                child.ready_at = self._clock()
                self._log.append(reports.ready(child))
            case model.Acknowledge():
                slot.acknowledge()
            case model.KillUnready(child):
                child.ready_by = math.inf
                # The line of its exit has the reason.
                self._log.append(reports.killed(child, child.error, level=logging.NOTSET))
                child.kill()
            case model.SetState(state, force):
                slot.set_state(state, force)
            case model.ShowNotServing():
                slot.show_not_serving()
            case model.WriteEntry(changes):
                slot.note(changes)
            case model.Report():
                self._report(slot, action)
            case model.ReportExpected(exit_, consequence, level):
                self._log.append(reports.exited(exit_, consequence, level, expected=level < logging.ERROR))
            case model.QueueRequest(request):
                self._requests[slot] = request
            case model.Forget(slots):
                for one in (slot,) if slots is None else slots:
                    self._requests.pop(one, None)
            case model.MarkProven(operations):
                for operation in operations:
                    operation.proven = True
            case model.MarkDone():
                fulfilled = self.record(slot).request
                self.operations.mark_ready(slot, () if fulfilled is None else fulfilled.operations)
            case model.Abort(operations, reason, rolled_back):
                self.operations.abort(operations, reason, slot if rolled_back else None)

    def _update(self, slot: WorkerProcess, **changes: Any) -> None:
        self._records[slot] = self.record(slot).replace(**changes)

    def _start_process(self, slot: WorkerProcess, order: RestartOrder, replaces_starting: bool) -> None:
        request: RestartRequest | None = self._requests.pop(slot, None)
        before = self.record(slot)
        if replaces_starting and request is not None and before.request is not None:
            # The operations of the replaced process continue with this one.
            operations = dict.fromkeys((*before.request.operations, *request.operations))
            request = request.replace(operations=(*operations,))
        self._update(slot, request=request, has_replaced_starting=replaces_starting, retry_at=math.inf)
        if before.retry_at < math.inf:
            slot.note({"next_restart_at": None})
        began, is_first = self._clock(), slot.state is ProcessState.IDLE
        try:
            if is_first:
                slot.start()
            else:
                slot.replace_process(order, {} if request is None else request.config)
        except Exception as error:
            if is_first and not isinstance(error, (OSError, MemoryError)):
                raise
            self._fail_start(slot, order, began, error)
        else:
            self._started()

    # Not in the frame that catches the error: a local variable there and the traceback would keep each other
    # alive, and the descriptors of the process.
    def _fail_start(self, slot: WorkerProcess, order: RestartOrder, began: float, error: Exception) -> None:
        cause = error.__cause__ or error
        if not isinstance(cause, OSError):
            text = "%s could not be started. The error is a fault in code:"
            error_logger.error(text, excerpt(slot.name, NAME_LIMIT), exc_info=error)
        failure = Exit(slot.name, None, None, began, error=why_not_started(cause), has_run=False)
        self.handle(slot, model.StartFailed(failure, order, isinstance(error, ConnectionError)))

    def _start_reason(self, slot: WorkerProcess) -> str:
        record = self.record(slot)
        if record.request is None:
            return "exit" if record.restarts else "start"
        operations = record.request.operations
        if any(operation.files for operation in operations):
            return "reload"
        return "request" if any(operation.kind is Kind.RESTART for operation in operations) else "scale"

    def _report(self, slot: WorkerProcess, report: model.Report) -> None:
        exit_, delay, now = report.exit, report.delay, get_now()
        self._update(slot, last_exit=exit_)
        is_fault = exit_.code != 0 or slot.is_server or delay < math.inf
        level = logging.ERROR if is_fault else logging.DEBUG
        event = reports.exited(exit_, report.consequence, level, delay=delay, attempt=report.attempt)
        slot.note(
            {
                "last_exit": exit_.status,
                "last_exit_at": now,
                "restarts": self.record(slot).restarts + (delay < math.inf),
                "next_restart_at": None if delay == math.inf else now + timedelta(seconds=delay),
                "why": event.text,
            }
        )
        # Logged last, so that the state shows the exit when its line appears.
        self._log.append(event)


def _operations(requests: Iterable[RestartRequest]) -> tuple[Operation, ...]:
    return tuple(dict.fromkeys(one for request in requests for one in request.operations))
