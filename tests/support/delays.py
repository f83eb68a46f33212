"""How long a machine has kept its processes from running, as far as a test can see it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from worker._system import proc

Stalls = Callable[[], float]


@contextmanager
def counted_stalls() -> Iterator[Stalls]:
    """Return a function that tells for how long this process could not run, nor perhaps the machine."""
    over, seconds = threading.Event(), [0.0]

    def watch() -> None:
        began = monotonic()
        while not over.wait(0.01):
            seconds[0] += max(0.0, monotonic() - began - 0.05)
            began = monotonic()

    thread = threading.Thread(target=watch, name="stalls")
    thread.start()
    try:
        yield lambda: seconds[0]
    finally:
        over.set()
        thread.join()


class Delay:
    """How much later a hang may be found for what has happened to the machine since this object was made.

    Args:
        pid (int): The main process.
        stalls (Stalls): Counts the stalls.
        limit (float): The setting ``hang_timeout``, seconds.
    """

    def __init__(self, pid: int, stalls: Stalls, limit: float) -> None:
        self._pid = pid
        self._stalls = stalls
        self._limit = limit
        self._before = proc.run_delay(pid), stalls()

    @property
    def seconds(self) -> float:
        waited, stalled = proc.run_delay(self._pid) - self._before[0], self._stalls() - self._before[1]
        # After a longer absence, the main process counts the time of each server anew.
        return waited + stalled + (self._limit if stalled > 0.2 else 0.0)
