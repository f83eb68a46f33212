"""The processes that a process has started, and those that they have started in turn."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress

from worker._system import proc

__all__ = ["adopt_orphans", "descendants", "kill"]

PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Let this process become the parent of its descendants whose parent ends, where the system can."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants() -> list[int]:
    """Return the pids of all running descendants of this process; none where there is no ``/proc``."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc") if os.path.isdir("/proc/self") else ():
        if entry.isdecimal() and (fields := proc.stat(entry)) and fields[0].decode() not in proc.EXITED:
            children.setdefault(int(fields[1]), []).append(int(entry))
    found: list[int] = []
    parents = [os.getpid()]
    while parents:
        more = children.get(parents.pop(), [])
        found += more
        parents += more
    return found


def kill(pids: list[int]) -> None:
    """Kill processes, and reap those that are children of this one."""
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    for pid in pids:
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
