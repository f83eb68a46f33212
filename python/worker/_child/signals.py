"""The signals of the main process, and what its children are to have of them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["FEWER", "MORE", "RELOAD", "REQUESTS", "STOPS", "at_default", "blocked", "original_mask"]

STOPS = (signal.SIGINT, signal.SIGTERM)
# What main is asked by signals, but for a stop.
REQUESTS = RELOAD, MORE, FEWER = (signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU)

# This module is imported with the package: no earlier moment of main can be seen from here.
_original_mask = frozenset(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
_ignored = frozenset(signum for signum in REQUESTS if signal.getsignal(signum) is signal.SIG_IGN)


def original_mask() -> frozenset[int]:
    """Return the signals that were blocked when this process was started."""
    return _original_mask


def at_default() -> frozenset[int]:
    """Return the signals that main handles and a child is to have at their default action.

    A request that was ignored when main was started (``nohup``) stays ignored in a child. SIGINT and SIGTERM
    do not: main stops its children by them.
    """
    return frozenset((*STOPS, *REQUESTS)) - _ignored


@contextmanager
def blocked() -> Iterator[frozenset[int]]:
    """Block the signals that main handles while it forks.

    The child has main's handlers until it sets its own. A signal that comes before that would run the
    handler of main in the child, and be lost.

    Yields:
        frozenset: Those that were not blocked before. The child unblocks them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (*STOPS, *REQUESTS))
    try:
        yield frozenset((*STOPS, *REQUESTS)) - before
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
