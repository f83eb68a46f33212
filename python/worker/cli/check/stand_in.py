"""Stands in for a socket that listens, and for a server on it: connections are socket pairs."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

__all__ = ["LOOPBACK", "StandInServer", "WithAddress", "is_stand_in", "stand_in"]

LOOPBACK = "127.0.0.1"


def stand_in() -> socket.socket:
    """Return a socket in place of one that listens: without an address, it cannot listen."""
    return socket.socket(socket.AF_UNIX)


def is_stand_in(sock: socket.socket | None) -> bool:
    """Return whether a socket was made by :func:`stand_in`, in this process or another one."""
    return sock is not None and sock.family == socket.AF_UNIX and not sock.getsockname()


class StandInServer(asyncio.AbstractServer):
    """Stands for a server that listens; connections are made by :meth:`connect`."""

    # The drain stops accepting on these.
    sockets = ()

    def __init__(self, loop: asyncio.AbstractEventLoop, factory: Callable[[], Any], settings: Any) -> None:
        self.serves = threading.Event()
        self._loop = loop
        self._factory = factory
        self._ssl = {key: value for key, value in settings.items() if key.startswith("ssl")}
        self._closed = asyncio.Event()

    def connect(self) -> socket.socket:
        """Return a connection to this server, from another thread than that of its loop."""
        ours, theirs = socket.socketpair()
        accepted = self._loop.connect_accepted_socket(self._factory, theirs, **self._ssl)
        future = asyncio.run_coroutine_threadsafe(accepted, self._loop)
        # With TLS, the loop waits for the handshake, which the client begins.

        def finish(done: Any) -> None:
            if done.cancelled() or done.exception():
                with suppress(OSError):
                    ours.shutdown(socket.SHUT_RDWR)

        future.add_done_callback(finish)
        return ours

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop."""
        return self._loop

    def is_serving(self) -> bool:
        """Return whether it is not closed."""
        return not self._closed.is_set()

    def close(self) -> None:
        """End :meth:`serve_forever`."""
        self._closed.set()

    async def start_serving(self) -> None:
        """Do nothing: it serves from the beginning."""

    async def serve_forever(self) -> None:
        """Wait until it is closed."""
        self.serves.set()
        await self._closed.wait()

    async def wait_closed(self) -> None:
        """Do nothing: connections are not its own."""


class WithAddress:
    """A transport of a socket pair that shows addresses, as one that was accepted does."""

    def __init__(self, transport: Any, address: tuple[str, int]) -> None:
        self._transport = transport
        self._addresses = {"sockname": address, "peername": (LOOPBACK, 0)}

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what the transport knows; an address of ours where it has an empty one."""
        found = self._transport.get_extra_info(name, default)
        return self._addresses.get(name, found) if found in ("", b"") else found
