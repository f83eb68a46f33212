"""A server counts its requests and connections, measures its event loop, and reports its liveness."""

from __future__ import annotations

import asyncio
import base64
import os
import select
import signal
import socket
from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from time import monotonic
from types import SimpleNamespace
from typing import Any, cast

import pytest
from sanic import Request, Sanic, Websocket, text
from sanic.application.state import ApplicationServerInfo
from sanic.http.constants import HTTP
from sanic.server.protocols.websocket_protocol import WebSocketProtocol
from support.running import until, until_in_loop
from support.serving import APP, NAME, Server

from worker._child import heartbeat
from worker._state.shared import SharedState

pytestmark = pytest.mark.native

Start = Callable[..., Server]
PAUSES = {name: getattr(heartbeat, name) for name in ("BUSY", "IDLE", "SAMPLE", "EARLY")}
GET = b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The servers are forked from this process."""
    for pause, seconds in (("BUSY", 0.02), ("IDLE", 0.05), ("SAMPLE", 0.01), ("EARLY", 0.0)):
        monkeypatch.setattr(heartbeat, pause, seconds)


def counts(server: Server, number: int) -> None:
    """Wait until the server has counted this many requests."""
    look = server.state.numbers
    until(lambda: look(server.process.pid).get("requests") == number, f"{number} requests counted")


def ask(port: int, data: bytes, last: bytes) -> None:
    """Send data over one connection, and read up to the end of the last answer."""
    with closing(socket.create_connection(("127.0.0.1", port), 10)) as sock:
        sock.sendall(data)
        answer = b""
        while not answer.endswith(last):
            chunk = sock.recv(65536)
            assert chunk, answer
            answer += chunk


def build(app: Any) -> None:
    app.config.ACCESS_LOG = False
    app.get("/last")(lambda request: text("last"))

    @app.get("/fails")
    async def fails(request: Request) -> None:
        raise RuntimeError("broken on purpose")

    @app.websocket("/feed")
    async def feed(request: Request, ws: Websocket) -> None:
        await ws.send("one")
        await ws.send("two")


def blocking_until(gate: int) -> Callable[[Any], None]:
    """Return a function that adds a handler which blocks the loop until the gate is opened."""

    def with_block(app: Any) -> None:
        @app.get("/block")
        async def block(request: Request) -> Any:
            app.ctx.say("blocked")
            os.read(gate, 1)
            return text("last")

    return with_block


class TestRequests:
    def test_each_request_counts_once(self, start: Start) -> None:
        server = start(build, protocol=WebSocketProtocol)
        until(lambda: server.state[NAME].get("serving"), "it to serve")
        counts(server, 0)
        # Kept and pipelined requests on two connections; an error of the client's, and one of the
        # application's.
        for _ in range(2):
            ask(server.port, GET % b"/" * 9 + GET % b"/last", b"last")
        counts(server, 20)
        ask(server.port, GET % b"/nothing" + GET % b"/fails" + GET % b"/last", b"last")
        counts(server, 23)
        key = base64.b64encode(b"0123456789abcdef")
        upgrade = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        upgrade += b"Sec-WebSocket-Key: " + key
        ask(server.port, b"GET /feed HTTP/1.1\r\nHost: x\r\n" + upgrade + b"\r\n\r\n", b"\x88\x02\x03\xe8")
        counts(server, 24)

    def test_requests_after_the_last_beat_count_when_the_server_stops(
        self, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for pause in ("BUSY", "IDLE"):
            monkeypatch.setattr(heartbeat, pause, 3600.0)
        server = start(build)
        until(lambda: server.state[NAME].get("serving"), "it to serve")
        counts(server, 0)
        ask(server.port, GET % b"/last" * 3, b"last")
        assert server.state.numbers(server.process.pid)["requests"] == 0
        server.signal(signal.SIGTERM)
        assert server.ends() == 0
        assert server.state.numbers(server.process.pid)["requests"] == 3

    def test_requests_of_a_secondary_server_count(self, start: Start) -> None:
        second = socket.create_server(("127.0.0.1", 0))
        settings = {"version": HTTP.VERSION_1, "sock": second, "loop": None, "host": None, "port": None}

        def with_second(app: Any) -> None:
            build(app)
            build(Sanic("second", configure_logging=False))

        infos = {
            APP: [ApplicationServerInfo({"version": HTTP.VERSION_1})],
            "second": [ApplicationServerInfo(settings)],
        }
        with second:
            server = start(with_second, server_info=infos)
            until(lambda: server.state[NAME].get("serving"), "it to serve")
            ask(server.port, GET % b"/last", b"last")
            ask(second.getsockname()[1], GET % b"/last" * 2, b"last")
            counts(server, 3)

    def test_a_state_passed_by_the_caller_is_used(self, start: Start) -> None:
        mine = {"requests_count": 5}

        def with_count(app: Any) -> None:
            app.get("/count")(lambda request: text(f"{mine['requests_count']} done"))

        server = start(with_count, state=mine)
        until(lambda: server.state[NAME].get("serving"), "it to serve")
        ask(server.port, GET % b"/count", b"6 done")
        counts(server, 1)

    def test_a_foreign_state_counts_no_requests(self, start: Start) -> None:
        state: dict[str, Any] = {NAME: {"server": True}}
        server = start(build, worker_state=state)
        ask(server.port, GET % b"/last", b"last")


class TestHeartbeat:
    def test_an_idle_server_beats(self, start: Start) -> None:
        server = start(build)
        look = server.state.numbers
        first = until(lambda: look(server.process.pid).get("last_beat"), "a beat")
        assert abs(datetime.now(tz=timezone.utc) - first) < timedelta(seconds=20)
        until(lambda: look(server.process.pid)["last_beat"] > first, "another one")

    def test_a_server_with_a_blocked_loop_does_not_beat(self, start: Start) -> None:
        gate, key = os.pipe()

        server = start(blocking_until(gate))
        look = server.state.numbers
        until(lambda: server.state[NAME].get("serving"), "it to serve")
        with closing(socket.create_connection(("127.0.0.1", server.port), 10)) as sock:
            sock.sendall(GET % b"/block")
            server.says("blocked")
            before = look(server.process.pid)["last_beat"]
            assert look(server.process.pid)["last_beat"] == before
            os.write(key, b"x")
            until(lambda: look(server.process.pid)["last_beat"] > before, "a beat")
        os.close(gate)
        os.close(key)

    def test_a_full_state_does_not_end_the_heartbeat(self) -> None:
        class Full(SharedState):
            beats = 0

            def beat(self, requests: int = 0, **numbers: Any) -> None:
                self.beats += 1
                if self.beats < 3:
                    raise MemoryError
                super().beat(requests, **numbers)

        async def act() -> None:
            state = Full()
            beating = heartbeat.Heartbeat(asyncio.get_running_loop(), state, {})
            beating.counts["requests_count"] = 7
            await until_in_loop(lambda: state.numbers(os.getpid()).get("requests") == 7)
            state.close()

        asyncio.run(asyncio.wait_for(act(), 10))

    @pytest.mark.parametrize(("limit", "pause"), [(0.0, 5.0), (2.0, 0.4), (25.0, 5.0), (60.0, 5.0)])
    def test_the_pause_is_a_fifth_of_the_limit(
        self, limit: float, pause: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(heartbeat, "IDLE", PAUSES["IDLE"])
        assert heartbeat.longest_pause(limit) == pytest.approx(pause)

    @pytest.mark.parametrize("busy", [False, True])
    def test_a_short_limit_has_the_server_beat_more_often(
        self, busy: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for pause in ("BUSY", "IDLE", "SAMPLE"):
            monkeypatch.setattr(heartbeat, pause, 3600.0)

        async def act() -> None:
            state = SharedState()
            beating = heartbeat.Heartbeat(asyncio.get_running_loop(), state, {}, hang_timeout=0.1)

            def beat() -> Any:
                beating.counts["requests_count"] += busy
                return state.numbers(os.getpid()).get("last_beat")

            await until_in_loop(beat)
            first = beat()
            await until_in_loop(lambda: beat() > first)
            state.close()

        asyncio.run(asyncio.wait_for(act(), 10))

    @pytest.mark.operations
    def test_an_idle_server_wakes_up_every_five_seconds(
        self, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, seconds in PAUSES.items():
            monkeypatch.setattr(heartbeat, name, seconds)
        server = start(build)
        until(lambda: server.state[NAME].get("serving"), "it to serve")
        beaten: list[Any] = [None]

        def beats() -> bool:
            beat = server.state.numbers(server.process.pid).get("last_beat")
            beaten.append(beat)
            return beat != beaten[-2]

        def wakeups() -> int:
            """Return the number of wakeups during two pauses."""
            until(beats, "a beat")
            before = switches(server.process.pid)
            until(beats, "the next one")
            until(beats, "the one after it")
            return switches(server.process.pid) - before

        # The process may not have gone to sleep yet when its first beat is seen.
        until(lambda: wakeups() <= 3, "ten seconds with two wakeups", 60)
        assert server.state.numbers(server.process.pid)["connections"] == 0


def switches(pid: int) -> int:
    """Return how often the threads of a process have begun to wait."""
    texts = [(task / "status").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    return sum(int(text.partition("\nvoluntary_ctxt_switches:")[2].split()[0]) for text in texts)


class TestLoad:
    """The numbers of a server that serves."""

    def shows(self, server: Server, **expected: Any) -> None:
        look = server.state.numbers
        until(lambda: expected.items() <= look(server.process.pid).items(), f"{expected}")

    def test_a_request_counts_as_in_flight_until_it_is_answered(self, start: Start) -> None:
        def with_slow(app: Any) -> None:
            released = asyncio.Event()

            @app.get("/slow")
            async def slow(request: Request) -> Any:
                app.ctx.say("called")
                await released.wait()
                return text("last")

            @app.get("/release")
            async def release(request: Request) -> Any:
                released.set()
                return text("last")

        server = start(with_slow)
        self.shows(server, in_flight=0, connections=0)
        with closing(socket.create_connection(("127.0.0.1", server.port), 10)) as sock:
            sock.sendall(GET % b"/slow")
            server.says("called")
            self.shows(server, in_flight=1, connections=1, requests=1)
            server.state.update_entry(NAME, {"pid": server.process.pid})
            assert server.state[NAME]["in_flight"] == server.state[NAME]["connections"] == 1
            ask(server.port, GET % b"/release", b"last")
            self.shows(server, in_flight=0, connections=1, requests=2)
            assert sock.recv(65536).endswith(b"last")
        self.shows(server, in_flight=0, connections=0)

    def test_a_blocked_loop_counts_as_busy(self, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
        gate, key = os.pipe()
        beat, blocks = SharedState.beat, []

        def beat_and_stay(state: SharedState, requests: int = 0, **numbers: Any) -> None:
            """Beat; the beat after the block is the last one until it has been seen."""
            beat(state, requests, **numbers)
            if blocks and blocks.pop():
                os.read(gate, 1)

        def with_block(app: Any) -> None:
            blocking_until(gate)(app)
            app.on_response(lambda request, response: blocks.append(True))

        monkeypatch.setattr(SharedState, "beat", beat_and_stay)
        server = start(with_block)

        def busy() -> Any:
            return server.state.numbers(server.process.pid).get("loop_busy")

        until(lambda: busy() is not None and busy() < 0.5, "an idle loop")
        with closing(socket.create_connection(("127.0.0.1", server.port), 10)) as sock:
            sock.sendall(GET % b"/block")
            server.says("blocked")
            began = monotonic()
            until(lambda: monotonic() > began + 0.5, "the end of the block")
            os.write(key, b"x")
            until(lambda: busy() > 0.8, "a loop that was busy")
            os.write(key, b"x")
        os.close(gate)
        os.close(key)

    def test_a_request_that_is_being_read_counts_as_in_flight(self, start: Start) -> None:
        server = start(build)
        self.shows(server, connections=0)
        with closing(socket.create_connection(("127.0.0.1", server.port), 10)) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\n")
            self.shows(server, in_flight=1, connections=1, requests=0)
            sock.sendall(b"Host: x\r\n\r\n")
            self.shows(server, in_flight=0, connections=1, requests=1)

    def test_open_connections_are_counted(self, start: Start) -> None:
        server = start(build)
        self.shows(server, connections=0)
        socks = [socket.create_connection(("127.0.0.1", server.port), 10) for _ in range(3)]
        self.shows(server, connections=3, in_flight=0)
        socks.pop().close()
        self.shows(server, connections=2, in_flight=0)
        for sock in socks:
            sock.close()
        self.shows(server, connections=0)

    def test_a_websocket_is_a_connection_without_a_request_in_flight(self, start: Start) -> None:
        def with_feed(app: Any) -> None:
            @app.websocket("/feed")
            async def feed(request: Request, ws: Websocket) -> None:
                await ws.send("last")
                await ws.recv()

        server = start(with_feed, protocol=WebSocketProtocol)
        self.shows(server, connections=0)
        key = base64.b64encode(b"0123456789abcdef")
        upgrade = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        with closing(socket.create_connection(("127.0.0.1", server.port), 10)) as sock:
            sock.sendall(
                b"GET /feed HTTP/1.1\r\nHost: x\r\n" + upgrade + b"Sec-WebSocket-Key: " + key + b"\r\n\r\n"
            )
            answer = b""
            while not answer.endswith(b"last"):
                answer += sock.recv(65536)
            self.shows(server, connections=1, in_flight=0, requests=1)
        self.shows(server, connections=0)

    @pytest.mark.slow
    def test_a_blocked_loop_shows_in_the_lag(self, start: Start) -> None:
        gate, key = os.pipe()

        server = start(blocking_until(gate))
        look = server.state.numbers
        until(lambda: "loop_lag_p99" in look(server.process.pid), "a measured lag")
        with closing(socket.create_connection(("127.0.0.1", server.port), 10)) as sock:
            sock.sendall(GET % b"/block")
            server.says("blocked")
            assert not select.select([sock], [], [], 0.6)[0], "it was not blocked"
            os.write(key, b"x")
            lag = until(lambda: look(server.process.pid)["loop_lag_p99"] >= 0.4, "the lag")
            assert lag
        os.close(gate)
        os.close(key)


def test_http3_requests_count(monkeypatch: pytest.MonkeyPatch) -> None:
    class Http3:
        def get_or_make_receiver(self, event: bool) -> tuple[str, bool]:
            return "receiver", event

    monkeypatch.setattr(heartbeat.Http3Protocol, "HTTP_CLASS", Http3)
    state = SharedState()
    beating = heartbeat.Heartbeat(cast(Any, SimpleNamespace(call_soon=lambda beat: None)), state, {})
    beating.count_http3()
    http: Any = heartbeat.Http3Protocol.HTTP_CLASS()
    # The headers of a request, then its body.
    assert [http.get_or_make_receiver(is_new) for is_new in (True, False)] == [
        ("receiver", True),
        ("receiver", False),
    ]
    assert beating.counts["requests_count"] == 1
    state.close()
