"""The data of the supervisor: records of slots, events and actions.

An event is observed, an action is decided. Both are frozen. The flow goes one way: from events through the
decisions in :mod:`~worker._supervisor.transitions` to actions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum, auto
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from worker._core.record import Record
from worker.constants import Phase, ProcessState, RestartOrder

if TYPE_CHECKING:
    from worker._supervisor.child import ChildProcess
    from worker._supervisor.operation import Operation
    from worker._supervisor.restart_policy import Exit
    from worker.process import WorkerProcess
    from worker.settings import Settings


class ServerPhase(Enum):
    """Whether the server starts, runs or stops."""

    NEW = auto()
    """Nothing has been started."""
    STARTING = auto()
    """The servers start for the first time: none of them may fail, unless a reloader runs."""
    RUNNING = auto()
    """Each worker is supervised by itself."""
    START_FAILED = auto()
    """A server failed at its first start. No process is started any more."""
    LOOP_ENDED = auto()
    """The loop was ended. No process is started any more; running ones were not stopped."""
    STOPPING = auto()
    """Every process was stopped. No process is started any more."""

    @property
    def is_over(self) -> bool:
        """Whether the loop has to end."""
        return self in (ServerPhase.LOOP_ENDED, ServerPhase.STOPPING)

    @property
    def starts_processes(self) -> bool:
        """Whether processes are still started."""
        return self in (ServerPhase.NEW, ServerPhase.STARTING, ServerPhase.RUNNING)


# Requests


class RestartRequest(Record):
    """A request for a new process in a slot.

    Attributes:
        order: The order of the restart.
        made_at: When it was made, on the clock of the supervisor, seconds.
        config: The ``config`` of the new process.
        operations: The operations to which it belongs.
    """

    order: RestartOrder
    made_at: float
    config: Mapping[str, Any] = MappingProxyType({})
    operations: tuple[Operation, ...] = ()

    @property
    def is_proven(self) -> bool:
        """Whether its code is known to start."""
        return all(operation.proven for operation in self.operations)


class RestartMode(Record):
    """How a slot gets its new process: the order, and whether the start does not wait for the exit."""

    order: RestartOrder
    at_once: bool = False


# Slots


class SlotRecord(Record):
    """The lifecycle data of a slot.

    Attributes:
        phase: Its phase.
        retry_at: When the next process is to be started, on the monotonic clock; ``inf``: not by itself.
        exits: The exits in a row of processes that were not ready for long, as text.
        restarts: The number of processes that the restart policy has replaced.
        has_replaced_starting: Whether its starting process has replaced another starting one.
        request: The request for which its current process was started, if there was one.
        last_exit: The last exit; ``None`` after a process was ready.
    """

    phase: Phase = Phase.STOPPED
    retry_at: float = math.inf
    exits: tuple[str, ...] = ()
    restarts: int = 0
    has_replaced_starting: bool = False
    request: RestartRequest | None = None
    last_exit: Exit | None = None


class SlotView(NamedTuple):
    """A slot as a decision sees it.

    Attributes:
        phase: Its phase.
        is_server: Whether it serves requests.
        exclusive: Whether its port cannot be bound twice.
        has_replaced_starting: As in :class:`SlotRecord`.
    """

    phase: Phase
    is_server: bool = True
    exclusive: bool = False
    has_replaced_starting: bool = False


class Situation(Record):
    """The input of a decision about one slot, besides the event.

    Attributes:
        record: The slot's own record.
        state: The state of its current process.
        is_server: Whether it serves requests.
        absence: The effect of its absence in words, if it must never be FAILED; else empty.
        restart_policy: Its restart policy.
        is_alive: Whether its current process runs.
        is_occupied: Whether any process runs in the slot, or has not been collected.
        has_previous: Whether a previous process serves while the current one starts.
        requests: The requests that wait, by slot.
        pending: The request that waits for this slot.
        waits_for_change: Whether a server that fails to start is left until a file changes.
        settings: The limits.
        now: The time, on the clock of the supervisor, seconds.
        chance: A random number from 0 to 1, for the jitter of a backoff.
    """

    record: SlotRecord
    state: ProcessState
    is_server: bool
    absence: str
    restart_policy: str
    is_alive: bool
    is_occupied: bool
    has_previous: bool
    requests: Mapping[WorkerProcess, RestartRequest]
    pending: RestartRequest | None
    waits_for_change: bool
    settings: Settings
    now: float
    chance: float


# Events


class StartAsked(Record):
    """The start of the first process was requested."""


class Started(Record):
    """A process was started in the slot.

    Attributes:
        child: The process; ``None`` if it cannot be watched.
    """

    child: ChildProcess | None


class StartFailed(Record):
    """The main process could not start a process in the slot.

    Attributes:
        exit: An exit without a process.
        order: The order of the restart.
        is_refused: Whether the start was refused before any change.
    """

    exit: Exit
    order: RestartOrder
    is_refused: bool = False


class RestartDue(Record):
    """The slot is due in a rollout."""

    mode: RestartMode


class Ready(Record):
    """The current process is ready."""

    child: ChildProcess


class StartTimedOut(Record):
    """The current process was not ready in time."""

    child: ChildProcess


class Exited(Record):
    """The current process has exited."""

    exit: Exit


class PreviousExited(Record):
    """The previous process has exited while the current one was starting."""

    exit: Exit


class StoppedExited(Record):
    """A process that was stopped by the manager has exited."""

    exit: Exit


class BackoffOver(Record):
    """The backoff is over: the next process is due."""


class StopSent(Record):
    """The processes of the slot were stopped for good."""


SlotEvent = (
    StartAsked
    | Started
    | StartFailed
    | RestartDue
    | Ready
    | StartTimedOut
    | Exited
    | PreviousExited
    | StoppedExited
    | BackoffOver
    | StopSent
)


# Actions


class Enter(Record):
    """Enter a phase, and show it in the state entry."""

    phase: Phase


class Update(Record):
    """Change other fields of the slot's record."""

    changes: Mapping[str, Any]


class StartProcess(Record):
    """Start the next process, for the waiting request if there is one."""

    order: RestartOrder
    replaces_starting: bool = False


class StopCurrent(Record):
    """Stop the current process; the next one is started after its exit."""


class HandOver(Record):
    """Hand the state entry over to the current process, and stop the previous one."""


class RollBack(Record):
    """Let the previous process be the current one again."""


class ContinueAlone(Record):
    """Forget the previous process."""


class ReportStart(Record):
    """Report the start of a process."""

    child: ChildProcess


class MarkReady(Record):
    """Take note that a process is ready, and report it."""

    child: ChildProcess


class Acknowledge(Record):
    """Count the start of the current process as acknowledged."""


class KillUnready(Record):
    """Kill a process that was not ready in time."""

    child: ChildProcess


class SetState(Record):
    """Set the state of the current process."""

    state: ProcessState
    force: bool = False


class ShowNotServing(Record):
    """Show in the state entry that no process serves in the slot."""


class WriteEntry(Record):
    """Write to the state entry."""

    changes: Mapping[str, Any]


class Report(Record):
    """Report an exit, and note it in the state entry.

    Attributes:
        exit: The exit.
        consequence: Its consequence in words.
        delay: The time until the next process is started, seconds; ``inf``: none is started.
        attempt: The number of exits in a row.
    """

    exit: Exit
    consequence: str
    delay: float = math.inf
    attempt: int = 0


class ReportExpected(Record):
    """Report an exit that is no fault of the process, by a log line of this level of :mod:`logging`."""

    exit: Exit
    consequence: str
    level: int


class QueueRequest(Record):
    """Let a request wait for the slot's turn."""

    request: RestartRequest


class Forget(Record):
    """Drop the requests that wait for these slots; by default, that of the slot itself."""

    slots: tuple[WorkerProcess, ...] | None = None


class MarkProven(Record):
    """Mark the code of these operations as known to start."""

    operations: tuple[Operation, ...]


class MarkDone(Record):
    """Count the slot as done in the operations of its request."""


class Abort(Record):
    """Abort these operations.

    Attributes:
        operations: The operations.
        reason: Why.
        rolled_back: Whether the previous process of the slot is kept.
    """

    operations: tuple[Operation, ...]
    reason: str
    rolled_back: bool = False


Action = (
    Enter
    | Update
    | StartProcess
    | StopCurrent
    | HandOver
    | RollBack
    | ContinueAlone
    | ReportStart
    | MarkReady
    | Acknowledge
    | KillUnready
    | SetState
    | ShowNotServing
    | WriteEntry
    | Report
    | ReportExpected
    | QueueRequest
    | Forget
    | MarkProven
    | MarkDone
    | Abort
)
