"""What a server notes of itself while it runs: that it is alive, and how many requests it has received."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from sanic.server.protocols.http_protocol import Http3Protocol

from worker._state.shared import SharedState

__all__ = ["Heartbeat"]

# How long after a beat the next one comes, seconds: while requests come, and while none does.
BUSY, IDLE = 1.0, 5.0
# Where Sanic's connections count the requests that they have read.
COUNT = "requests_count"


class Heartbeat:
    """Notes in the shared state that the event loop of a server runs, and how many requests have come.

    Each connection of Sanic's has a mapping in which it counts its requests. Here all connections of a server
    have the same one, so to count costs nothing more; a timer adds up.

    Args:
        loop (AbstractEventLoop): The loop of the server.
        state (SharedState): Where it is noted.
        counts (dict[str, Any]): Becomes the ``state`` of each connection.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, state: SharedState, counts: dict[str, Any]) -> None:
        self.counts = counts
        self._loop = loop
        self._state = state
        # In place of an empty mapping Sanic would make one for each connection.
        self._noted = counts.setdefault(COUNT, 0)
        loop.call_soon(self._beat)

    def count_http3(self) -> None:
        """Count the requests of HTTP/3 as well, whose connections do not."""
        counts, kind = self.counts, Http3Protocol.HTTP_CLASS

        class Counting(kind):  # type: ignore[misc, valid-type]
            def get_or_make_receiver(self, event: Any) -> tuple[Any, bool]:
                receiver, is_new = super().get_or_make_receiver(event)
                counts[COUNT] += is_new
                return receiver, is_new

        Http3Protocol.HTTP_CLASS = Counting

    def _beat(self) -> None:
        new = self.counts[COUNT] - self._noted
        # A server goes on without a state that is full, closed or broken.
        with suppress(MemoryError, RuntimeError, ValueError):
            self._state.beat(new)
            self._noted += new
        self._loop.call_later(BUSY if new else IDLE, self._beat)
