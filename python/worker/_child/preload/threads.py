"""The threads of a preload process. A lock that one of them holds would stay locked in a forked child."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from contextlib import suppress

__all__ = ["count_threads", "ends_threads", "listed", "tasks", "try_fork"]

# How long a trial fork may take, and the end of threads after it, seconds. Those of native code may have to
# wait for the next periods of a CPU quota; those of Python hardly ever end by a fork.
FORKED_WITHIN = 2.0
ENDED_WITHIN = 1.0
PYTHON_ENDED_WITHIN = 0.1


def tasks() -> set[int]:
    """Return the threads by their numbers in the kernel, those of native code included."""
    return listed("/proc/self/task")


def listed(folder: str) -> set[int]:
    """Return the numbers that name the entries of a folder; none if it cannot be read."""
    with suppress(OSError):
        return {int(name) for name in os.listdir(folder)}
    return set()


def count_threads() -> int:
    """Return the number of threads, those of native code included."""
    try:
        links = os.stat("/proc/self/task").st_nlink
    except OSError:
        from threading import active_count

        return active_count()
    # A folder has two links beside those of the folders in it, unless the system does not count them.
    return links - 2 if links > 2 else len(tasks())


def ends_threads() -> bool:
    """Return whether a fork ends all other threads: those of libraries with fork handlers do."""
    return try_fork() and count_threads() == 1


def try_fork() -> bool:
    """Fork once, so that libraries with fork handlers end their threads in this process.

    Returns:
        bool: Whether the child exits. One that hangs in its fork handlers is killed.
    """
    # Imported on use: it is rare.
    import warnings

    with warnings.catch_warnings():
        # CPython 3.12 warns of threads.
        warnings.simplefilter("ignore")
        pid = os.fork()
    if pid == 0:
        os._exit(0)
    has_ended = True
    with suppress(AttributeError, OSError):
        pidfd = os.pidfd_open(pid)
        has_ended = bool(select.select([pidfd], [], [], FORKED_WITHIN)[0])
        os.close(pidfd)
    if not has_ended:
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    runs_python = len(sys._current_frames()) > 1
    deadline = time.monotonic() + (PYTHON_ENDED_WITHIN if runs_python else ENDED_WITHIN)
    # A thread that has been joined is listed for a moment more.
    while count_threads() > 1 and time.monotonic() < deadline:
        time.sleep(0.001)
    return has_ended
