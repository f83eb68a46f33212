"""Notes in the shared state that a server is alive, how many requests have come, and how loaded it is."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection
from contextlib import suppress
from math import ceil
from time import monotonic
from typing import Any

from sanic.http.constants import Stage
from sanic.server.protocols.http_protocol import Http3Protocol

from worker._child.busy import BusyReporter, BusyShare
from worker._state.foreign import ForeignState
from worker._state.shared import SharedState

__all__ = ["IDLE", "Heartbeat", "LoopLag", "longest_pause"]

# The longest time from one beat to the next, seconds: while requests come or are in flight, and otherwise.
BUSY, IDLE = 1.0, 5.0
# A hang is found this share of `hang_timeout` late, at most.
SHARE = 1 / 5
# How often the lag of the loop is measured while the server is busy, seconds. An idle server measures it at
# each beat: it must not wake up more often.
SAMPLE = 0.25
# How early a timer of uvloop may run, seconds. Its clock stands still during a turn of the loop.
EARLY = 0.01
# How long a sample counts, seconds.
WINDOW = 60.0
# Where Sanic's connections count the requests that they have read.
COUNT = "requests_count"


def longest_pause(hang_timeout: float) -> float:
    """Return the longest time from one beat of a server to the next, seconds.

    Args:
        hang_timeout (float): The setting; 0 if it is off.
    """
    return min(IDLE, SHARE * hang_timeout) if hang_timeout else IDLE


class LoopLag:
    """The lag of an event loop over the last :data:`WINDOW`: how late its timers run."""

    def __init__(self) -> None:
        # When each timer was due, and how late it ran.
        self._samples: deque[tuple[float, float]] = deque()

    def add(self, due: float, now: float, pause: float) -> None:
        """Add a timer that ran at ``now``.

        While the loop was blocked, further timers would have become due, one every ``pause`` seconds. They
        are added, too: a single sample of a long block would not count among many of a free loop.
        """
        due = max(due, now - WINDOW)
        self._samples.append((due, max(0.0, now - due)))
        while (due := due + pause) < now:
            self._samples.append((due, now - due))
        while self._samples[0][0] < now - WINDOW:
            self._samples.popleft()

    def percentiles(self) -> tuple[float | None, float | None]:
        """Return the lags, seconds, that 50 % and 99 % of the samples do not exceed; ``None`` without any."""
        lags = sorted(lag for _, lag in self._samples)
        if not lags:
            return None, None
        return lags[ceil(0.5 * len(lags)) - 1], lags[ceil(0.99 * len(lags)) - 1]


class Heartbeat:
    """Notes in the shared state that the event loop of a server runs, and how loaded the server is.

    Each of Sanic's connections has a mapping in which it counts its requests. Here all connections of a
    server share one mapping, so counting costs nothing extra. A timer writes the sum to the state. It also
    counts the open connections and those with a request, and measures its own lateness.

    Args:
        loop (AbstractEventLoop): The loop of the server.
        state (SharedState | ForeignState): The shared state.
        counts (dict[str, Any]): Becomes the ``state`` of each connection.
        connections (Collection[Any] | None): The open connections. Defaults to ``None``: they are not known,
            as with HTTP/3.
        hang_timeout (float): The setting: a short one has the server beat more often. Defaults to 0: it is
            off.
        on_beat (Callable | None): Called after each beat with the number of requests so far. Defaults to
            ``None``.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        state: SharedState | ForeignState,
        counts: dict[str, Any],
        connections: Collection[Any] | None = None,
        hang_timeout: float = 0.0,
        on_beat: Callable[[int], None] | None = None,
    ) -> None:
        self.counts = counts
        self._loop = loop
        self._state = state
        self._connections = connections
        self._on_beat = on_beat
        # Sanic replaces an empty mapping by one for each connection.
        self._noted = counts.setdefault(COUNT, 0)
        self._lag, self._share = LoopLag(), BusyShare()
        self._idle = longest_pause(hang_timeout)
        self._busy = min(BUSY, self._idle)
        self._pause = min(SAMPLE, self._busy / 2)
        self._reporter: BusyReporter | None = None
        loop.call_soon(self._beat)

    def report_busy(self, tell: Callable[[], bool]) -> None:
        """Tell the main process from now on when this server becomes busy.

        Args:
            tell (Callable): Sends the report; returns whether there was room for it.
        """
        self._reporter = BusyReporter(tell)

    def count_http3(self) -> None:
        """Count the requests of HTTP/3, too: its connections do not."""
        counts, kind = self.counts, Http3Protocol.HTTP_CLASS

        class Counting(kind):  # type: ignore[misc, valid-type]
            def get_or_make_receiver(self, event: Any) -> tuple[Any, bool]:
                receiver, is_new = super().get_or_make_receiver(event)
                counts[COUNT] += is_new
                return receiver, is_new

        Http3Protocol.HTTP_CLASS = Counting

    def last_beat(self) -> None:
        """Write the numbers as the server stops: the next beat would not come, and requests not count."""
        self._write()

    def _beat(self) -> None:
        """Write the numbers, and begin the pause to the next beat."""
        is_busy = self._write()
        if self._on_beat is not None:
            self._on_beat(self.counts[COUNT])
        if is_busy:
            self._sample_later(self._pause, beat_at=monotonic() + self._busy - EARLY)
        else:
            self._sample_later(self._idle, beat_at=monotonic())

    def _write(self) -> bool:
        """Write the numbers; return whether the server is busy."""
        new = self.counts[COUNT] - self._noted
        connections = in_flight = None
        if self._connections is not None:
            connections = len(self._connections)
            in_flight = sum(map(_has_request, self._connections))
        p50, p99 = self._lag.percentiles()
        share = self._share.take()
        # A state that is full, closed or damaged must not stop a server.
        with suppress(MemoryError, RuntimeError, ValueError):
            self._state.beat(
                new,
                in_flight=in_flight,
                connections=connections,
                loop_lag_p50=p50,
                loop_lag_p99=p99,
                loop_busy=share,
            )
            self._noted += new
        if self._reporter is not None:
            self._reporter.note(share)
        return bool(new or in_flight)

    def _sample_later(self, pause: float, beat_at: float) -> None:
        self._loop.call_later(pause, self._sample, monotonic() + pause, pause, beat_at)

    def _sample(self, due: float, pause: float, beat_at: float) -> None:
        """Measure how late this timer runs; write the numbers when they are due."""
        now = monotonic()
        self._lag.add(due, now, pause)
        self._share.add(now - due)
        if now >= beat_at:
            self._beat()
        else:
            self._sample_later(pause, beat_at)


def _has_request(connection: Any) -> bool:
    """Return whether a request is being read, handled or answered. A WebSocket has been answered."""
    stage = getattr(getattr(connection, "_http", None), "stage", Stage.IDLE)
    return stage is not Stage.IDLE and getattr(connection, "websocket", None) is None
