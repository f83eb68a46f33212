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

# How often connections are checked while they drain, seconds.
STEP = 0.02
# An accepted connection has its protocol within this number of turns of the loop.
TURNS = 3
# How long a connection may stay idle once the main process is gone, seconds. An orphan has to exit soon.
ORPHAN_IDLE = 0.3
# Listeners that run before a stop run in reverse: the one with this priority is the last.
LAST = 1 << 20
# In these stages the header of the response has not been sent.
UNANSWERED = (Stage.IDLE, Stage.REQUEST, Stage.HANDLER)

# The classes of HTTP streams that end with their response, and of connections with such a stream, by the
# class of those that may be kept.
_closing: dict[type, type] = {}


class Drain:
    """Stops a server without losing a request.

    It first stops accepting, so that new connections go to another worker or wait for the next one. Then it
    sends ``Connection: close`` with the next response of each kept connection, and closes idle connections.
    Requests in flight may take as long as the application's ``GRACEFUL_SHUTDOWN_TIMEOUT``, counted from the
    stop. Before the stop, the drain costs nothing.

    Args:
        loop (AbstractEventLoop): The loop of the server.
        connections (set): The open connections; Sanic keeps it.
        idle (float): How long a connection may stay idle, seconds.

    Attributes:
        connections: The connections that may send requests.
        handshakes: The unfinished TLS handshakes. Each may still lead to a request.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, connections: set[Any], idle: float) -> None:
        self.connections = connections
        self.handshakes: set[Handshake] = set()
        self._loop = loop
        self._idle = idle
        self._servers: list[Any] = []
        # On the monotonic clock, which Sanic's connections use, too.
        self._began: float | None = None

    def register(self, app: Any) -> None:
        """Drain when the application stops, after its own ``before_server_stop`` listeners."""
        app.register_listener(self._drain, "before_server_stop", priority=LAST)

    def add_server(self, server: Any) -> None:
        """Stop accepting on this asyncio server, too, when the drain begins."""
        self._servers.append(server)
        if self._began is not None:
            self._close_listeners(server)

    def make(self, factory: Callable[[], Any]) -> Any:
        """Make the protocol of a connection after its handshake; while draining, for one request only."""
        protocol = factory()
        if self._began is not None and hasattr(protocol, "HTTP_CLASS"):
            protocol.__class__ = _with_stream_that_closes(type(protocol))
        return protocol

    def stop_accepting(self) -> None:
        """Stop accepting connections. Another call does nothing."""
        if self._began is None:
            self._began = monotonic()
            if parent_watch.main_is_gone():
                self._idle = min(self._idle, ORPHAN_IDLE)
            for server in self._servers:
                self._close_listeners(server)
            # The stop listeners may take long: a response that is sent meanwhile has to be the last one, too.
            for connection in [*self.connections]:
                self._close_when_idle(connection, self._began)

    def _close_listeners(self, server: Any) -> None:
        # asyncio makes the transport of an accepted connection in a task, for which the server must be open.
        # So accepting ends at once, and the server is closed when these tasks have run.
        for sock in server.sockets:
            self._loop.remove_reader(sock.fileno())
        self._loop.call_soon(self._loop.call_soon, server.close)

    async def _drain(self, app: Any, *_: Any) -> None:
        self.stop_accepting()
        assert self._began is not None
        deadline = self._began + app.config.GRACEFUL_SHUTDOWN_TIMEOUT
        for connection in [*self.connections]:
            if _websocket(connection) is not None:
                # This sends a close frame. The client may take its time to answer.
                connection.close_if_idle()
        turns = TURNS
        while (self.connections or self.handshakes or turns) and monotonic() < deadline:
            for connection in [*self.connections]:
                self._close_when_idle(connection, self._began)
            for handshake in [*self.handshakes]:
                if monotonic() - max(handshake.began, self._began) > self._idle:
                    handshake.abort()
            await asyncio.sleep(0 if turns else STEP)
            turns = max(0, turns - 1)
        await self._end_all()

    def _close_when_idle(self, connection: Any, began: float) -> None:
        http = getattr(connection, "_http", None)
        if http is None or _websocket(connection) is not None:
            return
        if http.stage in UNANSWERED and type(http) not in _closing.values():
            http.__class__ = _that_closes(type(http))
        idle_since = max(connection._time, began)
        if http.stage is Stage.IDLE and not connection.recv_buffer and monotonic() - idle_since > self._idle:
            connection.close()

    async def _end_all(self) -> None:
        """Abort the remaining handshakes and connections, so that Sanic does not wait for them again."""
        for handshake in [*self.handshakes]:
            handshake.abort()
        for connection in [*self.connections]:
            websocket = _websocket(connection)
            if websocket is not None:
                websocket.fail_connection(code=1001)
        for _ in range(3):
            # The first turn sends the last frames, the others let the connections notice their end.
            await asyncio.sleep(0)
            for connection in [*self.connections]:
                connection.abort()


def _websocket(connection: Any) -> Any:
    """Return the WebSocket of a connection, if it was upgraded."""
    return getattr(connection, "websocket", None)


def _that_closes(kind: type) -> type:
    """Return a class of HTTP stream that does not keep its connection after the response."""
    if kind not in _closing:
        # A stream without a request has not begun to wait for its first one, which has to be answered.
        keep_alive = property(lambda http: not hasattr(http, "request"), lambda http, value: None)
        _closing[kind] = _with(kind, keep_alive=keep_alive)
    return _closing[kind]


def _with_stream_that_closes(kind: Any) -> type:
    """Return a class of connection that ends with its first response."""
    if kind not in _closing:
        _closing[kind] = _with(kind, HTTP_CLASS=_that_closes(kind.HTTP_CLASS))
    return _closing[kind]


def _with(kind: type, **attributes: Any) -> Any:
    return type(kind)(kind.__name__, (kind,), {"__slots__": (), **attributes})
