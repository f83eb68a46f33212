"""Warns of steps of a server's event loop that take too long, with the place in the code.

A timer of the loop shows that the loop runs, and a thread looks at the stack when the timer is late. Both
rest while the loop has nothing to do: the first callback that is scheduled after that wakes them.
"""

from __future__ import annotations

import asyncio
import math
import os
import sys
import threading
from time import monotonic, sleep, thread_time
from typing import Any

from sanic.log import logger

from worker._child.samples import Place, Sample, blocking, take
from worker._system.proc import run_delay

__all__ = ["Repeats", "SlowLoop"]

# The share of the limit after which the timer runs. A step that takes this much more than the limit is seen
# for sure.
TICK = 1 / 4
# From this share of the limit on, the thread looks at the stack, each time after another share.
FIRST, NEXT = 1 / 2, 1 / 8
# The shortest time between two ticks, or two looks, seconds.
LEAST = 0.005
# A step that has taken so long is logged although it has not ended, seconds.
LONG = 5.0
# After that, the thread looks no more often than this, seconds, and keeps no more samples than these.
SELDOM, MOST = 1.0, 100
# The time in which one place is logged once, seconds, and the number of places that are remembered.
SPAN, PLACES = 60.0, 200


class Repeats:
    """Limits the log lines about each place to one in :data:`SPAN`, and counts the others.

    The place is a function here: a loop in it blocks at another line each time.
    """

    def __init__(self) -> None:
        self._logged: dict[tuple[str, str], tuple[float, int]] = {}

    def add(self, place: Place | None, now: float) -> int | None:
        """Return the number of lines about a place that were left out; ``None``: leave this one out, too.

        Args:
            place (Place | None): The place, if it is known.
            now (float): The time, seconds.
        """
        key = ("", "") if place is None else (place.file, place.function)
        logged_at, left_out = self._logged.get(key, (-math.inf, 0))
        if now < logged_at + SPAN:
            self._logged[key] = logged_at, left_out + 1
            return None
        # The place that was logged last is the last one, too.
        self._logged.pop(key, None)
        self._logged[key] = now, 0
        if len(self._logged) > PLACES:
            del self._logged[next(iter(self._logged))]
        return left_out


class SlowLoop:
    """Logs each step of an event loop that takes too long.

    Time for which the thread of the loop waits for a CPU does not count. A debugger is no block.

    Args:
        loop (AbstractEventLoop): The loop.
        limit (float): How long a step may take, seconds.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, limit: float) -> None:
        self._loop: Any = loop
        self._limit = limit
        self._call_soon = loop.call_soon
        self._repeats = Repeats()
        self._wakeup = threading.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._thread = 0
        self._pid = os.getpid()
        self._has_ended = False
        # Whether the loop has scheduled nothing since the last tick.
        self._is_hooked = False
        # When the tick is due; `inf` while both rest.
        self._due = math.inf
        self._waited = self._cpu = 0.0
        # Those since the tick was due, and whether the log has that block.
        self._samples: list[Sample | None] = []
        self._is_logged = False

    def begin(self) -> None:
        """Begin to watch the loop, in its thread."""
        self._thread = threading.get_ident()
        threading.Thread(target=self._watch, name="slow-loop", daemon=True).start()
        self._hook()

    def end(self) -> None:
        """Stop watching."""
        self._has_ended = True
        self._due = math.inf
        self._unhook()
        if self._timer is not None:
            self._timer.cancel()
        self._wakeup.set()

    # In the thread of the loop

    def _hook(self) -> None:
        """Notice the next callback that is scheduled: each step of a task begins with one."""
        self._is_hooked = True
        # asyncio's futures and tasks look the method up at each call, those of uvloop too.
        self._loop.call_soon = self._on_call

    def _unhook(self) -> None:
        if self._is_hooked:
            self._is_hooked = False
            # Another one may have put its own in the place of ours.
            if vars(self._loop).get("call_soon") == self._on_call:
                del self._loop.call_soon

    def _on_call(self, *args: Any, **kwargs: Any) -> Any:
        if self._is_hooked and not self._has_ended:
            self._unhook()
            if self._due == math.inf:
                self._arm()
                self._wakeup.set()
        return self._call_soon(*args, **kwargs)

    def _arm(self) -> None:
        """Let the timer run a while from now."""
        pause = max(LEAST, TICK * self._limit)
        self._waited, self._cpu = run_delay(self._pid), thread_time()
        self._samples, self._is_logged = [], False
        self._timer = self._loop.call_later(pause, self._tick)
        self._due = monotonic() + pause

    def _tick(self) -> None:
        """Report a block if this timer is late; rest if nothing was scheduled since the last one."""
        late, due, samples = monotonic() - self._due, self._due, self._samples
        # From here on, the thread takes no samples for it.
        self._due = math.inf
        if late >= self._limit and not self._is_logged and due < math.inf:
            blocked = late - (run_delay(self._pid) - self._waited)
            if blocked >= self._limit:
                self._report(blocked, thread_time() - self._cpu, samples)
        self._samples = []
        if self._has_ended or self._is_hooked:
            self._timer = None
            return
        self._hook()
        self._arm()

    def _report(self, blocked: float, cpu: float, samples: list[Sample | None]) -> None:
        """Log a block that is over, unless it is none."""
        found = blocking(samples)
        if found is not None:
            self._log(f"was blocked for {blocked:.2f} s or longer", found)
        elif not samples and 2 * cpu >= blocked and sys.gettrace() is None:
            self._log(f"was blocked for {blocked:.2f} s or longer by code that let no other thread run", None)

    # In either thread

    def _log(self, what: str, sample: Sample | None) -> None:
        if sample is not None and sample.is_debugged:
            return
        left_out = self._repeats.add(sample and sample.place, monotonic())
        if left_out is None:
            return
        where = ""
        if sample is not None:
            where = f" at {sample.place}"
            if sample.inner != sample.place:
                where += f" (which called {sample.inner})"
            if sample.work:
                where += f", for {sample.work}"
        more = f" {left_out} more in this function since the last such line." if left_out else ""
        text = "The event loop %s%s. The limit is %g s (slow_loop_warning).%s"
        logger.warning(text, what, where, self._limit, more)

    # In the thread that watches

    def _watch(self) -> None:
        first = FIRST * self._limit
        while not self._has_ended:
            due, samples = self._due, self._samples
            left = due + first - monotonic()
            if left == math.inf:
                self._wakeup.wait()
                self._wakeup.clear()
            elif left > 0:
                sleep(left)
            else:
                self._look(due, samples)

    def _look(self, due: float, samples: list[Sample | None]) -> None:
        """Take samples until the loop has ticked."""
        pause = max(LEAST, NEXT * self._limit)
        while self._due == due:
            if len(samples) < MOST:
                samples.append(take(self._thread, self._loop))
            blocked = monotonic() - due
            if blocked >= max(LONG, self._limit) and not self._is_logged and self._due == due:
                found = blocking(samples)
                if found is not None:
                    self._is_logged = True
                    self._log(f"has been blocked for {blocked:.1f} s, and still is,", found)
            sleep(pause)
            if blocked > self._limit:
                pause = min(1.5 * pause, SELDOM)
