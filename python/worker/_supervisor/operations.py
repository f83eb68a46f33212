"""Tracks each requested restart or scaling until its outcome is logged."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING

from sanic.log import logger

if TYPE_CHECKING:
    from worker._supervisor.model import RestartRequest, SlotRecord
    from worker.process import WorkerProcess

__all__ = ["Kind", "Operation", "Operations"]


class Kind(Enum):
    """The kinds of operations: the name of each in the log, and its effect on a worker."""

    RESTART = ("Restart", "replaced")
    SCALE_UP = ("Scaling", "started")
    SCALE_DOWN = ("Scaling", "stopped")

    def __str__(self) -> str:
        return self.value[0]


class Operation:
    """One restart or scaling.

    Attributes:
        kind: The kind.
        began: When it was requested, on the clock of the main process, seconds.
        proven: Whether its code is known to start. Until then, a rollout replaces only one of the servers
            that serve (the canary), and keeps it until the new one serves.
        reloads: Whether changed files are the reason.
        total: The number of its workers.
        waiting: The slots whose new process is not ready yet.
        passed: The slots that are done. Previous processes may still accept connections there.
        failure: Why it was aborted; empty if it was not.
    """

    def __init__(self, kind: Kind, began: float, *, proven: bool) -> None:
        self.kind = kind
        self.began = began
        self.proven = proven
        self.reloads = False
        self.total = 0
        self.waiting: set[WorkerProcess] = set()
        self.passed: set[WorkerProcess] = set()
        self.failure = ""

    def add(self, slot: WorkerProcess) -> None:
        """Count one more slot that gets a new process."""
        if slot not in self.waiting:
            self.waiting.add(slot)
            self.total += 1

    def add_removed(self, slot: WorkerProcess) -> None:
        """Count one more slot that is removed."""
        self.passed.add(slot)
        self.total += 1

    def drop(self, slot: WorkerProcess) -> None:
        """Stop counting a slot that was removed, or that a later operation has taken over."""
        self.waiting.discard(slot)
        self.total -= 1

    def mark_ready(self, slot: WorkerProcess) -> None:
        """Count a slot as done, because its new process is ready."""
        self.proven = True
        if slot in self.waiting:
            self.waiting.remove(slot)
            self.passed.add(slot)

    @property
    def progress(self) -> str:
        """The number of workers that are done, of the total: ``1 of 2 workers replaced``."""
        workers = "worker" if self.total == 1 else "workers"
        return f"{self.total - len(self.waiting)} of {self.total} {workers} {self.kind.value[1]}"


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
