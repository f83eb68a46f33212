"""A stopping server closes its listening sockets at once, and loses no request."""

from __future__ import annotations

import asyncio
import base64
import os
import select
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from sanic import Request, Websocket, text
from sanic.application.state import ApplicationServerInfo
from sanic.http.constants import HTTP
from sanic.server.protocols.websocket_protocol import WebSocketProtocol
from support.running import until
from support.serving import APP, NAME, Server

from worker._child.drain import LAST

pytestmark = pytest.mark.slow

Start = Callable[..., Server]
LOOPS = ("asyncio", "uvloop")


@pytest.fixture(params=LOOPS)
def serve(
    request: pytest.FixtureRequest,
    start: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Start]:
    """Start a server on one of the loops; a write to its ``gate`` opens the gate."""
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    ends: list[int] = []

    def serve(build: Callable[[Any], None] = lambda app: None, **options: Any) -> Server:
        gate, key = os.pipe()
        ends.extend((gate, key))

        def with_gate(app: Any) -> None:
            app.config.USE_UVLOOP = request.param == "uvloop"
            app.config.ACCESS_LOG = False
            app.config.GRACEFUL_SHUTDOWN_TIMEOUT = 30.0
            app.ctx.gate = gate
            waits(app)
            build(app)

        server = start(with_gate, **options)
        server.gate = key  # type: ignore[attr-defined]
        until(lambda: server.state[NAME].get("serving"), "it to serve")
        return server

    yield serve
    for end in ends:
        os.close(end)


def waits(app: Any) -> None:
    """Add routes that answer when the gate is opened."""

    async def gate() -> None:
        app.ctx.say("in flight")
        opened = asyncio.Event()
        asyncio.get_running_loop().add_reader(app.ctx.gate, opened.set)
        await opened.wait()
        asyncio.get_running_loop().remove_reader(app.ctx.gate)

    @app.get("/slow")
    async def slow(request: Request) -> Any:
        await gate()
        return text("slow")

    @app.post("/upload")
    async def upload(request: Request) -> Any:
        return text(str(len(request.body)))

    @app.get("/stream")
    async def stream(request: Request) -> None:
        response = await request.respond()
        await response.send("first,")
        await gate()
        await response.send("last")
        await response.eof()


class Client:
    """Open a connection that is kept as long as the server keeps it."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), 10)

    def send(self, data: str) -> None:
        self.sock.sendall(data.encode())

    def get(self, path: str = "/") -> None:
        self.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")

    def receive(self, until: bytes) -> bytes:
        data = b""
        while not data.endswith(until):
            chunk = self.sock.recv(65536)
            assert chunk, data
            data += chunk
        return data

    def is_closed_by_server(self) -> bool:
        return self.sock.recv(1) == b""

    def close(self) -> None:
        self.sock.close()


def connect(server: Server) -> Any:
    return closing(Client(server.port))


def leaves(server: Server) -> None:
    """Stop the server, and wait until it has closed its listening socket."""
    server.signal(signal.SIGTERM)
    until(lambda: not listens(server), "the listening socket left")


def listens(server: Server) -> bool:
    """Whether the process has a descriptor of the listening socket."""
    mine = os.readlink(f"/proc/self/fd/{server.sock.fileno()}")
    folder = Path(f"/proc/{server.process.pid}/fd")
    try:
        return any(os.readlink(one) == mine for one in folder.iterdir())
    except OSError:
        return False


def opens(server: Server) -> None:
    os.write(server.gate, b"x")  # type: ignore[attr-defined]


def test_a_request_in_flight_is_answered(serve: Start) -> None:
    server = serve()
    with connect(server) as client:
        client.get("/slow")
        server.says("in flight")
        leaves(server)
        assert server.process.exitcode is None
        opens(server)
        answer = client.receive(b"slow")
        assert b"connection: close" in answer.lower()
        assert client.is_closed_by_server()
    assert server.ends() == 0


def test_a_new_connection_waits_for_another_server(serve: Start) -> None:
    server = serve()
    with connect(server) as client:
        client.get("/slow")
        server.says("in flight")
        leaves(server)
        with connect(server) as late:
            late.get()
            # The main process has the socket open, so the connection waits in its queue.
            server.sock.settimeout(10)
            taken, _ = server.sock.accept()
            with taken:
                assert taken.recv(3) == b"GET"
        opens(server)
        client.receive(b"slow")
    assert server.ends() == 0


def test_the_next_response_on_a_kept_connection_closes_it(serve: Start) -> None:
    server = serve(idle_drain_timeout=30)
    with connect(server) as client, connect(server) as busy:
        client.get()
        assert b"connection: keep-alive" in client.receive(b"hello").lower()
        busy.get("/slow")
        server.says("in flight")
        leaves(server)
        # After the drain's first check of the connections.
        client.get()
        assert b"connection: close" in client.receive(b"hello").lower()
        assert client.is_closed_by_server()
        opens(server)
        busy.receive(b"slow")
    assert server.ends() == 0


def test_an_idle_connection_is_closed(serve: Start) -> None:
    server = serve()
    with connect(server) as used, connect(server) as fresh:
        used.get()
        used.receive(b"hello")
        began = monotonic()
        leaves(server)
        for client in (used, fresh):
            assert client.is_closed_by_server()
        assert monotonic() - began >= 0.3
    assert server.ends() == 0


def test_an_upload_is_completed(serve: Start) -> None:
    server = serve()
    with connect(server) as client:
        client.send("POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345")
        until(lambda: is_read(client), "the first half read")
        leaves(server)
        client.send("67890")
        answer = client.receive(b"10")
        assert b"connection: close" in answer.lower()
    assert server.ends() == 0


def is_read(client: Client) -> bool:
    """Whether the server has read all requests: nothing is left in either queue of the kernel."""
    port = client.sock.getsockname()[1]
    rows = Path("/proc/net/tcp").read_text().splitlines()[1:]
    queues = [row.split()[4] for row in rows if f":{port:04X}" in " ".join(row.split()[1:3])]
    return all(queue == "00000000:00000000" for queue in queues)


def test_a_streamed_response_is_completed(serve: Start) -> None:
    server = serve()
    with connect(server) as client:
        client.get("/stream")
        client.receive(b"first,\r\n")
        server.says("in flight")
        leaves(server)
        opens(server)
        client.receive(b"last\r\n0\r\n\r\n")
        assert client.is_closed_by_server()
    assert server.ends() == 0


def test_a_slow_request_is_aborted_after_one_timeout(serve: Start) -> None:
    def build(app: Any) -> None:
        app.config.GRACEFUL_SHUTDOWN_TIMEOUT = 1.0

        @app.on_request
        async def keep(request: Request) -> None:
            assert request.transport is not None
            app.ctx.protocol = request.transport.get_protocol()

        async def drained(app: Any) -> None:
            app.ctx.say(len(app.ctx.protocol.connections))

        app.register_listener(drained, "before_server_stop", priority=LAST + 1)

    server = serve(build)
    with connect(server) as client:
        client.get("/slow")
        server.says("in flight")
        began = monotonic()
        leaves(server)
        # Sanic alone would wait for it twice: after the drain, it finds no connection to wait for.
        server.says(0)
        assert monotonic() - began >= 1
        assert client.is_closed_by_server()
    assert server.ends() == 0


def test_stop_listeners_run_before_and_after_the_drain(serve: Start) -> None:
    def build(app: Any) -> None:
        @app.before_server_stop
        async def before(app: Any) -> None:
            app.ctx.say("before")

        @app.after_server_stop
        async def after(app: Any) -> None:
            app.ctx.say("after")

    server = serve(build)
    with connect(server) as client:
        client.get("/slow")
        server.says("in flight")
        leaves(server)
        server.says("before")
        assert not server.journal.poll(0)
        opens(server)
        client.receive(b"slow")
        server.says("after")
    assert server.ends() == 0


def test_a_websocket_is_closed_at_once(serve: Start) -> None:
    def build(app: Any) -> None:
        @app.websocket("/feed")
        async def feed(request: Request, ws: Websocket) -> None:
            app.ctx.say("open")
            try:
                await ws.recv()
            finally:
                app.ctx.say("closed")

    server = serve(build, protocol=WebSocketProtocol)
    with connect(server) as client:
        key = base64.b64encode(b"0123456789abcdef").decode()
        client.send(
            "GET /feed HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
        )
        client.receive(b"\r\n\r\n")
        server.says("open")
        began = monotonic()
        leaves(server)
        # A close frame: 1001, going away.
        assert client.receive(b"\x03\xe9") == b"\x88\x02\x03\xe9"
        # Long before its time is up.
        assert monotonic() - began < 10
        server.says("closed")
    assert server.ends() == 0


def test_a_secondary_application_drains_too(serve: Start) -> None:
    second = socket.create_server(("127.0.0.1", 0))
    settings = {"version": HTTP.VERSION_1, "sock": second, "loop": None, "host": None, "port": None}

    def build(app: Any) -> None:
        from sanic import Sanic

        other = Sanic("second", configure_logging=False)
        other.config.ACCESS_LOG = False
        other.ctx = app.ctx
        waits(other)

    infos = {
        APP: [ApplicationServerInfo({"version": HTTP.VERSION_1})],
        "second": [ApplicationServerInfo(settings)],
    }
    with second:
        server = serve(build, server_info=infos)
        with closing(Client(second.getsockname()[1])) as client:
            client.get("/slow")
            server.says("in flight")
            leaves(server)
            opens(server)
            assert b"connection: close" in client.receive(b"slow").lower()
        assert server.ends() == 0


def test_every_accepted_connection_is_answered(serve: Start) -> None:
    """One turn of the loop finds the stop and the connections, the stop first."""

    def build(app: Any) -> None:
        @app.get("/block")
        async def block(request: Request) -> Any:
            app.ctx.say("blocked")
            os.read(app.ctx.gate, 1)
            return text("block")

    # None of them may count as idle, however long their requests take to be read.
    server = serve(build, idle_drain_timeout=30)
    with connect(server) as blocking:
        blocking.get("/block")
        server.says("blocked")
        server.signal(signal.SIGTERM)
        until(lambda: is_delivered(server.process.pid, signal.SIGTERM), "the signal taken")
        clients = [Client(server.port) for _ in range(20)]
        for client in clients:
            client.send("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        opens(server)
        blocking.receive(b"block")
    assert server.ends() == 0
    server.sock.setblocking(False)
    left = 0
    while select.select([server.sock], [], [], 0)[0]:
        server.sock.accept()[0].close()
        left += 1
    answered = sum(b"hello" in client.sock.recv(65536) for client in clients[: len(clients) - left])
    assert answered + left == len(clients)
    for client in clients:
        client.close()


def is_delivered(pid: int, signum: int) -> bool:
    """Whether a signal is no longer pending."""
    status = Path(f"/proc/{pid}/status").read_text()
    pending = [
        int(line.split()[1], 16) for line in status.splitlines() if line.startswith(("SigPnd", "ShdPnd"))
    ]
    return not any(mask >> (signum - 1) & 1 for mask in pending)
