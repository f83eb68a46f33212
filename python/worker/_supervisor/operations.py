"""Tracks each requested restart or scaling until its outcome is known."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from worker._state import events
from worker._supervisor.operation import Kind, Operation, Origin, Status
from worker.constants import excerpt
from worker.process import get_now

if TYPE_CHECKING:
    from worker._state.event_log import EventLog
    from worker.process import WorkerProcess

__all__ = ["Operations"]

APPLICATION = Origin("the application")
"""The origin of a verb of the manager that is called by the application itself."""


class Operations:
    """The operations under way.

    Args:
        clock (Callable): Returns the time, seconds.
        accepts (Callable): Returns whether a stopping process still accepts connections in a slot.
        is_occupied (Callable): Returns whether a process runs in a slot, or has not been collected.
        log (EventLog): Takes the events and the state of the operations.

    Attributes:
        origin: The origin of the request that is being executed.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        accepts: Callable[[WorkerProcess], bool],
        is_occupied: Callable[[WorkerProcess], bool],
        log: EventLog,
    ) -> None:
        self._clock = clock
        self._accepts = accepts
        self._is_occupied = is_occupied
        self._log = log
        self._open: list[Operation] = []
        self._started: set[Operation] = set()
        self._current: Operation | None = None
        self.origin = APPLICATION

    def __bool__(self) -> bool:
        return bool(self._open)

    @property
    def is_upgrading(self) -> bool:
        """Whether an operation is under way that counts no workers."""
        return bool(self._started)

    @property
    def under_way(self) -> list[Operation]:
        """The operations that have begun and not ended."""
        return [*self._open, *self._started]

    @contextmanager
    def requested_by(self, origin: Origin, kind: Kind) -> Iterator[None]:
        """Execute the request of an origin in the body. An operation of its id is shown in any case.

        Args:
            origin (Origin): The origin.
            kind (Kind): The kind of the operation, if the body begins none.
        """
        before, self.origin = self.origin, origin
        try:
            yield
        except BaseException as error:
            self._end_unbegun(kind, excerpt(error) or type(error).__name__)
            raise
        else:
            self._end_unbegun(kind, "" if kind is Kind.SHUTDOWN else "it had no effect")
        finally:
            self.origin = before

    def _end_unbegun(self, kind: Kind, failure: str) -> None:
        """Show the requested operation, if it has not begun."""
        if self.origin.id:
            operation = self._make(kind, proven=True)
            operation.failure = failure
            # A shutdown is over only when there is nothing to show it any more.
            self._show(operation, Status.FAILED if failure else Status.RUNNING)

    @contextmanager
    def begun(self, kind: Kind, *, proven: bool) -> Iterator[Operation]:
        """Make one operation of all requests in the body; a nested operation is part of the outer one."""
        if self._current is not None:
            yield self._current
            return
        operation = self._current = self._make(kind, proven=proven)
        try:
            yield operation
        finally:
            self._current = None
            self._begin(operation)

    def _make(self, kind: Kind, *, proven: bool) -> Operation:
        now = get_now()
        # Another clock may have been set back meanwhile.
        age = max(0.0, now.timestamp() - self.origin.made_at) if self.origin.made_at else 0.0
        began, requested_at = self._clock() - age, now - timedelta(seconds=age)
        operation = Operation(
            kind, began, requested_at, self._log.new_operation(), self.origin, proven=proven
        )
        # The id is that of one operation.
        self.origin = self.origin.replace(id="", made_at=0.0)
        return operation

    def _begin(self, operation: Operation) -> None:
        if operation.total:
            self._open.append(operation)
            if operation.kind is Kind.RESTART:
                self._log.append(_requested(operation))
            self._show(operation, Status.RUNNING)
        elif operation.kind is Kind.RESTART:
            operation.failure = "no process was restarted"
            self._show(operation, Status.FAILED)
        else:
            self._show(operation, Status.DONE)

    def _show(self, operation: Operation, status: Status) -> dict[str, Any]:
        seconds = None if status is Status.RUNNING else self._clock() - operation.began
        ended_at = None if seconds is None else get_now()
        shown = operation.shown(status, ended_at, seconds)
        self._log.show_operation(operation.number, shown)
        return shown

    def start(self, kind: Kind) -> Operation:
        """Make an operation that counts no workers, and that :meth:`finish` ends."""
        operation = self._make(kind, proven=True)
        self._started.add(operation)
        self._show(operation, Status.RUNNING)
        return operation

    def note(self, operation: Operation, note: str) -> None:
        """Show the progress of such an operation in words."""
        operation.note = note
        self._show(operation, Status.RUNNING)

    def finish(self, operation: Operation, note: str = "", failure: str = "") -> dict[str, Any]:
        """End such an operation; return it as the inspector shows it.

        Args:
            operation (Operation): The operation.
            note (str): Its outcome in words. Defaults to none.
            failure (str): Why it has failed. Defaults to ``""``: it has not.
        """
        operation.note, operation.failure = note, failure
        self._started.discard(operation)
        return self._show(operation, Status.FAILED if failure else Status.DONE)

    def adopt(self, shown: Mapping[str, Any]) -> None:
        """Show an operation of another main process that has ended."""
        self._log.show_operation(self._log.new_operation(), shown)

    def add_removed(self, slot: WorkerProcess) -> None:
        """Count a removed slot as part of the operation that is being requested, if there is one."""
        if self._current is not None:
            self._current.add_removed(slot)

    def mark_ready(self, slot: WorkerProcess, operations: Iterable[Operation]) -> None:
        """Count a slot as done in operations, because its new process is ready."""
        for operation in operations:
            if operation.mark_ready(slot):
                self._step(operation, slot)

    def _step(self, operation: Operation, slot: WorkerProcess) -> None:
        """Report that a slot is done."""
        self._log.append(
            events.RolloutStep(
                text=f"{operation.kind}: {operation.progress}.",
                operation=operation.id,
                slot=slot.name,
                done=operation.done,
                total=operation.total,
            )
        )
        self._show(operation, Status.RUNNING)

    def abort(self, operations: Iterable[Operation], reason: str, kept: WorkerProcess | None = None) -> None:
        """Abort operations.

        Args:
            operations (Iterable[Operation]): The operations.
            reason (str): Why.
            kept (WorkerProcess | None): The slot in which the previous process was kept. Defaults to none.
        """
        for operation in dict.fromkeys(operations):
            operation.failure = operation.failure or reason
            if kept is not None:
                operation.rolled_back.append(kept.name)

    def stop(self) -> None:
        """Abort all operations, because the server is stopping."""
        for operation in self._open:
            operation.failure = "the server is stopping"
            self._end(operation, logging.INFO)
        self._open.clear()

    def settle(
        self, slots: Collection[WorkerProcess], is_pending: Callable[[WorkerProcess, Operation], bool]
    ) -> None:
        """Log the outcome of the operations that have ended.

        Args:
            slots (Collection[WorkerProcess]): The process table.
            is_pending (Callable): Returns whether a slot waits for its new process in an operation.
        """
        for operation in [*self._open]:
            for slot in [] if operation.failure else [*operation.waiting]:
                if slot not in slots or not is_pending(slot, operation):
                    operation.drop(slot)
            for slot in [slot for slot in operation.leaving if not self._is_occupied(slot)]:
                operation.mark_left(slot)
                self._step(operation, slot)
            is_under_way = operation.waiting or operation.leaving or any(map(self._accepts, operation.passed))
            if is_under_way and not operation.failure:
                continue
            # The line of the exit that aborted an operation says so too.
            self._end(operation, logging.DEBUG if operation.failure else logging.INFO)
            self._open.remove(operation)
            # Slots refer to the operation. Breaking the cycle frees the descriptors of removed slots at once.
            operation.waiting.clear()
            operation.leaving.clear()
            operation.passed.clear()

    def _end(self, operation: Operation, level: int) -> None:
        """Log the outcome of an operation; none, if later operations have taken over all its slots."""
        if not operation.total:
            operation.failure = "a later operation has replaced it"
            level = logging.NOTSET
        seconds = self._clock() - operation.began
        outcome = Status.FAILED if operation.failure else Status.DONE
        self._log.append(
            events.OperationEnded(
                text=_outcome(operation, seconds),
                level=level,
                operation=operation.id,
                kind=operation.kind_name,
                outcome=outcome.value,
                seconds=seconds,
                reason=operation.failure,
                done=operation.done,
                total=operation.total,
            )
        )
        self._show(operation, outcome)


def _outcome(operation: Operation, seconds: float) -> str:
    if operation.failure:
        return f"{operation.kind} aborted, {operation.progress}: {operation.failure}."
    reload = f" The new code serves {seconds:.2f} s after the change." if operation.files else ""
    return f"{operation.kind} finished: {operation.progress} in {seconds:.1f} s.{reload}"


def _requested(operation: Operation) -> events.Event:
    by = operation.origin.name
    if operation.files:
        count = "1 file" if len(operation.files) == 1 else f"{len(operation.files)} files"
        # The reloader has logged it.
        text = f"{by}: {count} changed ({', '.join(operation.files)})."
        return events.FilesChanged(text=text, files=operation.files, by=by, operation=operation.id)
    slots = sorted(slot.name for slot in operation.waiting)
    count = "1 process" if len(slots) == 1 else f"{len(slots)} processes"
    return events.RestartRequested(
        text=f"Restart of {count} requested by {by}.",
        level=logging.INFO,
        slots=tuple(slots),
        by=by,
        operation=operation.id,
    )
