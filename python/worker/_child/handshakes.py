"""Tracks the TLS handshakes of a server, from the accept until they succeed or fail."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from ssl import SSLContext
from time import monotonic
from typing import Any

from sanic.server.protocols.base_protocol import SanicProtocol

__all__ = ["Handshake", "secure"]

# Arguments of ``create_server`` that belong to TLS, and are ``start_tls``'s too.
TIMEOUTS = ("ssl_handshake_timeout", "ssl_shutdown_timeout")


class Handshake(asyncio.Protocol):
    """One TLS handshake. When it succeeds, the connection gets its own protocol.

    A loop that listens with ``ssl`` reports a connection only after its handshake, and never one that fails.
    With the raw transport, a stop can wait for a handshake, and abort it.

    Args:
        start (Callable): Begins the handshake over a transport, for a protocol.
        factory (Callable): Makes the protocol of the connection.
        pending (set[Handshake]): Holds this handshake until it succeeds or fails.

    Attributes:
        began (float): When the connection was accepted, on the monotonic clock.
    """

    __slots__ = ("_early", "_factory", "_pending", "_raw", "_start", "_steps", "began")

    def __init__(
        self,
        start: Callable[[Any, Handshake], Coroutine[Any, Any, Any]],
        factory: Callable[[], asyncio.Protocol],
        pending: set[Handshake],
    ) -> None:
        self._start = start
        self._factory = factory
        self._pending = pending
        self._early = b""

    def connection_made(self, transport: Any) -> None:
        """Begin the handshake."""
        self._raw = transport
        self.began = monotonic()
        self._pending.add(self)
        self._steps = self._start(transport, self)
        # A task would take its first step in a later turn of the loop. By then uvloop may have read the first
        # flight and passed it to this protocol, which cannot pass it on.
        self._step()

    def data_received(self, data: bytes) -> None:
        """Keep the data that follow the last flight: the connection has no protocol of its own yet."""
        self._early += data

    def abort(self) -> None:
        """End the connection."""
        self._pending.discard(self)
        self._raw.abort()

    def _step(self, _: Any = None) -> None:
        try:
            self._steps.send(None).add_done_callback(self._step)
        except StopIteration as done:
            self._succeed(done.value)
        except (OSError, asyncio.CancelledError):
            self.abort()
        except Exception as error:
            self.abort()
            context = {"message": "TLS handshake failed", "exception": error, "transport": self._raw}
            asyncio.get_running_loop().call_exception_handler(context)

    def _succeed(self, transport: Any) -> None:
        # Where the connection was lost meanwhile, asyncio has no transport, and uvloop a closed one.
        if transport is None or transport.is_closing():
            self.abort()
            return
        try:
            protocol = self._factory()
        except BaseException:
            self.abort()
            raise
        self._pending.discard(self)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if self._early:
            protocol.data_received(self._early)


def secure(
    loop: asyncio.AbstractEventLoop,
    factory: Any,
    options: dict[str, Any],
    pending: set[Handshake],
    make: Callable[[Any], asyncio.Protocol],
) -> Callable[[], asyncio.Protocol]:
    """Let the connections of one of Sanic's TLS servers begin with a :class:`Handshake`.

    Args:
        loop (AbstractEventLoop): The loop that is to listen.
        factory (Callable): Makes the protocol of a connection.
        options (dict[str, Any]): Keyword arguments of ``create_server``; those of TLS are taken out.
        pending (set[Handshake]): Holds the handshakes that have not ended.
        make (Callable): Calls ``factory``, once a handshake has succeeded.

    Returns:
        Callable: Makes the first protocol of a connection. For any other server, it is ``factory`` itself.

    Raises:
        TypeError: The loop does not know one of the options.
    """
    kind = getattr(factory, "func", None)
    is_sanics = isinstance(kind, type) and issubclass(kind, SanicProtocol)
    if not is_sanics or not isinstance(options.get("ssl"), SSLContext):
        return factory  # type: ignore[no-any-return]
    timeouts = {name: options.pop(name) for name in TIMEOUTS if name in options}
    context = options.pop("ssl")

    def start(transport: Any, protocol: Any) -> Coroutine[Any, Any, Any]:
        return loop.start_tls(transport, protocol, context, server_side=True, **timeouts)

    # An unknown option is refused before the first connection comes.
    start(None, None).close()
    return partial(Handshake, start, partial(make, factory), pending)
