"""Bounds the connections, the memory and the time that slow and hostile clients of the inspector take."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from socket import socket
from time import monotonic
from typing import Any

from sanic import Sanic
from sanic.exceptions import ServiceUnavailable
from sanic.http import Stage
from sanic.request import Request
from sanic.server import HttpProtocol

from worker._inspect.health import is_probe

__all__ = ["Connection", "Handshake", "prepare"]

# The largest number of open connections. One more takes the place of the oldest that waits for its client.
MAX_CONNECTIONS = 100
# The largest number of requests that are answered at the same time. The other connections are for probes, and
# for clients that get an error.
MAX_REQUESTS = 80
# The time for a TLS handshake, seconds.
HANDSHAKE_TIMEOUT = 5.0
# The time for a whole request to arrive, seconds, from its first byte on.
RECEIVE_TIMEOUT = 10.0
# The time that a connection may be idle, seconds.
IDLE_TIMEOUT = 30
# An answer that is held, and each pause of a stream, are shorter, seconds.
RESPONSE_TIMEOUT = 90
# The largest body, bytes. The arguments of an action are small.
MAX_BODY = 64 * 1024


def prepare(app: Sanic[Any, Any], stopping: asyncio.Event) -> None:
    """Set the limits of an application, and end connections that would hold its stop.

    Args:
        app (Sanic): The application, to be run with the protocol :class:`Connection` or :class:`Handshake`.
        stopping (asyncio.Event): Set when the application begins to stop.
    """
    app.config.update(
        {
            "KEEP_ALIVE_TIMEOUT": IDLE_TIMEOUT,
            "REQUEST_TIMEOUT": RECEIVE_TIMEOUT,
            "RESPONSE_TIMEOUT": RESPONSE_TIMEOUT,
            "REQUEST_MAX_SIZE": MAX_BODY,
            "REQUEST_BUFFER_SIZE": MAX_BODY,
        }
    )
    app.ctx.connections = {}

    async def stop(app: Sanic[Any, Any]) -> None:
        stopping.set()
        for connection in [*app.ctx.connections]:
            connection.end(app.config.GRACEFUL_SHUTDOWN_TIMEOUT)

    app.before_server_stop(stop)
    app.on_request(_take_turn)


async def _take_turn(request: Request) -> None:
    """Let other connections run first, and refuse a request if too many are held.

    Raises:
        ServiceUnavailable: Too many are; it is not a probe.
    """
    # Sanic answers all buffered requests of a connection in a row.
    await asyncio.sleep(0)
    held = sum(not one.waits for one in request.app.ctx.connections)
    # The request itself is among them.
    if held > MAX_REQUESTS and not is_probe(request):
        raise ServiceUnavailable(
            f"{MAX_REQUESTS} requests are being answered, and no more are allowed; try again later",
            quiet=True,
            headers={"Retry-After": "1"},
        )


class Connection(HttpProtocol):
    """A connection that waits for its client only for a bounded time, and gives way to newer ones."""

    __slots__ = ("_began", "_handshake")

    def __init__(self, *, handshake: Handshake | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self._handshake = handshake

    def connection_made(self, transport: Any) -> None:
        """Open the connection, and close another one if there are too many."""
        super().connection_made(transport)  # type: ignore[no-untyped-call]
        self._began = monotonic()
        opened = self.app.ctx.connections
        opened.pop(self._handshake, None)
        _admit(self, opened)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self.app.ctx.connections.pop(self, None)
        super().connection_lost(exc)  # type: ignore[no-untyped-call]

    def data_received(self, data: bytes) -> None:
        """Take bytes of a request; its time begins with the first ones."""
        if self._stage is Stage.IDLE:
            self._began = monotonic()
        super().data_received(data)

    def check_timeouts(self) -> None:
        """Drop a request that takes too long to arrive. Sanic's own limit is the time without any byte."""
        is_late = monotonic() - self._began > RECEIVE_TIMEOUT
        if is_late and self.waits and self._stage is not Stage.IDLE:
            self.drop()
        else:
            super().check_timeouts()  # type: ignore[no-untyped-call]

    @property
    def waits(self) -> bool:
        """Whether the client has something to send: a request, or the rest of one."""
        return self._stage in (Stage.IDLE, Stage.REQUEST) or bool(
            self._stage is Stage.HANDLER and self.http.request_body
        )

    def drop(self) -> None:
        """Close the connection at once."""
        if self.transport is not None:
            self.transport.abort()

    def end(self, grace: float) -> None:
        """Close the connection because the inspector stops, after its answer or ``grace`` seconds."""
        if self.waits:
            self.drop()
        else:
            # A client may come back over an open connection as soon as it has its answer.
            self.http.keep_alive = False
            self.loop.call_later(grace, self.drop)

    @property
    def _stage(self) -> Stage:
        return self.http.stage if self.http is not None else Stage.IDLE


class Handshake(asyncio.Protocol):
    """A connection of TLS until its handshake is done: then a :class:`Connection` takes its place.

    It is counted from its begin on, and gives way to newer ones. A server that is given the TLS context hides
    it until the end of the handshake.

    Args:
        **settings (Any): The arguments of :class:`Connection`. The context is ``app.ctx.tls``.
    """

    waits = True

    def __init__(self, **settings: Any) -> None:
        self._settings = settings
        self._app: Sanic[Any, Any] = settings["app"]
        self._loop: asyncio.AbstractEventLoop = settings["loop"]
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin the handshake, and close another connection if there are too many."""
        # A transport may read before it can be upgraded (uvloop). A new one for the same socket does not.
        sock = socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
        sock.setblocking(False)
        transport.abort()
        opened = self._app.ctx.connections
        self._task = self._loop.create_task(self._run(sock))
        self._task.add_done_callback(lambda _: opened.pop(self, None))
        _admit(self, opened)

    async def _run(self, sock: socket) -> None:
        # The client has left, does not speak TLS, or takes too long.
        with suppress(OSError):
            await self._loop.connect_accepted_socket(
                lambda: Connection(handshake=self, **self._settings),
                sock,
                ssl=self._app.ctx.tls,
                ssl_handshake_timeout=HANDSHAKE_TIMEOUT,
            )

    def drop(self) -> None:
        """Close the connection at once."""
        if self._task is not None:
            self._task.cancel()

    def end(self, _: float) -> None:
        """Close the connection because the inspector stops."""
        self.drop()


def _admit(newest: Connection | Handshake, opened: dict[Connection | Handshake, None]) -> None:
    """Count a connection, and close the oldest one that waits for its client if there are too many."""
    opened[newest] = None
    if len(opened) > MAX_CONNECTIONS:
        # The newest one has to go if all others are being answered.
        oldest = next(one for one in opened if one.waits)
        # It is lost only in the next turn of the loop. More may be opened in this one.
        del opened[oldest]
        oldest.drop()
