"""The signals that the main process handles, and their actions in its children."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = [
    "FEWER",
    "HANDLED",
    "MORE",
    "OPTIONAL",
    "RELOAD",
    "REOPEN",
    "REQUESTS",
    "STOPS",
    "UPGRADE",
    "at_default",
    "blocked",
    "may_take",
    "name_of",
    "original_mask",
]

STOPS = (signal.SIGINT, signal.SIGTERM)
# The signals that request a reload or a scaling, not a stop.
REQUESTS = RELOAD, MORE, FEWER = (signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU)
# The signals that the application may use for itself: a handler of its own stays.
OPTIONAL = REOPEN, UPGRADE = (signal.SIGUSR1, signal.SIGUSR2)
HANDLED = (*STOPS, *REQUESTS, *OPTIONAL)

# This module is imported with the package: it cannot see an earlier state of the main process.
_original_mask = frozenset(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
_ignored = frozenset(
    signum for signum in (*REQUESTS, *OPTIONAL) if signal.getsignal(signum) is signal.SIG_IGN
)


def original_mask() -> frozenset[int]:
    """Return the signals that were blocked when this process was started."""
    return _original_mask


def may_take(signum: int) -> bool:
    """Return whether a process of the manager may handle a signal.

    One that is ignored stays ignored, SIGINT and SIGTERM excepted, and one of :data:`OPTIONAL` stays with the
    application if that handles it.
    """
    handler = signal.getsignal(signum)
    if signum in STOPS or handler is signal.SIG_IGN:
        return signum in STOPS
    if signum not in OPTIONAL:
        return True
    if handler is signal.SIG_DFL:
        # Imported on use: a server imports as little as possible.
        from worker._system.proc import catches

        # A handler that was not set from Python, such as that of faulthandler.
        return not catches(os.getpid(), signum)
    return str(getattr(handler, "__module__", "")).startswith("worker.")


def name_of(signum: int) -> str:
    """Return the name of a signal: ``SIGKILL``, or ``signal 40`` for one without a name."""
    try:
        return signal.Signals(signum).name
    except ValueError:
        return f"signal {signum}"


def at_default() -> frozenset[int]:
    """Return the signals that the main process handles and a child has at their default action.

    A request that was ignored when the main process was started (``nohup``) stays ignored in a child. SIGINT
    and SIGTERM do not: the main process stops its children by them.
    """
    return frozenset(HANDLED) - _ignored


@contextmanager
def blocked() -> Iterator[frozenset[int]]:
    """Block the signals that the main process handles while it forks.

    The child has the handlers of the main process until it sets its own. A signal before that would run such
    a handler in the child, and be lost.

    Yields:
        frozenset: The signals that were not blocked before. The child unblocks them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    try:
        yield frozenset(HANDLED) - before
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
