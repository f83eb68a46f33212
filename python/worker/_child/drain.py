"""How the connections of a server end when it stops: requests are answered, idle connections closed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Any

from sanic.http.constants import Stage

from worker._child import parent_watch
from worker._child.handshakes import Handshake

__all__ = ["Drain"]

# How often connections are looked at while they drain, seconds.
STEP = 0.02
# Within so many turns of the loop a connection that was accepted has its protocol.
TURNS = 3
# How long a connection may stay idle once main is gone, seconds: then this process is to be gone soon.
ORPHAN_IDLE = 0.3
# A listener of this priority is the last one of those that run before a stop: they run in reverse.
LAST = 1 << 20
# In these stages the header of the response has not been sent.
UNANSWERED = (Stage.IDLE, Stage.REQUEST, Stage.HANDLER)

# The classes of HTTP streams that end with their response, and of connections with such a stream, by the
# class of those that may be kept.
_closing: dict[type, type] = {}


class Drain:
    """Lets a server leave without losing a request.

    At first it leaves the listening sockets, so that whoever connects gets another worker, or waits for the
    next one. Then each kept connection has its next response say ``Connection: close``, and one that stays
    idle is closed; what is in flight may take as long as the application's ``GRACEFUL_SHUTDOWN_TIMEOUT``,
    counted from the begin. Nothing of it costs anything before the stop.

    Args:
        loop (AbstractEventLoop): The loop of the server.
        connections (set): The open connections; Sanic keeps it.
        idle (float): How long a connection may stay idle, seconds.

    Attributes:
        connections: Those that may send requests.
        handshakes: Those that have not completed their TLS handshake. Each may still come to a request.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, connections: set[Any], idle: float) -> None:
        self.connections = connections
        self.handshakes: set[Handshake] = set()
        self._loop = loop
        self._idle = idle
        self._servers: list[Any] = []
        # On the monotonic clock, which Sanic's connections go by too.
        self._began: float | None = None

    def register(self, app: Any) -> None:
        """Drain when the application stops, after its own ``before_server_stop`` listeners."""
        app.register_listener(self._drain, "before_server_stop", priority=LAST)

    def take(self, server: Any) -> None:
        """Leave the sockets of this server too when the time comes."""
        self._servers.append(server)
        if self._began is not None:
            self._leave(server)

    def make(self, factory: Callable[[], Any]) -> Any:
        """Make the protocol of a connection whose handshake is complete: after the begin, for one request."""
        protocol = factory()
        if self._began is not None and hasattr(protocol, "HTTP_CLASS"):
            protocol.__class__ = _with_stream_that_closes(type(protocol))
        return protocol

    def begin(self) -> None:
        """Leave the listening sockets; again: nothing."""
        if self._began is None:
            self._began = monotonic()
            if parent_watch.main_is_gone():
                self._idle = min(self._idle, ORPHAN_IDLE)
            for server in self._servers:
                self._leave(server)
            # The listeners of a stop may take their time: what is answered meanwhile is the last answer too.
            for connection in [*self.connections]:
                self._usher(connection, self._began)

    def _leave(self, server: Any) -> None:
        # A connection that asyncio has accepted has a task to give it a transport, for which the server has
        # to be open: nothing more is accepted, and the server is closed when those tasks have run.
        for sock in server.sockets:
            self._loop.remove_reader(sock.fileno())
        self._loop.call_soon(self._loop.call_soon, server.close)

    async def _drain(self, app: Any, *_: Any) -> None:
        self.begin()
        assert self._began is not None
        deadline = self._began + app.config.GRACEFUL_SHUTDOWN_TIMEOUT
        for connection in [*self.connections]:
            if _websocket(connection) is not None:
                # It is told that the server goes away, and may take its time to answer.
                connection.close_if_idle()
        turns = TURNS
        while (self.connections or self.handshakes or turns) and monotonic() < deadline:
            for connection in [*self.connections]:
                self._usher(connection, self._began)
            for handshake in [*self.handshakes]:
                if monotonic() - max(handshake.began, self._began) > self._idle:
                    handshake.abort()
            await asyncio.sleep(0 if turns else STEP)
            turns = max(0, turns - 1)
        await self._end_all()

    def _usher(self, connection: Any, began: float) -> None:
        http = getattr(connection, "_http", None)
        if http is None or _websocket(connection) is not None:
            return
        if http.stage in UNANSWERED and type(http) not in _closing.values():
            http.__class__ = _that_closes(type(http))
        idle_since = max(connection._time, began)
        if http.stage is Stage.IDLE and not connection.recv_buffer and monotonic() - idle_since > self._idle:
            connection.close()

    async def _end_all(self) -> None:
        """End what is left, so that nobody waits for it again."""
        for handshake in [*self.handshakes]:
            handshake.abort()
        for connection in [*self.connections]:
            websocket = _websocket(connection)
            if websocket is not None:
                websocket.fail_connection(code=1001)
        for _ in range(3):
            # Once for the last frame to be sent, then for the end of the connections to be noticed.
            await asyncio.sleep(0)
            for connection in [*self.connections]:
                connection.abort()


def _websocket(connection: Any) -> Any:
    """What a connection has become, if it was upgraded."""
    return getattr(connection, "websocket", None)


def _that_closes(kind: type) -> type:
    """The same class of HTTP stream, but that its connection is not kept after the response."""
    if kind not in _closing:
        # A stream that has not begun to wait for its first request has no request yet, and is to be answered.
        keep_alive = property(lambda http: not hasattr(http, "request"), lambda http, value: None)
        _closing[kind] = _with(kind, keep_alive=keep_alive)
    return _closing[kind]


def _with_stream_that_closes(kind: Any) -> type:
    """The same class of connection, but that its HTTP stream ends with the first response."""
    if kind not in _closing:
        _closing[kind] = _with(kind, HTTP_CLASS=_that_closes(kind.HTTP_CLASS))
    return _closing[kind]


def _with(kind: type, **attributes: Any) -> Any:
    return type(kind)(kind.__name__, (kind,), {"__slots__": (), **attributes})
