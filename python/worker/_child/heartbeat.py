"""Notes in the shared state that a server is alive, and how many requests it has received."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from sanic.server.protocols.http_protocol import Http3Protocol

from worker._state.shared import SharedState

__all__ = ["Heartbeat"]

# The time from one beat to the next, seconds: while requests come, and while none comes.
BUSY, IDLE = 1.0, 5.0
# Where Sanic's connections count the requests that they have read.
COUNT = "requests_count"


class Heartbeat:
    """Notes in the shared state that the event loop of a server runs, and how many requests have come.

    Each of Sanic's connections has a mapping in which it counts its requests. Here all connections of a
    server share one mapping, so counting costs nothing extra. A timer writes the sum to the state.

    Args:
        loop (AbstractEventLoop): The loop of the server.
        state (SharedState): The shared state.
        counts (dict[str, Any]): Becomes the ``state`` of each connection.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, state: SharedState, counts: dict[str, Any]) -> None:
        self.counts = counts
        self._loop = loop
        self._state = state
        # Sanic replaces an empty mapping by one for each connection.
        self._noted = counts.setdefault(COUNT, 0)
        loop.call_soon(self._beat)

    def count_http3(self) -> None:
        """Count the requests of HTTP/3, too: its connections do not."""
        counts, kind = self.counts, Http3Protocol.HTTP_CLASS

        class Counting(kind):  # type: ignore[misc, valid-type]
            def get_or_make_receiver(self, event: Any) -> tuple[Any, bool]:
                receiver, is_new = super().get_or_make_receiver(event)
                counts[COUNT] += is_new
                return receiver, is_new

        Http3Protocol.HTTP_CLASS = Counting

    def _beat(self) -> None:
        new = self.counts[COUNT] - self._noted
        # A state that is full, closed or damaged must not stop a server.
        with suppress(MemoryError, RuntimeError, ValueError):
            self._state.beat(new)
            self._noted += new
        self._loop.call_later(BUSY if new else IDLE, self._beat)
