"""The events of the manager: frozen records of what an operator is told.

The main process appends each one to the :class:`~worker._state.event_log.EventLog`. The log line, the events
of the inspector, the metrics and ``why`` in the state entry are made from them.
"""

from __future__ import annotations

import logging
import re
from typing import Any

from worker._core.record import Record

__all__ = [
    "Event",
    "FilesChanged",
    "HangDetected",
    "OperationEnded",
    "PreloadFailed",
    "PreloadReady",
    "ProcessExited",
    "ProcessKilled",
    "ProcessNotStarted",
    "ProcessReady",
    "ProcessStarted",
    "Recycled",
    "RestartRequested",
    "RolloutStep",
    "Scaled",
    "ServerReady",
    "StopRequested",
    "UpgradeEnded",
    "UpgradeRequested",
]

NOT_LOGGED = logging.NOTSET

# The letters before which the name of a class is divided.
_TYPE = re.compile(r"(?<!^)([A-Z])")


class Event(Record, kw_only=True):
    """One event.

    Attributes:
        text: The event in words: its line in the log.
        level: The level of that line, as in :mod:`logging`; ``NOT_LOGGED`` for none.
    """

    text: str
    level: int = NOT_LOGGED

    @property
    def type(self) -> str:
        """The name of its type: ``process_exited``."""
        return _TYPE.sub(r"_\1", type(self).__name__).lower()

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of its type, without text and level."""
        fields = self.asdict()
        del fields["text"], fields["level"]
        return fields


class ProcessStarted(Event, kw_only=True):
    """A process was started in a slot.

    Attributes:
        slot: The name of the slot.
        pid: The pid of the process.
        reason: Why: ``start``, ``exit`` (the restart policy), ``request``, ``reload`` or ``scale``.
    """

    slot: str
    pid: int
    reason: str


class ProcessReady(Event, kw_only=True):
    """A process is ready.

    Attributes:
        slot: The name of the slot.
        pid: The pid of the process.
        seconds: The time since its start.
        server: Whether it is a server.
    """

    slot: str
    pid: int
    seconds: float
    server: bool = True


class ProcessExited(Event, kw_only=True):
    """A process has exited.

    Attributes:
        slot: The name of the slot.
        pid: The pid of the process.
        exit_code: Its exit code; ``None`` if it is unknown, or a signal ended it.
        signal: The name of the signal that ended it; ``None`` without one.
        uptime: How long it had run, seconds.
        error: Why its start failed, as far as it is known; empty if it is not.
        expected: Whether the manager had stopped it.
        attempt: The number of exits in a row of processes that were not ready for long.
        next_restart_in: The time until the next process is started, seconds; ``None``: none is started.
        oom: Whether the kernel has killed it for want of memory.
    """

    slot: str
    pid: int | None
    exit_code: int | None
    signal: str | None
    uptime: float
    error: str = ""
    expected: bool = False
    attempt: int = 0
    next_restart_in: float | None = None
    oom: bool = False


class ProcessNotStarted(Event, kw_only=True):
    """The main process could not start a process; the fields are as in :class:`ProcessExited`."""

    slot: str
    error: str
    attempt: int = 0
    next_restart_in: float | None = None


class ProcessKilled(Event, kw_only=True):
    """The manager killed a process.

    Attributes:
        slot: The name of the slot.
        pid: The pid of the process.
        reason: Why.
    """

    slot: str
    pid: int
    reason: str


class HangDetected(Event, kw_only=True):
    """A server hangs: its event loop makes no progress.

    Attributes:
        slot: The name of the slot.
        pid: The pid of the process.
        cause: The part of it that hangs: ``stopped``, ``frozen``, ``uninterruptible``, ``native``,
            ``interpreter`` or ``loop``.
        seconds: The time from its last beat until its limit was found to be over.
        limit: The setting ``hang_timeout``, seconds.
        request: The request that it handles, in words; empty if there is none, or it is not known.
    """

    slot: str
    pid: int
    cause: str
    seconds: float
    limit: float
    request: str = ""


class RestartRequested(Event, kw_only=True):
    """A restart was requested.

    Attributes:
        slots: The slots to be restarted.
        by: The origin of the request.
        operation: The id of the operation.
    """

    slots: tuple[str, ...]
    by: str
    operation: str


class FilesChanged(Event, kw_only=True):
    """A restart was requested because files have changed.

    Attributes:
        files: Their paths.
        by: The origin of the request.
        operation: The id of the operation.
    """

    files: tuple[str, ...]
    by: str
    operation: str


class Scaled(Event, kw_only=True):
    """Another number of servers was requested.

    Attributes:
        before: The number before.
        after: The number from now on.
        by: The origin of the request.
        operation: The id of the operation.
        reason: Why; empty if it is not known.
    """

    before: int
    after: int
    by: str
    operation: str
    reason: str = ""


class Recycled(Event, kw_only=True):
    """A server is replaced because it has reached a limit.

    Attributes:
        slot: The name of the slot.
        pid: The pid of the process.
        cause: The setting: ``max_requests``, ``max_lifetime``, ``max_rss`` or ``max_memory_percent``.
        value: The figure that has reached the limit: requests, seconds or bytes.
        limit: The limit of this process, in the same unit.
    """

    slot: str
    pid: int
    cause: str
    value: float
    limit: float


class RolloutStep(Event, kw_only=True):
    """A slot is done in an operation.

    Attributes:
        operation: The id of the operation.
        slot: The name of the slot.
        done: The number of slots that are done.
        total: The number of all slots of the operation.
    """

    operation: str
    slot: str
    done: int
    total: int


class OperationEnded(Event, kw_only=True):
    """An operation has ended.

    Attributes:
        operation: Its id.
        kind: ``restart``, ``reload`` or ``scale``.
        outcome: ``done`` or ``failed``.
        seconds: How long it took.
        reason: Why it failed; empty if it did not.
        done: The number of slots that are done.
        total: The number of all its slots.
    """

    operation: str
    kind: str
    outcome: str
    seconds: float
    reason: str
    done: int
    total: int


class ServerReady(Event, kw_only=True):
    """All servers are ready for the first time.

    Attributes:
        workers: Their number.
        seconds: The time since the first start.
    """

    workers: int
    seconds: float


class PreloadReady(Event, kw_only=True):
    """A preload process has imported its modules, and can fork workers.

    Attributes:
        pid: Its pid.
        depth: Its depth: ``framework`` or ``app``.
        seconds: The time since its start.
    """

    pid: int
    depth: str
    seconds: float


class PreloadFailed(Event, kw_only=True):
    """A preload process has ended, does not answer, cannot import the application, or was not started.

    Attributes:
        pid: Its pid; ``None`` if it was not started.
        error: Why it is not used any more.
        next_start_in: The time until another one is started, seconds; ``None``: not after a backoff.
    """

    pid: int | None
    error: str
    next_start_in: float | None


class StopRequested(Event, kw_only=True):
    """The stop of the server was requested.

    Attributes:
        by: The origin of the request.
        reason: Why; empty if it is not known.
        delay: The time until the stop begins, seconds.
    """

    by: str
    reason: str = ""
    delay: float = 0.0


class UpgradeRequested(Event, kw_only=True):
    """A new main process was started, to take the place of this one.

    Attributes:
        pid: Its pid.
        by: The origin of the request.
        operation: The id of the operation.
    """

    pid: int
    by: str
    operation: str


class UpgradeEnded(Event, kw_only=True):
    """A new main process has taken the place of the old one, or the old one stays. Both have this event.

    Attributes:
        outcome: ``done`` or ``failed``.
        reason: Why it failed; empty if it did not.
        seconds: How long it took; for the new main process, the time since it began.
        pid: The pid of the new main process; ``None`` if it could not be started.
        operation: The id of the operation; empty for the new main process.
    """

    outcome: str
    reason: str
    seconds: float
    pid: int | None
    operation: str
