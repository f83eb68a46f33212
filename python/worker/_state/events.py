"""The events of the manager: frozen records of what an operator is told.

The main process appends each one to the :class:`~worker._state.event_log.EventLog`. The log line, the events
of the inspector, the metrics and ``why`` in the state entry are made from them.
"""

from __future__ import annotations

import logging
import re
from dataclasses import asdict, dataclass
from typing import Any

__all__ = [
    "Event",
    "FilesChanged",
    "OperationEnded",
    "ProcessExited",
    "ProcessKilled",
    "ProcessNotStarted",
    "ProcessReady",
    "ProcessStarted",
    "RestartRequested",
    "RolloutStep",
    "Scaled",
    "ServerReady",
    "StopRequested",
]

NOT_LOGGED = logging.NOTSET

# The letters before which the name of a class is divided.
_TYPE = re.compile(r"(?<!^)([A-Z])")


@dataclass(frozen=True, kw_only=True)
class Event:
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
        fields = asdict(self)
        del fields["text"], fields["level"]
        return fields


@dataclass(frozen=True, kw_only=True)
class ProcessStarted(Event):
    """A process was started in a slot.

    Attributes:
        slot: The name of the slot.
        pid: The pid of the process.
        reason: Why: ``start``, ``exit`` (the restart policy), ``request``, ``reload`` or ``scale``.
    """

    slot: str
    pid: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class ProcessReady(Event):
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


@dataclass(frozen=True, kw_only=True)
class ProcessExited(Event):
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


@dataclass(frozen=True, kw_only=True)
class ProcessNotStarted(Event):
    """The main process could not start a process; the fields are as in :class:`ProcessExited`."""

    slot: str
    error: str
    attempt: int = 0
    next_restart_in: float | None = None


@dataclass(frozen=True, kw_only=True)
class ProcessKilled(Event):
    """The manager killed a process.

    Attributes:
        slot: The name of the slot.
        pid: The pid of the process.
        reason: Why.
    """

    slot: str
    pid: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class RestartRequested(Event):
    """A restart was requested.

    Attributes:
        slots: The slots to be restarted.
        by: The origin of the request.
        operation: The id of the operation.
    """

    slots: tuple[str, ...]
    by: str
    operation: str


@dataclass(frozen=True, kw_only=True)
class FilesChanged(Event):
    """A restart was requested because files have changed.

    Attributes:
        files: Their paths.
        by: The origin of the request.
        operation: The id of the operation.
    """

    files: tuple[str, ...]
    by: str
    operation: str


@dataclass(frozen=True, kw_only=True)
class Scaled(Event):
    """Another number of servers was requested.

    Attributes:
        before: The number before.
        after: The number from now on.
        by: The origin of the request.
        operation: The id of the operation.
    """

    before: int
    after: int
    by: str
    operation: str


@dataclass(frozen=True, kw_only=True)
class RolloutStep(Event):
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


@dataclass(frozen=True, kw_only=True)
class OperationEnded(Event):
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


@dataclass(frozen=True, kw_only=True)
class ServerReady(Event):
    """All servers are ready for the first time.

    Attributes:
        workers: Their number.
        seconds: The time since the first start.
    """

    workers: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class StopRequested(Event):
    """The stop of the server was requested.

    Attributes:
        by: The origin of the request.
        reason: Why; empty if it is not known.
    """

    by: str
    reason: str = ""
