"""Measures the share of time in which the event loop of a server is busy, without a cost per request."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from time import monotonic, thread_time

__all__ = ["BUSY_SHARE", "BusyReporter", "BusyShare"]

# From this share on, a server counts as busy.
BUSY_SHARE = 0.5
# A timer that runs this late, seconds, has found the loop in a step of something else.
LATE = 0.01
# The longest time, seconds, for which one late timer speaks besides its own lateness.
SAMPLE = 0.25


class BusyShare:
    """The share of time in which the event loop of the calling thread is busy: it computes, or is blocked.

    Each timer of the heartbeat is a sample. The loop was busy for the CPU time of its thread. A step that
    blocks takes no CPU time, but a timer that runs late has met one: then the loop counts as busy all the
    time since the timer before.
    """

    def __init__(self) -> None:
        self._at, self._cpu = monotonic(), thread_time()
        self._passed = self._busy = 0.0

    def add(self, lag: float) -> None:
        """Add a timer that runs now, ``lag`` seconds late."""
        now, cpu = monotonic(), thread_time()
        passed = now - self._at
        blocked = SAMPLE + lag if lag > LATE else 0.0
        self._busy += min(passed, max(cpu - self._cpu, blocked))
        self._passed += passed
        self._at, self._cpu = now, cpu

    def take(self) -> float | None:
        """Return the share since the last call, from 0 to 1; ``None`` if there was no timer."""
        share = self._busy / self._passed if self._passed else None
        self._passed = self._busy = 0.0
        return share


class BusyReporter:
    """Tells the main process when this server becomes busy, so that it need not look while none is.

    Args:
        tell (Callable): Sends the report; returns whether there was room for it.
    """

    def __init__(self, tell: Callable[[], bool]) -> None:
        self._tell = tell
        self._is_told = False

    def note(self, share: float | None) -> None:
        """Note the share of the last beat, once it stands in the shared state."""
        if share is None or share < BUSY_SHARE:
            self._is_told = False
        elif not self._is_told:
            # Without a main process, nothing is scaled.
            with suppress(OSError, ValueError):
                self._is_told = self._tell()
