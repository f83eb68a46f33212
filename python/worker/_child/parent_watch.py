"""Ends a child whose main process is gone: first by SIGINT, after the graceful timeout by SIGKILL."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait as wait_for
from multiprocessing.util import Finalize

from worker._core import ParentWatch

__all__ = [
    "LAST",
    "all_signals_blocked",
    "has_own_session",
    "lead_session",
    "main_is_gone",
    "stop_begun",
    "stop_handlers_set",
    "watch_parent",
]

LAST = -1_000_000
"""The priority of the finalizer that runs last."""

_watch: ParentWatch | None = None
# Becomes readable when the main process has ended.
_main_ended: int | None = None


def watch_parent(main: int, grace: float) -> None:
    """End this process when the main process is gone.

    A process whose parent is another one, or whose main process is gone already, exits at once with code 1.

    Args:
        main (int): The pid of the main process.
        grace (float): How long this process may take to stop after SIGINT until it is killed, seconds.
    """
    global _watch, _main_ended
    try:
        ended = os.pidfd_open(main)
    except ProcessLookupError:
        os._exit(1)
    except (AttributeError, OSError):
        parent = multiprocessing.parent_process()
        if parent is None:
            return
        ended = parent.sentinel
    process = multiprocessing.current_process()
    # The parent of a process that was forked from another one is not the main process.
    is_own_child = getattr(process, "_start_method", None) in ("fork", "spawn")
    if is_own_child and not getattr(process, "is_preloaded", False) and os.getppid() != main:
        os._exit(1)

    # The thread inherits the mask. With a signal unblocked it would take one that the main thread waits for.
    with all_signals_blocked():
        _watch = ParentWatch(ended, grace)
    _main_ended = ended
    # The main process kills the group of a child that has exited. Without it the child does so itself.
    Finalize(None, _kill_group, exitpriority=LAST)


def main_is_gone() -> bool:
    """Return whether the main process of this child has ended; ``False`` in any other process."""
    return _main_ended is not None and bool(wait_for([_main_ended], 0))


def stop_begun() -> None:
    """Tell the watch that this child has begun to stop: it sends no SIGINT any more."""
    if _watch is not None:
        _watch.stop_begun()


def stop_handlers_set() -> None:
    """Tell the watch that the stop handlers are set: a SIGINT that was lost before is sent again."""
    if _watch is not None:
        _watch.stop_handlers_set()


def lead_session() -> None:
    """Make the calling process the leader of a new session, out of reach of the terminal's signals."""
    # A process group is not enough: a background group is stopped when it uses the terminal.
    with suppress(PermissionError):
        os.setsid()


def has_own_session() -> bool:
    """Return whether the calling process leads its own session."""
    return os.getsid(0) == os.getpid()


def _kill_group() -> None:
    """Kill all other processes of the group that this process leads, if the main process is gone."""
    if not main_is_gone() or not has_own_session():
        return
    me = os.getpid()
    for entry in os.listdir("/proc") if os.path.isdir("/proc") else ():
        with suppress(OSError, ValueError):
            if os.getpgid(int(entry)) == me != int(entry):
                os.kill(int(entry), signal.SIGKILL)


@contextmanager
def all_signals_blocked() -> Iterator[None]:
    """Block all signals while a thread is started that must take none."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
