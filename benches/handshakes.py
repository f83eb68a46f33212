"""Measure TLS as a worker's server accepts it, beside the loop's own way: ``handshakes.py [ROUNDS]``.

The program prints the CPU time of the server for a handshake, and for a request that it echoes over a kept
connection, in microseconds, with the ratio of the two. A busy machine hardly changes CPU times.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import sys
from functools import partial
from importlib import import_module
from statistics import median
from time import clock_gettime
from typing import Any

import trustme
from sanic.server.protocols.base_protocol import SanicProtocol

from worker._child.handshakes import Handshake, secure

CONNECTIONS, REQUESTS = 200, 2_000
CONTENDERS = ("ours", "stock")


class Echo(SanicProtocol):
    """Send received data back, without an application."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop, app=None)  # type: ignore[arg-type]

    def connection_made(self, transport: Any) -> None:
        """Keep the transport."""
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Do nothing."""

    def data_received(self, data: bytes) -> None:
        """Echo the data."""
        self.transport.write(data)  # type: ignore[union-attr]


async def serve(sockets: dict[str, socket.socket], context: ssl.SSLContext) -> None:
    """Listen on all sockets until the process is killed."""
    loop = asyncio.get_running_loop()
    pending: set[Handshake] = set()
    for contender, sock in sockets.items():
        factory: Any = partial(Echo, loop)
        options: dict[str, Any] = {"ssl": context}
        if contender == "ours":
            factory = secure(loop, factory, options, pending, lambda make: make())
        await loop.create_server(factory, sock=sock, **options)
    await asyncio.Event().wait()


def connect(port: int, context: ssl.SSLContext) -> ssl.SSLSocket:
    """Return a connection whose handshake is complete."""
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return context.wrap_socket(sock, server_hostname="localhost")


def handshakes(port: int, context: ssl.SSLContext) -> int:
    """Make some connections; return their number."""
    for _ in range(CONNECTIONS):
        connect(port, context).close()
    return CONNECTIONS


def requests(port: int, context: ssl.SSLContext) -> int:
    """Send some requests over one connection; return their number."""
    with connect(port, context) as connection:
        for _ in range(REQUESTS):
            connection.sendall(b"x" * 100)
            connection.recv(1000)
    return REQUESTS


def main(rounds: int) -> None:
    """Measure both contenders in turns, on both loops."""
    authority = trustme.CA()
    theirs, mine = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.issue_cert("localhost").configure_cert(theirs)
    authority.configure_trust(mine)
    for loop in ("asyncio", "uvloop"):
        sockets = {name: socket.create_server(("127.0.0.1", 0), backlog=128) for name in CONTENDERS}
        pid = os.fork()
        if not pid:
            import_module(loop).new_event_loop().run_until_complete(serve(sockets, theirs))
        ports = {name: sock.getsockname()[1] for name, sock in sockets.items()}
        # The clock of the CPU time of another process, as clock_getcpuclockid() makes it on Linux.
        clock = ~pid << 3 | 2
        for act in (handshakes, requests):
            found: dict[str, list[float]] = {name: [] for name in CONTENDERS}
            for number in range(rounds):
                for name in CONTENDERS if number % 2 else CONTENDERS[::-1]:
                    began = clock_gettime(clock)
                    amount = act(ports[name], mine)
                    found[name].append((clock_gettime(clock) - began) / amount * 1e6)
            ours, stock = (median(found[name]) for name in CONTENDERS)
            print(f"{loop}, {act.__name__}: ours {ours:.1f} µs, stock {stock:.1f} µs, {ours / stock:.3f}")
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        for sock in sockets.values():
            sock.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 11)
