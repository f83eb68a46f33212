"""The signals that the main process handles, and their actions in its children."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["FEWER", "MORE", "RELOAD", "REQUESTS", "STOPS", "at_default", "blocked", "original_mask"]

STOPS = (signal.SIGINT, signal.SIGTERM)
# The signals that request a reload or a scaling, not a stop.
REQUESTS = RELOAD, MORE, FEWER = (signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU)

# This module is imported with the package: it cannot see an earlier state of the main process.
_original_mask = frozenset(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
_ignored = frozenset(signum for signum in REQUESTS if signal.getsignal(signum) is signal.SIG_IGN)


def original_mask() -> frozenset[int]:
    """Return the signals that were blocked when this process was started."""
    return _original_mask


def at_default() -> frozenset[int]:
    """Return the signals that the main process handles and a child has at their default action.

    A request that was ignored when the main process was started (``nohup``) stays ignored in a child. SIGINT
    and SIGTERM do not: the main process stops its children by them.
    """
    return frozenset((*STOPS, *REQUESTS)) - _ignored


@contextmanager
def blocked() -> Iterator[frozenset[int]]:
    """Block the signals that the main process handles while it forks.

    The child has the handlers of the main process until it sets its own. A signal before that would run such
    a handler in the child, and be lost.

    Yields:
        frozenset: The signals that were not blocked before. The child unblocks them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (*STOPS, *REQUESTS))
    try:
        yield frozenset((*STOPS, *REQUESTS)) - before
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
