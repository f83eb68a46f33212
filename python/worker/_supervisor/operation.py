"""One restart or scaling, from the request to its outcome."""

from __future__ import annotations

from datetime import datetime
from enum import Enum
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from worker._core.record import Record

if TYPE_CHECKING:
    from worker.process import WorkerProcess

__all__ = ["Kind", "Operation", "Origin", "Status"]


class Origin(Record):
    """The origin of a request.

    Attributes:
        name: The origin in words: ``signal SIGHUP``, ``Sanic-Reloader-0 [77]``.
        id: The id of the requested operation, if the request has one; else empty.
        made_at: When the request was made, in seconds since 1970; 0 if that is now.
        reason: Why it was made; empty if that is not known.
    """

    name: str
    id: str = ""
    made_at: float = 0.0
    reason: str = ""


class Kind(Enum):
    """The kinds of operations: the name of each in the log, and its effect on a worker."""

    RESTART = ("Restart", "replaced")
    SCALE_UP = ("Scaling", "started")
    SCALE_DOWN = ("Scaling", "stopped")
    SHUTDOWN = ("Shutdown", "stopped")
    UPGRADE = ("Upgrade", "replaced")

    def __str__(self) -> str:
        return self.value[0]


class Status(Enum):
    """The state of an operation, as the inspector shows it."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class Operation:
    """One restart or scaling.

    Attributes:
        kind: The kind.
        began: When it was requested, on the clock of the main process, seconds.
        requested_at: The same as a time.
        number: Its number in the event log.
        origin: The origin of the request.
        id: Its id.
        proven: Whether its code is known to start. Until then, a rollout replaces only one of the servers
            that serve (the canary), and keeps it until the new one serves.
        files: The changed files that are the reason; empty if there are none.
        total: The number of its workers.
        done: The number of them that are done.
        waiting: The slots whose new process is not ready yet.
        leaving: The removed slots whose process has not exited yet.
        passed: The slots that are done. Previous processes may still accept connections there.
        note: Its progress in words, if it counts no workers.
        failure: Why it was aborted; empty if it was not.
        rolled_back: The names of the slots in which the previous process was kept.
    """

    def __init__(
        self,
        kind: Kind,
        began: float,
        requested_at: datetime,
        number: int,
        origin: Origin,
        *,
        proven: bool,
    ) -> None:
        self.kind = kind
        self.began = began
        self.requested_at = requested_at
        self.number = number
        self.origin = origin
        self.id = origin.id or token_hex(6)
        self.proven = proven
        self.files: tuple[str, ...] = ()
        self.total = 0
        self.done = 0
        self.waiting: set[WorkerProcess] = set()
        self.leaving: set[WorkerProcess] = set()
        self.passed: set[WorkerProcess] = set()
        self.note = ""
        self.failure = ""
        self.rolled_back: list[str] = []

    def add(self, slot: WorkerProcess) -> None:
        """Count one more slot that gets a new process."""
        if slot not in self.waiting:
            self.waiting.add(slot)
            self.total += 1

    def add_removed(self, slot: WorkerProcess) -> None:
        """Count one more slot that is removed."""
        self.leaving.add(slot)
        self.total += 1

    def drop(self, slot: WorkerProcess) -> None:
        """Stop counting a slot that was removed, or that a later operation has taken over."""
        self.waiting.discard(slot)
        self.total -= 1

    def mark_ready(self, slot: WorkerProcess) -> bool:
        """Count a slot as done, because its new process is ready; return whether it was not before."""
        self.proven = True
        is_new = slot in self.waiting
        if is_new:
            self.waiting.remove(slot)
            self.passed.add(slot)
            self.done += 1
        return is_new

    def mark_left(self, slot: WorkerProcess) -> None:
        """Count a removed slot as done, because its process has exited."""
        self.leaving.remove(slot)
        self.passed.add(slot)
        self.done += 1

    @property
    def progress(self) -> str:
        """The number of workers that are done, of the total: ``1 of 2 workers replaced``."""
        workers = "worker" if self.total == 1 else "workers"
        return f"{self.done} of {self.total} {workers} {self.kind.value[1]}"

    @property
    def kind_name(self) -> str:
        """The name of its kind in the inspector: ``restart``, ``reload``, ``scale``, ``shutdown``, ..."""
        if self.files:
            return "reload"
        return "scale" if self.kind in (Kind.SCALE_UP, Kind.SCALE_DOWN) else self.kind.name.lower()

    def shown(self, status: Status, ended_at: datetime | None, seconds: float | None) -> dict[str, Any]:
        """Return the operation as the inspector shows it.

        Args:
            status (Status): Its state.
            ended_at (datetime | None): When it ended; ``None`` before.
            seconds (float | None): How long it took; ``None`` before its end.

        Returns:
            dict[str, Any]: The fields; JSON can hold them.
        """
        return {
            "id": self.id,
            "kind": self.kind_name,
            "status": status.value,
            "by": self.origin.name,
            "requested_at": self.requested_at.isoformat(),
            "ended_at": None if ended_at is None else ended_at.isoformat(),
            "seconds": seconds,
            "done": self.done,
            "total": self.total,
            "text": self.progress if self.total else self.note,
            "reason": self.failure,
            "rolled_back": self.rolled_back,
        }
