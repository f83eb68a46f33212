"""Tracks each requested restart or scaling until its outcome is logged."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sanic.log import logger

from worker._supervisor.operation import Kind, Operation

if TYPE_CHECKING:
    from worker._supervisor.model import RestartRequest, SlotRecord
    from worker.process import WorkerProcess

__all__ = ["Operations"]


class Operations:
    """The operations under way.

    Args:
        clock (Callable): Returns the time, seconds.
        accepts (Callable): Returns whether a stopping process still accepts connections in a slot.
    """

    def __init__(self, clock: Callable[[], float], accepts: Callable[[WorkerProcess], bool]) -> None:
        self._clock = clock
        self._accepts = accepts
        self._open: list[Operation] = []
        self._current: Operation | None = None

    def __bool__(self) -> bool:
        return bool(self._open)

    @contextmanager
    def begun(self, kind: Kind, *, proven: bool) -> Iterator[Operation]:
        """Make one operation of all requests in the body; a nested operation is part of the outer one."""
        if self._current is not None:
            yield self._current
            return
        operation = self._current = Operation(kind, self._clock(), proven=proven)
        try:
            yield operation
        finally:
            self._current = None
            if operation.total:
                self._open.append(operation)

    def add_removed(self, slot: WorkerProcess) -> None:
        """Count a removed slot as part of the operation that is being requested, if there is one."""
        if self._current is not None:
            self._current.add_removed(slot)

    def abort(self, operations: Iterable[Operation], reason: str) -> None:
        """Abort operations."""
        for operation in operations:
            operation.failure = operation.failure or reason

    def stop(self) -> None:
        """Abort all operations, because the server is stopping."""
        for operation in self._open:
            logger.info("%s aborted, %s: the server is stopping.", operation.kind, operation.progress)
        self._open.clear()

    def settle(
        self,
        slots: Collection[WorkerProcess],
        requests: Mapping[WorkerProcess, RestartRequest],
        record: Callable[[WorkerProcess], SlotRecord],
    ) -> None:
        """Log the outcome of the operations that have ended.

        Args:
            slots (Collection[WorkerProcess]): The process table.
            requests (Mapping[WorkerProcess, RestartRequest]): The requests that wait for their turn.
            record (Callable): Returns the record of a slot.
        """
        for operation in [*self._open]:
            for slot in [] if operation.failure else [*operation.waiting]:
                pending = requests.get(slot), record(slot).request
                if slot not in slots or not any(one and operation in one.operations for one in pending):
                    operation.drop(slot)
            if operation.failure:
                # The line of the exit that aborted it says so too.
                logger.debug("%s aborted, %s: %s.", operation.kind, operation.progress, operation.failure)
            elif operation.waiting or any(map(self._accepts, operation.passed)):
                continue
            elif operation.total:
                self._finished(operation)
            self._open.remove(operation)
            # Slots refer to the operation. Breaking the cycle frees the descriptors of removed slots at once.
            operation.waiting.clear()
            operation.passed.clear()

    def _finished(self, operation: Operation) -> None:
        seconds = self._clock() - operation.began
        reload = f" The new code serves {seconds:.2f} s after the change." if operation.reloads else ""
        outcome = f"{operation.kind} finished: {operation.progress}"
        logger.info("%s in %.1f s.%s", outcome, seconds, reload)
