"""The numbers of the processes that share the table: each writes its own, without further ado."""

from __future__ import annotations

import os
import time
from typing import Any

from worker._pure_log import Log
from worker.values import numbers

__all__ = ["Places"]

# The first word tells up to where places were ever taken. Each place is the words of one process; as a signal
# handler may come between any two stores, none of them depends on another.
_TOP, _FIRST = 0, 1
_WHO, _BEAT, _REQUESTS, _STOPPABLE, _STOPPING, _PLACE = range(6)
_PID = (1 << 32) - 1


class Places:
    """A place for each process, in the words that the log leaves free."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._words = log.words
        self._own = (0, 0)

    def by_pid(self) -> dict[int, int]:
        """Return the place of each process."""
        words = self._words
        return {who & _PID: place for place in range(_FIRST, words[_TOP], _PLACE) if (who := words[place])}

    def numbers(self, place: int) -> dict[str, Any]:
        """Return the numbers in a place, by the keys that they have in an entry."""
        _, beat, requests, stoppable, stopping = self._words[place : place + _PLACE].tolist()
        return numbers(beat, requests, bool(stoppable), bool(stopping))

    def beat(self, requests: int) -> None:
        """Note the time, and so many more requests."""
        place = self._place()
        with self._log.turn:
            self._words[place + _REQUESTS] = (self._words[place + _REQUESTS] + requests) % (1 << 64)
            self._words[place + _BEAT] = time.time_ns()

    def flag(self, stoppable: bool | None, stopping: bool | None) -> None:
        """Store those flags that are given."""
        place = self._place()
        for word, value in ((_STOPPABLE, stoppable), (_STOPPING, stopping)):
            if value is not None:
                self._words[place + word] = bool(value)

    def vacate(self, pid: int) -> None:
        """Let others have the place of a dead process, if it has one."""
        with self._log.alone():
            place = self.by_pid().get(pid)
            if place is not None and self._words[place] != _identity(pid):
                self._clear(place)

    def _place(self) -> int:
        pid, place = self._own
        if pid != os.getpid():
            pid = os.getpid()
            with self._log.alone():
                place = self._take(_identity(pid) or pid)
            self._own = pid, place
        return place

    def _take(self, me: int) -> int:
        words = self._words
        place = self.by_pid().get(me & _PID)
        if place is None:
            place = self._free(me)
        elif words[place] != me:
            self._clear(place)
        words[_TOP] = max(words[_TOP], place + _PLACE)
        words[place] = me
        return place

    def _free(self, me: int) -> int:
        places = range(_FIRST, len(self._words) - _PLACE, _PLACE)
        for place in places:
            if not self._words[place]:
                return place
        # A system that does not tell when this process began may hide others altogether.
        for place in places if me > _PID else ():
            who = self._words[place]
            if _identity(who & _PID) != who:
                self._clear(place)
                return place
        raise MemoryError(f"no room for the numbers of one more process in a table of {self._log.size} bytes")

    def _clear(self, place: int) -> None:
        # Who had it comes last: a place that is free is empty.
        for word in reversed(range(_PLACE)):
            self._words[place + word] = 0


def _identity(pid: int) -> int | None:
    """Who has this pid: above it, when that one began. ``None`` if it is dead, or the system says nothing."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            state, *rest = stat.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if state in (b"Z", b"X") else (int(rest[18]) & 0x7FFF_FFFF) << 32 | pid
