"""Measure the cost of a server's numbers, beside a trivial handler: ``counting.py [ROUNDS]``.

Pipelined requests go through a connection of Sanic's, over a transport that drops its output. The program
prints the CPU time of a request, in nanoseconds, with the counts of stock (a mapping for each connection) and
with those of this package (one mapping for all, added up by a timer). It also prints the CPU time that the
timer takes in a second of a busy server, with open connections and a full minute of samples, and its share of
each request of a loop that does nothing else. It ends with 1 if that share is above 1 %.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import closing
from statistics import median
from time import process_time_ns
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

from sanic import Sanic, text
from sanic.http.constants import Stage
from sanic.models.server_types import Signal
from sanic.server.protocols.http_protocol import HttpProtocol

from worker._child import heartbeat
from worker._child.heartbeat import Heartbeat
from worker._state.shared import SharedState

REQUESTS, BEATS = 2_000, 10_000
# The open connections of a busy server; one in four has a request.
CONNECTIONS = 100
# The seconds of a busy server: the first minute fills the samples.
FILL, SECONDS = 60, 500
MOST = 0.01
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Transport(asyncio.Transport):
    """Count the bytes written, and tell when all requests are answered."""

    def __init__(self, done: asyncio.Event) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self._done, self._left = done, REQUESTS

    def write(self, data: Any) -> None:
        """Drop an answer."""
        self._left -= 1
        if not self._left:
            self._done.set()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Say that nothing is buffered."""

    def get_write_buffer_size(self) -> int:
        """Say that nothing is buffered."""
        return 0

    def pause_reading(self) -> None:
        """Return at once."""

    def resume_reading(self) -> None:
        """Return at once."""

    def is_closing(self) -> bool:
        """Whether all requests are answered."""
        return self._done.is_set()


async def answer(app: Any, counts: dict[str, Any] | None) -> float:
    """Answer many requests; return the nanoseconds of one."""
    done = asyncio.Event()
    loop = asyncio.get_running_loop()
    protocol: Any = HttpProtocol(loop=loop, app=app, signal=Signal(), connections=set(), state=counts)
    protocol.connection_made(Transport(done))
    protocol.recv_buffer += GET * REQUESTS
    began = process_time_ns()
    await done.wait()
    took = (process_time_ns() - began) / REQUESTS
    if protocol._task is not None:
        protocol._task.cancel()
    return took


class Timers:
    """An event loop that has timers only, and a clock that follows them."""

    def __init__(self) -> None:
        self.now = 0.0

    def call_soon(self, act: Callable[[], None]) -> None:
        """Call at once."""
        act()

    def call_later(self, pause: float, act: Callable[..., None], *args: Any) -> None:
        """Keep the one timer."""
        self._next = self.now + pause, act, args

    def run(self, seconds: float) -> float:
        """Run the timers of this time; return the CPU time of a second, ns."""
        until, began = self.now + seconds, process_time_ns()
        while self.now < until:
            due, act, args = self._next
            self.now = due + 1e-4
            act(*args)
        return (process_time_ns() - began) / seconds


def busy_second() -> float:
    """Return the nanoseconds that the timer of a busy server takes in a second."""
    timers, state = Timers(), SharedState()
    stages = [Stage.HANDLER, Stage.IDLE, Stage.IDLE, Stage.IDLE] * (CONNECTIONS // 4)
    connections = [SimpleNamespace(_http=SimpleNamespace(stage=stage)) for stage in stages]
    with closing(state), patch.object(heartbeat, "monotonic", lambda: timers.now):
        Heartbeat(cast(Any, timers), state, {}, connections)
        timers.run(FILL)
        return timers.run(SECONDS)


async def main(rounds: int) -> bool:
    """Measure the contenders in turns; return whether the cost is allowed."""
    app: Any = Sanic("counting", configure_logging=False)
    app.config.ACCESS_LOG = False
    app.get("/")(lambda request: text("counted"))
    await app._startup()
    state = SharedState()
    beating = Heartbeat(asyncio.get_running_loop(), state, {})
    found: dict[str, list[float]] = {"stock": [], "ours": []}
    for number in range(rounds):
        for name in ("stock", "ours") if number % 2 else ("ours", "stock"):
            found[name].append(await answer(app, beating.counts if name == "ours" else None))
    began = process_time_ns()
    for _ in range(BEATS):
        state.beat(1)
    beat = (process_time_ns() - began) / BEATS
    state.close()
    stock, ours = (median(found[name]) for name in ("stock", "ours"))
    print(f"a request: ours {ours:,.0f} ns, stock {stock:,.0f} ns, {ours / stock:.4f}")
    print(f"a beat: {beat:,.0f} ns")
    second = busy_second()
    share = second / 1e9
    print(f"a second of a busy server, {CONNECTIONS} connections: {second:,.0f} ns")
    print(f"that is {share * ours:.2f} ns a request, {share:.4%}; at most {MOST:.0%} are allowed")
    return share <= MOST


if __name__ == "__main__":
    sys.exit(not asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 41)))
