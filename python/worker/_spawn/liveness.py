"""The main process's view of a process: whether it has begun, whether it runs, how it has exited."""

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

# How long to wait for the exit code of an exited process of another class than ours, seconds.
_EXITCODE_TIMEOUT = 1.0


def has_begun(process: Any) -> bool:
    """Return whether a managed process runs its target: from then on, a stop ends it in order."""
    return (
        isinstance(process, ManagedProcess)
        and process.begun_reader is not None
        and _is_readable(process.begun_reader)
    )


def leads_session(process: Any) -> bool:
    """Return whether a managed process leads its own session, and therefore its group."""
    if not isinstance(process, ManagedProcess) or process.pid is None:
        return False
    try:
        return os.getsid(process.pid) == process.pid
    except OSError:
        return False


def stop_signal(process: Any) -> signal.Signals:
    """Return the signal that stops a process.

    SIGTERM ends a managed process that has not begun at once: SIGINT would raise ``KeyboardInterrupt`` in the
    middle of an import.
    """
    is_beginning = isinstance(process, ManagedProcess) and not has_begun(process)
    return signal.SIGTERM if is_beginning else signal.SIGINT


def is_alive(process: Any) -> bool:
    """Return whether a process runs; ``False`` before its start.

    A managed process tells by its pidfd. A process of another class may not notice that another thread has
    collected it. Its sentinel shows that.
    """
    alive = bool(process.is_alive())
    if alive and not isinstance(process, ManagedProcess) and isinstance(process, BaseProcess):
        return not wait_for([process.sentinel], 0)
    return alive


def reap(process: BaseProcess) -> int | None:
    """Collect a child that has exited.

    Returns:
        int | None: The exit code, negative for a signal; ``None`` if it is unknown.
    """
    is_ours = isinstance(process, ManagedProcess)
    if not is_ours and process.exitcode is None:
        wait_for([process.sentinel], _EXITCODE_TIMEOUT)
    code = process.exitcode
    if is_ours or code is not None:
        # multiprocessing would otherwise forget it only at its next start of a process.
        process.join(0)
    return code


def _is_readable(connection: Connection) -> bool:
    # POLLHUP alone does not count: it means that the child has exited before it began.
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return any(events & select.POLLIN for _, events in poll.poll(0))
