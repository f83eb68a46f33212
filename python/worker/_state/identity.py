"""As which worker the calling process speaks."""

from __future__ import annotations

from collections.abc import Callable
from os import getpid

__all__ = ["become_worker", "worker_pid"]

# Asked for at each read of the state, so it is nothing that Python has to interpret. Ask it of this module:
# `from worker._state.identity import worker_pid` would keep the one of main.
worker_pid: Callable[[], int] = getpid
"""Tells the pid of the worker that the calling process is, or that has forked it.

A fork has no entry of its own, so what it writes is the worker's. A program that a worker starts, a spawned
Python among them, is no copy of it and speaks as itself, as does any other process.
"""


def become_worker() -> None:
    """Speak as oneself from now on, as do all forks: a process of the manager does so when it begins."""
    global worker_pid
    worker_pid = getpid().__int__
