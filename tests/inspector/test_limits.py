"""Slow and hostile clients: each attack works with permissive limits, and not with those of the inspector."""

from __future__ import annotations

import multiprocessing
import re
import resource
import select
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import trustme
from support.inspecting import TIMEOUT, Announced, Served
from support.running import until

from worker._inspect import connections

pytestmark = pytest.mark.slow

IDLE_CONNECTIONS = 1000


@pytest.fixture(autouse=True)
def _many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def is_closed(sock: socket.socket) -> bool:
    """Return whether the other end has closed a connection; read away all that it has sent."""
    sock.setblocking(False)
    with suppress(BlockingIOError):
        try:
            while sock.recv(65_536):
                pass
        except ConnectionError:
            pass
        return True
    return False


def open_many(served: Served, stack: ExitStack, serves: Callable[[], bool]) -> list[socket.socket]:
    """Open many connections, not more at a time than the kernel holds until the server accepts them."""
    opened = []
    for number in range(IDLE_CONNECTIONS):
        opened.append(stack.enter_context(served.connect()))
        assert number % 50 or serves()
    return opened


def trickle(served: Served, begin: bytes, piece: bytes, seconds: float) -> float | None:
    """Send pieces one after another; return when the connection was closed, ``None`` if it is open."""
    began = monotonic()
    with served.connect() as sock:
        sock.sendall(begin)
        while (passed := monotonic() - began) < seconds:
            if select.select([sock], [], [], 0.02)[0]:
                return passed
            with suppress(BrokenPipeError, ConnectionResetError):
                sock.sendall(piece)
    return None


class Slow(Announced):
    """An inspector with an action that lasts until the stop, and is reported when it begins."""

    async def wait(self) -> str:
        self._publisher.send("waits")
        await self._operations.stopping.wait()
        return "waited"


REQUEST = b"POST /wait HTTP/1.1\r\nHost: localhost\r\n\r\n"


class TestIdleConnections:
    def test_the_attack_works_without_a_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(connections, "MAX_CONNECTIONS", 10 * IDLE_CONNECTIONS)
        with Served({}) as served, ExitStack() as stack:
            before = served.sockets()
            open_many(served, stack, lambda: served.get("/")[0] == 200)
            until(lambda: served.sockets() >= before + IDLE_CONNECTIONS, "all connections are held")

    @pytest.mark.operations
    def test_a_thousand_are_too_many(self) -> None:
        with Served({}) as served, ExitStack() as stack:
            before, base = served.sockets(), served.memory()
            opened = open_many(served, stack, lambda: served.get("/")[0] == 200)
            until(lambda: served.sockets() <= before + connections.MAX_CONNECTIONS, "the limit")
            # The oldest ones have made room, so a new client is served.
            assert served.get("/")[0] == 200
            assert is_closed(opened[0])
            assert not is_closed(opened[-1])
            assert served.memory() - base < 20_000_000
            assert served.stop() == 0

    def test_requests_under_way_are_not_dropped(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(connections, "MAX_CONNECTIONS", 5)

        with Served({}, Slow) as served, ExitStack() as stack:
            waiting = [stack.enter_context(served.connect()) for _ in range(5)]
            for sock in waiting:
                sock.sendall(REQUEST)
                assert served.command() == "waits"
            # The requests are under way when no idle connection can take the place of one.
            until(lambda: self.is_full(served), "only the newest connection is closed")
            assert not any(map(is_closed, waiting))
            assert served.stop() == 0
            for sock in waiting:
                sock.setblocking(True)
                assert b"waited" in sock.recv(4096)

    def test_slow_actions_leave_connections_for_probes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(connections, "MAX_CONNECTIONS", 10)
        monkeypatch.setattr(connections, "MAX_REQUESTS", 5)

        with Served({}, Slow) as served, ExitStack() as stack:
            waiting = [stack.enter_context(served.connect()) for _ in range(5)]
            for sock in waiting:
                sock.sendall(REQUEST)
                assert served.command() == "waits"
            until(lambda: served.get("/")[0] == 503, "too many requests are held")
            status, ready = served.get("/readyz")
            assert (status, ready["status"]) == (503, "failed")
            assert served.stop() == 0
            answers = [self.received(sock) for sock in waiting]
            assert sum(b"waited" in one for one in answers) == 5

    @staticmethod
    def received(sock: socket.socket) -> bytes:
        try:
            return sock.recv(4096)
        except ConnectionError:
            return b""

    @staticmethod
    def is_full(served: Served) -> bool:
        with served.connect() as sock:
            return bool(select.select([sock], [], [], 0.05)[0])

    def test_an_idle_connection_is_closed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(connections, "IDLE_TIMEOUT", 0.3)
        with Served({}) as served, served.connect() as sock:
            assert select.select([sock], [], [], TIMEOUT)[0]
            assert sock.recv(1) == b""


class TestHandshakes:
    """Clients of TLS that open a connection and send nothing."""

    @pytest.fixture
    def tls(self, tmp_path: Path) -> dict[str, str]:
        authority = trustme.CA()
        certificate = authority.issue_cert("localhost")
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        certificate.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
        certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
        return {"tls_key": str(tmp_path / "key.pem"), "tls_cert": str(tmp_path / "cert.pem")}

    @staticmethod
    def is_served(served: Served, tls: dict[str, str]) -> bool:
        context = ssl.create_default_context(cafile=str(Path(tls["tls_key"]).with_name("ca.pem")))
        with served.connect() as sock, context.wrap_socket(sock, server_hostname="localhost") as secure:
            # A whole answer on a kept connection, and the next one.
            for _ in range(2):
                secure.sendall(b"GET /operations HTTP/1.1\r\nHost: localhost\r\n\r\n")
                if b"200 OK" not in secure.recv(4096):
                    return False
        return True

    @pytest.mark.operations
    def test_a_thousand_are_too_many(self, tls: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
        # The time of a handshake closes none of them.
        monkeypatch.setattr(connections, "HANDSHAKE_TIMEOUT", 3600.0)
        with Served({}, **tls) as served, ExitStack() as stack:
            before = served.sockets()
            opened = open_many(served, stack, lambda: self.is_served(served, tls))
            until(lambda: is_closed(opened[0]), "the oldest has made room")
            until(lambda: served.sockets() <= before + connections.MAX_CONNECTIONS, "the limit")
            assert not is_closed(opened[-1])
            assert self.is_served(served, tls)
            assert served.stop() == 0
            until(lambda: all(map(is_closed, opened)), "the end of all connections")

    def test_a_handshake_has_its_time(self, tls: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(connections, "HANDSHAKE_TIMEOUT", 0.3)
        with Served({}, **tls) as served, served.connect() as sock:
            until(lambda: is_closed(sock), "the end of the time")

            def serves() -> bool:
                # The handshake of this client may take too long, too.
                with suppress(OSError):
                    return self.is_served(served, tls)
                return False

            until(serves, "a client that is in time")

    def test_a_client_that_speaks_no_tls_is_dropped(
        self, tls: dict[str, str], capfd: pytest.CaptureFixture[str]
    ) -> None:
        with Served({}, **tls) as served:
            before = served.sockets()
            for _ in range(20):
                with served.connect() as sock, suppress(ConnectionError):
                    sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                    sock.recv(4096)
            assert self.is_served(served, tls)
            until(lambda: served.sockets() <= before, "no connection is left")
        assert "Traceback" not in capfd.readouterr().err


ENDLESS = [
    pytest.param(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ", b"x", id="header"),
    pytest.param(
        b"POST /scale HTTP/1.1\r\nHost: localhost\r\nContent-Length: 60000\r\n\r\n", b" ", id="body"
    ),
    pytest.param(
        b"POST /scale HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"1\r\n \r\n",
        id="chunks",
    ),
]


class TestEndlessRequests:
    @pytest.mark.parametrize(("begin", "piece"), ENDLESS)
    def test_a_request_that_trickles_is_dropped(
        self, monkeypatch: pytest.MonkeyPatch, begin: bytes, piece: bytes
    ) -> None:
        # The attack works as long as each byte extends the time.
        monkeypatch.setattr(connections, "RECEIVE_TIMEOUT", 60.0)
        with Served({}) as served:
            assert trickle(served, begin, piece, 1.0) is None
        monkeypatch.setattr(connections, "RECEIVE_TIMEOUT", 0.5)
        with Served({}) as served:
            assert trickle(served, begin, piece, TIMEOUT) is not None
            assert served.get("/")[0] == 200

    @pytest.mark.parametrize(("begin", "piece"), ENDLESS)
    def test_a_request_of_any_length_is_cut(self, begin: bytes, piece: bytes) -> None:
        with Served({}) as served, served.connect() as sock:
            sent = 0
            begin = begin.replace(b"60000", b"60000000000")
            with suppress(ConnectionError):
                sock.sendall(begin)
                while sent < 50_000_000 and not select.select([sock], [], [], 0)[0]:
                    sent += sock.send(piece * 10_000)
            assert sent < 50_000_000
            assert served.get("/")[0] == 200

    def test_a_body_that_is_too_large_is_refused(self) -> None:
        with Served({}) as served:
            for size, status in ((connections.MAX_BODY, 400), (connections.MAX_BODY + 1, 413)):
                with served.open("POST", "/scale", b" " * size) as answer:
                    assert answer.status == status
                    assert answer.headers["content-type"] == "application/json"
                    message = answer.read()
            assert b"65536 of body" in message

    def test_a_kept_connection_has_its_time_for_each_request(self, monkeypatch: pytest.MonkeyPatch) -> None:
        limit = 0.4
        monkeypatch.setattr(connections, "RECEIVE_TIMEOUT", limit)
        request = b"GET /operations HTTP/1.1\r\nHost: localhost\r\n\r\n"

        def is_answered(sock: socket.socket) -> bool:
            with suppress(ConnectionError):
                sock.sendall(request[:20])
                if not select.select([sock], [], [], 0.05)[0]:
                    sock.sendall(request[20:])
                    return b"200 OK" in sock.recv(4096)
            return False

        def outlives_the_limit() -> bool:
            with served.connect() as sock:
                opened = sent = monotonic()
                while is_answered(sock):
                    if monotonic() - opened > 3 * limit:
                        return True
                    sent = monotonic()
            # A busy machine may have sent the second part too late.
            assert monotonic() - sent > limit
            return False

        with Served({}) as served:
            until(outlives_the_limit, "a connection that outlives the limit")


def test_a_client_that_sends_many_requests_at_once_does_not_hold_others() -> None:
    context = multiprocessing.get_context("fork")
    has_begun, may_go_on = context.Event(), context.Event()
    requests = 1000

    class Counting(Announced):
        number = 0

        def count(self) -> str:
            # The loop turns again when the requests of both clients have arrived.
            has_begun.set()
            assert may_go_on.wait(TIMEOUT)
            self.number += 1
            return f"number {self.number}."

    request = b"POST /count HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with Served({}, Counting) as served, served.connect() as greedy, served.connect() as other:
        other.sendall(b"GET /operations HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in other.recv(4096)
        greedy.sendall(request * requests)
        assert has_begun.wait(TIMEOUT)
        other.sendall(request)
        may_go_on.set()
        found = re.search(rb"number ([0-9]+)\.", other.recv(4096))
        assert found is not None
        assert int(found[1]) < requests / 10


@pytest.mark.parametrize(
    "open_one",
    [
        lambda sock: None,
        lambda sock: sock.sendall(b"GET / HTTP/1.1\r\nX: "),
        lambda sock: sock.sendall(b"POST /scale HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"),
    ],
    ids=["idle", "header", "body"],
)
def test_no_client_holds_the_stop(open_one: Callable[[Any], None]) -> None:
    with Served({}) as served, ExitStack() as stack:
        opened = [stack.enter_context(served.connect()) for _ in range(20)]
        for sock in opened:
            open_one(sock)
        assert served.get("/")[0] == 200
        assert served.stop() == 0
        until(lambda: all(map(is_closed, opened)), "the end of all connections")


MALFORMED = {
    b"GET /\r\n\r\n": 400,
    b"GET / HTTP/9\r\n\r\n": 400,
    b"NONE /\r\n\r\n": 400,
    b"GET /\xc3\xa4 HTTP/1.1\r\n%b\r\n": 400,
    b"GET / HTTP/1.1\r\n%bbroken\r\n\r\n": 400,
    b"POST /scale HTTP/1.1\r\n%bContent-Length: -5\r\n\r\n": 400,
    b"POST /scale HTTP/1.1\r\n%bContent-Length: abc\r\n\r\n": 400,
    b"POST /scale HTTP/1.1\r\n%bContent-Length: 2\r\nContent-Length: 2\r\n\r\n{}": 400,
    b"POST /scale HTTP/1.1\r\n%bContent-Length: 2\r\nExpect: foo\r\n\r\n": 417,
    b"GET / HTTP/1.1\r\n%bX: " + 9000 * b"x" + b"\r\n\r\n": 413,
}


@pytest.mark.parametrize("key", ["", "secret"])
def test_a_malformed_request_is_told_its_fault(key: str, capfd: pytest.CaptureFixture[str]) -> None:
    headers = b"Host: localhost\r\nAuthorization: Bearer secret\r\n"
    with Served({}, api_key=key) as served:
        for request, status in MALFORMED.items():
            with served.connect() as sock:
                sock.sendall(request.replace(b"%b", headers))
                assert sock.recv(65_536).startswith(b"HTTP/1.1 %d " % status), request
        assert "bad API key" not in capfd.readouterr().err
        # A request of this method that is not malformed is no way around the check.
        with served.connect() as sock:
            sock.sendall(b"NONE / HTTP/1.1\r\nHost: evil.example\r\n\r\n")
            assert sock.recv(65_536).startswith(b"HTTP/1.1 %d " % (401 if key else 403))


@pytest.mark.parametrize(
    "garbage", [b"\r\n\r\n", b"GARBAGE\r\n\r\n", b"\x16\x03\x01" * 5000, b"GET / HTTP/9\r\n\r\n", b"\0" * 100]
)
def test_garbage_does_not_stop_the_inspector(garbage: bytes) -> None:
    with Served({}) as served:
        with served.connect() as sock, suppress(ConnectionError):
            sock.sendall(garbage)
            sock.shutdown(socket.SHUT_WR)
            answer = sock.recv(65_536)
            assert answer == b"" or b" 500 " not in answer.partition(b"\r\n")[0]
        assert served.get("/")[0] == 200
