"""TLS connections from accept to the first request: a stop loses none, and none delays the stop."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import trustme
from sanic import Request, Sanic, text
from sanic.application.state import ApplicationServerInfo
from sanic.http.constants import HTTP
from sanic.http.tls.context import process_to_context
from sanic.server.protocols.base_protocol import SanicProtocol
from support.running import until, until_in_loop
from support.serving import APP, NAME, Server

from worker._child.handshakes import Handshake, secure

pytestmark = pytest.mark.slow

Start = Callable[..., Server]

with suppress(ImportError):
    # libuv opens a pipe with the first loop of a process, and keeps it.
    import uvloop

    uvloop.new_event_loop().close()

AUTHORITY = trustme.CA()
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


def server_context(name: str = "localhost", *, asks: bool = False) -> ssl.SSLContext:
    """Return the context of a server; with ``asks`` it requires a certificate of the client."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert(name).configure_cert(context)
    if asks:
        context.verify_mode = ssl.CERT_REQUIRED
        AUTHORITY.configure_trust(context)
    return context


def client_context(*, shows: bool = False) -> ssl.SSLContext:
    """Return the context of a client; with ``shows`` it has a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    AUTHORITY.configure_trust(context)
    if shows:
        AUTHORITY.issue_cert("client@localhost").configure_cert(context)
    return context


class Client:
    """A TLS client that sends each flight of the handshake on request."""

    def __init__(self, port: int, context: ssl.SSLContext | None = None, name: str = "localhost") -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), 10)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        wrap = (context or client_context()).wrap_bio
        self.tls = wrap(self._incoming, self._outgoing, server_hostname=name)

    def greets(self) -> None:
        """Send the first flight."""
        with suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
        self._flush()

    def prepares(self) -> None:
        """Read the server's flight, and keep the last one back."""
        while True:
            try:
                return self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self._take()

    def asks(self, request: bytes = REQUEST) -> None:
        """Send the last flight if it was kept back, and a request right behind."""
        self.tls.write(request)
        self._flush()

    def connects(self) -> None:
        self.greets()
        self.prepares()

    def receives(self, until: bytes) -> bytes:
        data = b""
        while not data.endswith(until):
            try:
                data += self.tls.read(65536)
            except ssl.SSLWantReadError:
                self._take()
        return data

    def is_ended(self) -> bool:
        """Whether the server ends the connection, with or without a close notification."""
        try:
            while self.sock.recv(65536):
                pass
        except ConnectionResetError:
            pass
        return True

    def _take(self) -> None:
        data = self.sock.recv(65536)
        assert data, "closed by the server"
        self._incoming.write(data)

    def _flush(self) -> None:
        self.sock.sendall(self._outgoing.read())

    def close(self) -> None:
        self.sock.close()


@pytest.fixture(params=["asyncio", "uvloop"])
def serve(request: pytest.FixtureRequest, start: Start) -> Start:
    """Start a TLS server on one of the loops."""
    if request.param == "uvloop":
        pytest.importorskip("uvloop")

    def serve(build: Callable[[Any], None] = lambda app: None, **options: Any) -> Server:
        def with_loop(app: Any) -> None:
            app.config.USE_UVLOOP = request.param == "uvloop"
            app.config.ACCESS_LOG = False
            app.config.GRACEFUL_SHUTDOWN_TIMEOUT = 30.0
            app.after_server_stop(lambda app: app.ctx.say("stopped"))
            build(app)

        server = start(with_loop, **{"ssl": server_context(), **options})
        until(lambda: server.state[NAME].get("serving"), "it to serve")
        return server

    return serve


def accepted(server: Server, number: int) -> None:
    """Wait until the server has accepted so many connections from the queue of its socket."""

    def is_empty() -> bool:
        rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        own = [(row[3], row[4]) for row in rows if row[1].endswith(f":{server.port:04X}")]
        # The server may have a connection a moment after its client: state 01 in place of 0A.
        is_whole = [state for state, _ in own].count("01") >= number
        return is_whole and {queues for state, queues in own if state == "0A"} == {"00000000:00000000"}

    until(is_empty, "the connections accepted")


def stops(server: Server) -> None:
    server.signal(signal.SIGTERM)
    until(lambda: server.state.numbers(server.process.pid).get("stopping"), "the stop obeyed")


@pytest.mark.native
class TestStop:
    def test_a_late_last_flight_is_answered(self, serve: Start) -> None:
        server = serve(idle_drain_timeout=10)
        with closing(Client(server.port)) as client:
            client.greets()
            client.prepares()
            stops(server)
            client.asks()
            assert b"connection: close" in client.receives(b"hello").lower()
        server.says("stopped")
        assert server.ends() == 0

    def test_a_late_first_flight_is_answered(self, serve: Start) -> None:
        server = serve(idle_drain_timeout=10)
        with closing(Client(server.port)) as client:
            accepted(server, 1)
            stops(server)
            client.connects()
            client.asks()
            assert b"connection: close" in client.receives(b"hello").lower()
        server.says("stopped")
        assert server.ends() == 0

    @pytest.mark.parametrize("half", [False, True], ids=["silent", "half-done"])
    def test_a_silent_client_is_closed_like_an_idle_one(self, serve: Start, half: bool) -> None:
        server = serve(idle_drain_timeout=0.5)
        with ExitStack() as stack:
            clients = [stack.enter_context(closing(Client(server.port))) for _ in range(3)]
            for client in clients:
                if half:
                    client.greets()
                    client.prepares()
            accepted(server, len(clients))
            began = monotonic()
            stops(server)
            assert all(client.is_ended() for client in clients)
            assert monotonic() - began >= 0.5
            server.says("stopped")
            assert server.ends() == 0 and monotonic() - began < 20

    def test_the_deadline_ends_a_handshake(self, serve: Start) -> None:
        def build(app: Any) -> None:
            app.config.GRACEFUL_SHUTDOWN_TIMEOUT = 0.5

        server = serve(build, idle_drain_timeout=30)
        with closing(Client(server.port)) as client:
            client.greets()
            client.prepares()
            began = monotonic()
            stops(server)
            assert client.is_ended()
            server.says("stopped")
            assert server.ends() == 0 and 0.5 <= monotonic() - began < 20


class TestServer:
    def test_requests_have_server_name_and_certificate(self, serve: Start, tmp_path: Path) -> None:
        """The server chooses the certificate by the requested name, and passes both to the application."""
        names = ("one.test", "two.test")
        for name in names:
            certificate = AUTHORITY.issue_cert(name)
            (tmp_path / name).mkdir()
            certificate.private_key_pem.write_to_path(tmp_path / name / "privkey.pem")
            for blob in certificate.cert_chain_pems:
                blob.write_to_path(tmp_path / name / "fullchain.pem", append=True)

        def build(app: Any) -> None:
            @app.get("/who")
            async def who(request: Request) -> Any:
                info = request.conn_info
                peer = request.transport.get_extra_info("peername")
                return text(f"{info.ssl} {info.server_name} {info.cert['names']} {info.peername == peer}")

        context = process_to_context([str(tmp_path / name) for name in names])
        server = serve(build, ssl=context)
        for name in names:
            with closing(Client(server.port, name=name)) as client:
                client.connects()
                client.asks(b"GET /who HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert client.receives(b"True").endswith(f"True {name} ['{name}'] True".encode())
        server.signal(signal.SIGTERM)
        server.says("stopped")
        assert server.ends() == 0

    @pytest.mark.native
    def test_a_secondary_server(self, serve: Start) -> None:
        second = socket.create_server(("127.0.0.1", 0))
        settings = {"version": HTTP.VERSION_1, "sock": second, "loop": None, "host": None, "port": None}

        def build(app: Any) -> None:
            other: Any = Sanic("second", configure_logging=False)
            other.config.ACCESS_LOG = False
            other.get("/")(lambda request: text("second"))

        infos = {
            APP: [ApplicationServerInfo({"version": HTTP.VERSION_1})],
            "second": [ApplicationServerInfo({**settings, "ssl": server_context()})],
        }
        with second:
            server = serve(build, server_info=infos, idle_drain_timeout=10)
            with closing(Client(second.getsockname()[1])) as client:
                client.greets()
                client.prepares()
                stops(server)
                client.asks()
                assert b"connection: close" in client.receives(b"second").lower()
            server.says("stopped")
            assert server.ends() == 0

    def test_an_unknown_ssl_option_is_refused_at_the_start(self, serve: Start, start: Start) -> None:
        server = start(ssl=server_context(), asyncio_server_kwargs={"ssl_something": 1})
        assert server.ends() == 1


class Peer(SanicProtocol):
    """A protocol that sends the details of its transport, and echoes."""

    def __init__(self, made: list[Peer], **options: Any) -> None:
        super().__init__(app=None, **options)  # type: ignore[arg-type]
        self.made = made

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.made.append(self)

    def connection_lost(self, exc: Exception | None) -> None:
        pass

    def data_received(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)

    def knows(self) -> list[Any]:
        assert self.transport is not None
        kind, get = type(self.transport), self.transport.get_extra_info
        alpn = get("ssl_object").selected_alpn_protocol()
        peercert = get("peercert") and get("peercert")["subjectAltName"]
        return [kind, get("sslcontext"), get("cipher"), alpn, peercert, get("sockname"), bool(get("socket"))]


class Listener:
    """Start a server in this process; its unfinished handshakes are in ``pending``."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        self.loop, self.sock = loop, sock
        self.made: list[Peer] = []
        self.pending: set[Handshake] = set()

    async def listens(self, *, stock: bool = False, **options: Any) -> Any:
        factory: Any = partial(Peer, self.made, loop=self.loop)
        if not stock:
            factory = secure(self.loop, factory, options, self.pending, lambda make: make())
            assert "ssl" not in options
        return await self.loop.create_server(factory, sock=self.sock, **options)


@pytest.fixture(params=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> Iterator[asyncio.AbstractEventLoop]:
    loop = pytest.importorskip(request.param).new_event_loop()
    yield loop
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


def run(loop: asyncio.AbstractEventLoop, act: Callable[[], Awaitable[None]]) -> None:
    loop.run_until_complete(asyncio.wait_for(act(), 30))


async def connected(
    listening: socket.socket, ssl: ssl.SSLContext | None = None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a socket of this process; a connect by uvloop itself would start threads that stay."""
    client = socket.socket(listening.family)
    client.connect(listening.getsockname())
    client.setblocking(False)
    return await asyncio.open_connection(sock=client, ssl=ssl, server_hostname=ssl and "localhost")


class TestHandshake:
    @pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
    def test_the_transport_has_all_details_of_a_stock_one(
        self, loop: asyncio.AbstractEventLoop, family: socket.AddressFamily, tmp_path: Path
    ) -> None:
        """The transport has the ALPN, the client's certificate, and all other details that a protocol may ask
        for.
        """
        context, mine = server_context(asks=True), client_context(shows=True)
        context.set_alpn_protocols(["h2", "http/1.1"])
        mine.set_alpn_protocols(["http/1.1"])
        knows = []

        async def act() -> None:
            for stock in (True, False):
                sock = socket.socket(family)
                sock.bind(("127.0.0.1", 0) if family == socket.AF_INET else str(tmp_path / f"{stock}"))
                listener = Listener(loop, sock)
                server = await listener.listens(stock=stock, ssl=context, ssl_handshake_timeout=20)
                reader, writer = await connected(sock, ssl=mine)
                writer.write(b"x" * 1_000_000)
                await reader.readexactly(1_000_000)
                (peer,) = listener.made
                knows.append([*peer.knows()[:5], peer.knows()[5] == sock.getsockname(), peer.knows()[6]])
                writer.close()
                with suppress(ssl.SSLError, ConnectionError):
                    await writer.wait_closed()
                server.close()
                await server.wait_closed()

        run(loop, act)
        assert knows[0] == knows[1]
        assert knows[1][3:] == ["http/1.1", (("email", "client@localhost"),), True, True]

    def test_times_out(self, loop: asyncio.AbstractEventLoop) -> None:
        async def act() -> None:
            listener = Listener(loop, socket.create_server(("127.0.0.1", 0)))
            server = await listener.listens(ssl=server_context(), ssl_handshake_timeout=0.1)
            reader, writer = await connected(listener.sock)
            with suppress(ConnectionResetError):
                assert await reader.read() == b""
            assert not listener.pending
            assert not listener.made
            writer.close()
            server.close()
            await server.wait_closed()

        run(loop, act)

    def test_failures_leave_no_resources(self, loop: asyncio.AbstractEventLoop) -> None:
        fail(loop, 200)

    @pytest.mark.soak
    @pytest.mark.timeout(600)
    def test_many_failures_leave_no_resources(self, loop: asyncio.AbstractEventLoop) -> None:
        fail(loop, 10_000)


def fail(loop: asyncio.AbstractEventLoop, number: int) -> None:
    """Fail in each possible way, this often in all; then succeed."""
    strange = ssl.create_default_context()

    async def closes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async def resets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()

    async def speaks_plainly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(REQUEST)
        await reader.read()

    async def stops_half_way(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        with suppress(ssl.SSLWantReadError):
            strange.wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
        writer.write(outgoing.read())
        assert await reader.read(1)
        writer.close()

    ways = (closes, resets, speaks_plainly, stops_half_way)

    async def act() -> None:
        sock = socket.create_server(("127.0.0.1", 0), backlog=128)
        listener = Listener(loop, sock)
        server = await listener.listens(ssl=server_context())
        descriptors = len(os.listdir("/proc/self/fd"))
        for _ in range(0, number, 2 * len(ways) + 1):
            # A client that does not know the authority.
            with suppress(ssl.SSLCertVerificationError):
                await connected(sock, ssl=strange)
            for way in 2 * ways:
                reader, writer = await connected(sock)
                with suppress(ConnectionError):
                    await way(reader, writer)
                writer.close()
        _, last = await connected(sock, ssl=client_context())
        # Only the two ends of the last connection are left.
        await until_in_loop(lambda: listener.made and len(os.listdir("/proc/self/fd")) <= descriptors + 2)
        assert not listener.pending
        assert len(listener.made) == 1
        last.transport.abort()
        server.close()
        await server.wait_closed()

    loop.run_until_complete(asyncio.wait_for(act(), 30 + number / 20))
