"""What main knows of a process: whether it has begun, whether it is alive, how it has ended."""

from __future__ import annotations

import os
import select
import signal
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from multiprocessing.process import BaseProcess
from typing import Any

from worker._spawn.processes import ManagedProcess

__all__ = ["has_begun", "is_alive", "leads_session", "reap", "stop_signal"]

# How long main waits for the exit code of a dead process that is not of ours, seconds.
_EXITCODE_TIMEOUT = 1.0


def has_begun(process: Any) -> bool:
    """Whether a child of ours runs its target by now: from then on it ends in order when told to."""
    return isinstance(process, ManagedProcess) and process._begun is not None and _is_readable(process._begun)


def leads_session(process: Any) -> bool:
    """Whether a child of ours leads its own session by now (and its group with it)."""
    if not isinstance(process, ManagedProcess) or process.pid is None:
        return False
    try:
        return os.getsid(process.pid) == process.pid
    except OSError:
        return False


def stop_signal(process: Any) -> signal.Signals:
    """Return the signal that tells a process to leave.

    A child of ours that has not begun is ended by SIGTERM, at once: SIGINT would be a ``KeyboardInterrupt``
    in the middle of an import.
    """
    is_beginning = isinstance(process, ManagedProcess) and not has_begun(process)
    return signal.SIGTERM if is_beginning else signal.SIGINT


def is_alive(process: Any) -> bool:
    """Whether a process runs; ``False`` before its start.

    One of ours tells by its pidfd. One of another class may not know that somebody else has collected it: its
    sentinel does.
    """
    alive = bool(process.is_alive())
    if alive and not isinstance(process, ManagedProcess) and isinstance(process, BaseProcess):
        return not wait_for([process.sentinel], 0)
    return alive


def reap(process: BaseProcess) -> int | None:
    """Collect a dead child.

    Returns:
        int | None: Its exit code, negative for a signal; ``None`` if nobody knows.
    """
    is_ours = isinstance(process, ManagedProcess)
    if not is_ours and process.exitcode is None:
        wait_for([process.sentinel], _EXITCODE_TIMEOUT)
    code = process.exitcode
    if is_ours or code is not None:
        # So that multiprocessing forgets it now, and not at its next start.
        process.join(0)
    return code


def _is_readable(connection: Connection) -> bool:
    # The end of the other side is none: that is what a death before looks like.
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return any(events & select.POLLIN for _, events in poll.poll(0))
