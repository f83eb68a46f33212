"""Measure the cost of counting requests, beside a trivial handler: ``counting.py [ROUNDS]``.

Pipelined requests go through a connection of Sanic's, over a transport that drops its output. The program
prints the CPU time of a request, in nanoseconds, with the counts of stock (a mapping for each connection) and
with those of this package (one mapping for all, added up by a timer). It also prints the CPU time of a beat,
which comes once a second at most.
"""

from __future__ import annotations

import asyncio
import sys
from statistics import median
from time import process_time_ns
from typing import Any

from sanic import Sanic, text
from sanic.models.server_types import Signal
from sanic.server.protocols.http_protocol import HttpProtocol

from worker._child.heartbeat import Heartbeat
from worker._state.shared import SharedState

REQUESTS, BEATS = 2_000, 10_000
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


async def main(rounds: int) -> None:
    """Measure the contenders in turns."""
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


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 41))
