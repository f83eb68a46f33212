"""The pid under which the calling process writes to the shared state."""

from __future__ import annotations

from collections.abc import Callable
from os import getpid

__all__ = ["become_worker", "worker_pid"]

# Called at each read of the state, so it is a function in C. Call it as an attribute of this module:
# `from worker._state.identity import worker_pid` would keep the function of the main process.
worker_pid: Callable[[], int] = getpid
"""Return the pid of the worker that the calling process is, or was forked from.

A fork has no entry of its own, so it writes to that of the worker. A program that a worker starts, such as a
spawned Python, is no copy of the worker and has its own pid, as has any other process.
"""


def become_worker() -> None:
    """Let this process and all its forks write under its pid; each process of the manager begins with it."""
    global worker_pid
    worker_pid = getpid().__int__
