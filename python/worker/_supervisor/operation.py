"""One restart or scaling, from the request to its outcome."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from worker.process import WorkerProcess

__all__ = ["Kind", "Operation"]


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
