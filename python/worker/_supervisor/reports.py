"""Makes the events that an operator is told, from what the supervisor knows."""

from __future__ import annotations

import logging
import math
import os
from typing import TYPE_CHECKING

from worker._state import events
from worker.constants import MAIN_NAME, NAME_LIMIT, excerpt

if TYPE_CHECKING:
    from worker._core.messages import Recycle
    from worker._supervisor.child import ChildProcess
    from worker._supervisor.duties.hang_policy import Cause
    from worker._supervisor.operation import Operation, Origin
    from worker._supervisor.restart_policy import Exit

__all__ = [
    "exited",
    "gave_up",
    "hang_detected",
    "killed",
    "killed_at_once",
    "overdue",
    "ready",
    "recycled",
    "scaled",
    "server_ready",
    "started",
    "stop_requested",
    "took_over",
    "upgrade_done",
    "upgrade_failed",
    "upgrade_requested",
]

MIB = 1 << 20


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


def overdue(child: ChildProcess, grace: float) -> str:
    """Return the reason to kill a process whose stop has taken longer than ``grace`` seconds."""
    return "hangs, and cannot stop" if child.is_stuck else f"did not exit within {grace:g} s of the stop"


def killed_at_once(slot: str, pid: int) -> events.Event:
    """Return the event of a process that is killed with all others."""
    text, reason = f"Killing {excerpt(slot, NAME_LIMIT)} [{pid}]", "all processes are killed"
    return events.ProcessKilled(text=text, level=logging.INFO, slot=slot, pid=pid, reason=reason)


def recycled(child: ChildProcess, limit: Recycle) -> events.Event:
    """Return the event of a server that is replaced because it has reached a limit."""
    if limit.cause == "max_requests":
        reached, most = f"has received {limit.value:.0f} requests", f"{limit.limit:.0f}"
    elif limit.cause == "max_lifetime":
        reached, most = f"has run for {limit.value:.0f} s", f"{limit.limit:.0f} s"
    else:
        reached, most = f"takes {limit.value / MIB:.1f} MiB of memory", f"{limit.limit / MIB:.1f} MiB"
    return events.Recycled(
        text=f"{child} {reached} ({limit.cause}: {most} for this process). Replacing it.",
        level=logging.INFO,
        slot=child.slot.name,
        pid=child.base.pid,
        cause=limit.cause,
        value=limit.value,
        limit=limit.limit,
    )


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
        oom=exit.oom,
    )


def hang_detected(
    child: ChildProcess, cause: Cause, seconds: float, limit: float, lost: float, request: str
) -> events.Event:
    """Return the event of a server that hangs.

    Args:
        child (ChildProcess): Its process.
        cause (Cause): The cause.
        seconds (float): The time since its last beat.
        limit (float): The setting ``hang_timeout``, seconds.
        lost (float): The part of the time in which it could not run.
        request (str): The request that it handles, in words; empty if there is none, or it is not known.
    """
    overload = f", of which it could not run for {lost:.1f} s" if lost >= 0.1 else ""
    handled = f" It is handling {request}." if request else ""
    # A process that needs the port of this one starts after it.
    consequence = "Restarting it." if child.slot.exclusive else "Starting its replacement."
    return events.HangDetected(
        text=f"{child} hangs: no progress for {seconds:.1f} s{overload} (hang_timeout: {limit:g} s). "
        f"Cause: {cause.label}, {cause.value}.{handled} {consequence}",
        level=logging.ERROR,
        slot=child.slot.name,
        pid=child.base.pid,
        cause=cause.label,
        seconds=seconds,
        limit=limit,
        request=request,
    )


def scaled(before: int, after: int, origin: Origin, operation: Operation | None) -> events.Event:
    """Return the event of another number of servers."""
    text = f"Scaling from {before} to {after} workers"
    return events.Scaled(
        text=f"{text}: {origin.reason}" if origin.reason else text,
        level=logging.INFO,
        before=before,
        after=after,
        by=origin.name,
        operation="" if operation is None else operation.id,
        reason=origin.reason,
    )


def server_ready(workers: int, seconds: float) -> events.Event:
    """Return the event of the end of the first start."""
    text = f"The server is ready after {seconds:.2f} s."
    return events.ServerReady(text=text, workers=workers, seconds=seconds)


def stop_requested(by: str, delay: float = 0.0) -> events.Event:
    """Return the event of a requested stop, which begins after this time, seconds."""
    text = f"The stop of the server was requested by {by}."
    if not delay:
        return events.StopRequested(text=text, by=by)
    text += f" It is not ready from now on, and accepts requests for another {delay:g} s (drain_delay)."
    return events.StopRequested(text=text, level=logging.INFO, by=by, delay=delay)


def gave_up() -> events.Event:
    """Return the event of a stop because no server is left that could run."""
    text, reason = "No server can run any more. Shutting down.", "no server can run any more"
    return events.StopRequested(text=text, level=logging.ERROR, by=MAIN_NAME, reason=reason)


def upgrade_requested(operation: str, pid: int, by: str) -> events.Event:
    """Return the event of the start of a new main process."""
    text = f"Upgrade requested by {by}. The new main process is [{pid}]."
    return events.UpgradeRequested(text=text, level=logging.INFO, pid=pid, by=by, operation=operation)


def upgrade_done(operation: str, pid: int, seconds: float) -> events.Event:
    """Return the event of the end of this main process, whose place another one has taken."""
    text = f"Upgrade finished in {seconds:.1f} s: the main process [{pid}] serves. Stopping this one."
    return _upgrade_ended(text, logging.INFO, "", seconds, pid, operation)


def upgrade_failed(operation: str, pid: int | None, seconds: float, reason: str) -> events.Event:
    """Return the event of an upgrade that has failed; ``pid`` is ``None`` if no process was started."""
    successor = "the new main process" if pid is None else f"the new main process [{pid}]"
    text = f"Upgrade failed after {seconds:.1f} s, and this main process stays; {successor}: {reason}."
    return _upgrade_ended(text, logging.ERROR, reason, seconds, pid, operation)


def took_over(predecessor: int, seconds: float) -> events.Event:
    """Return the event of this main process having taken the place of another one."""
    text = f"Upgrade finished: took the place of the main process [{predecessor}] after {seconds:.1f} s."
    return _upgrade_ended(text, logging.INFO, "", seconds, os.getpid(), "")


def _upgrade_ended(
    text: str, level: int, reason: str, seconds: float, pid: int | None, operation: str
) -> events.Event:
    return events.UpgradeEnded(
        text=text,
        level=level,
        outcome="failed" if reason else "done",
        reason=reason,
        seconds=seconds,
        pid=pid,
        operation=operation,
    )
