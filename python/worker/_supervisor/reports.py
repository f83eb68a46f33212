"""Makes the events that an operator is told, from what the supervisor knows."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from worker._state import events
from worker.constants import MAIN_NAME, NAME_LIMIT, excerpt

if TYPE_CHECKING:
    from worker._supervisor.child import ChildProcess
    from worker._supervisor.operation import Operation
    from worker._supervisor.restart_policy import Exit

__all__ = [
    "exited",
    "gave_up",
    "killed",
    "killed_at_once",
    "ready",
    "scaled",
    "server_ready",
    "started",
    "stop_requested",
]


def started(child: ChildProcess, reason: str) -> events.Event:
    """Return the event of a start; ``reason`` as in :class:`~worker._state.events.ProcessStarted`."""
    slot, pid = child.slot.name, child.base.pid
    return events.ProcessStarted(text=f"{child} started.", slot=slot, pid=pid, reason=reason)


def ready(child: ChildProcess) -> events.Event:
    """Return the event of a process that has become ready."""
    seconds = child.ready_at - child.started_at
    return events.ProcessReady(
        text=f"{child} is ready after {seconds:.2f} s.",
        slot=child.slot.name,
        pid=child.base.pid,
        seconds=seconds,
        server=child.slot.is_server,
    )


def killed(child: ChildProcess, reason: str, level: int = logging.ERROR) -> events.Event:
    """Return the event of a process that the manager kills."""
    return events.ProcessKilled(
        text=f"{child} {reason}. Killing it.",
        level=level,
        slot=child.slot.name,
        pid=child.base.pid,
        reason=reason,
    )


def killed_at_once(slot: str, pid: int) -> events.Event:
    """Return the event of a process that is killed with all others."""
    text, reason = f"Killing {excerpt(slot, NAME_LIMIT)} [{pid}]", "all processes are killed"
    return events.ProcessKilled(text=text, level=logging.INFO, slot=slot, pid=pid, reason=reason)


def exited(
    exit: Exit,  # noqa: A002
    consequence: str,
    level: int,
    *,
    expected: bool = False,
    delay: float = math.inf,
    attempt: int = 0,
) -> events.Event:
    """Return the event of an exit, or of a start that the system has refused.

    Args:
        exit (Exit): The exit.
        consequence (str): Its consequence in words.
        level (int): The level of the log line, as in :mod:`logging`.
        expected (bool): Whether the manager has stopped the process. Defaults to ``False``.
        delay (float): The time until the next process is started, seconds. Defaults to ``inf``: none is.
        attempt (int): The number of exits in a row. Defaults to 0.
    """
    text, next_restart_in = f"{exit}. {consequence}", None if delay == math.inf else delay
    if not exit.has_run:
        return events.ProcessNotStarted(
            text=text,
            level=level,
            slot=exit.slot,
            error=exit.error,
            attempt=attempt,
            next_restart_in=next_restart_in,
        )
    return events.ProcessExited(
        text=text,
        level=level,
        slot=exit.slot,
        pid=exit.pid,
        exit_code=None if exit.signal_name else exit.code,
        signal=exit.signal_name,
        uptime=exit.lifetime,
        error=exit.error,
        expected=expected,
        attempt=attempt,
        next_restart_in=next_restart_in,
    )


def scaled(before: int, after: int, by: str, operation: Operation | None) -> events.Event:
    """Return the event of another number of servers."""
    return events.Scaled(
        text=f"Scaling from {before} to {after} workers",
        level=logging.INFO,
        before=before,
        after=after,
        by=by,
        operation="" if operation is None else operation.id,
    )


def server_ready(workers: int, seconds: float) -> events.Event:
    """Return the event of the end of the first start."""
    text = f"The server is ready after {seconds:.2f} s."
    return events.ServerReady(text=text, workers=workers, seconds=seconds)


def stop_requested(by: str) -> events.Event:
    """Return the event of a requested stop."""
    return events.StopRequested(text=f"The stop of the server was requested by {by}.", by=by)


def gave_up() -> events.Event:
    """Return the event of a stop because no server is left that could run."""
    text, reason = "No server can run any more. Shutting down.", "no server can run any more"
    return events.StopRequested(text=text, level=logging.ERROR, by=MAIN_NAME, reason=reason)
