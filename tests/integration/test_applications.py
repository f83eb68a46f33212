"""Applications of every kind: several in one server, on a unix socket, over HTTP/3, from factories."""

from __future__ import annotations

import asyncio
import os
import ssl
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from signal import SIGCONT, SIGHUP, SIGKILL, SIGSTOP
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import trustme
from support.modes import NOT_FORK

from .harness import Server
from .tools import STOCK, TIMEOUT, free_port, suspend, wait_until

Run = Callable[..., Server]

INSTALL = "" if STOCK else "import worker\nworker.install()\n"


def script(directory: Path, text: str, name: str = "script.py") -> list[str]:
    """Return the command that runs `text` as a script that has installed the package first."""
    path = directory / name
    path.write_text(INSTALL + text)
    return [sys.executable, str(path)]


def test_two_applications_in_one_server(tmp_path: Path) -> None:
    second = free_port()
    command = script(tmp_path, "from apps.pair import serve\nif __name__ == '__main__':\n    serve()\n")
    with Server(command, cwd=tmp_path, port=free_port(), env={"SECOND": str(second)}) as server:
        server.wait_ready()
        table = server.settled(2)
        for port in (server.port, second):
            for name in table:
                wait_for_answer(server, name, port)
        who = server.post("/m/restart", port=second)["name"]
        wait_until(lambda: server.settled(2)[who]["pid"] != table[who]["pid"], "a restart through the second")
        wait_for_answer(server, who, second)
        assert server.stop() == 0
        assert {event.fields["app"] for event in server.events("before_server_start")} == {"first", "second"}
        assert {event.fields["app"] for event in server.events("main_process_start")} == {"first"}
        for app in ("first", "second"):
            assert len(server.events("after_server_stop", app=app)) == 3
        assert tracebackless(server)


def wait_for_answer(server: Server, name: str, port: int | None = None) -> None:
    wait_until(lambda: server.get("/whoami", port=port)["name"] == name, f"an answer from {name}")


def tracebackless(server: Server) -> bool:
    return "Traceback" not in server.log("err")


@pytest.fixture
def socket_path() -> Iterator[Path]:
    """Make a short path: the address of a unix socket has room for about a hundred bytes."""
    with TemporaryDirectory() as directory:
        yield Path(directory) / "socket"


def test_restarts_on_a_unix_socket(socket_path: Path, run: Run) -> None:
    path = socket_path
    server = run("apps.cluster:app", unix=path).wait_ready()
    table = server.settled(2)
    who = server.post("/m/restart", {"zero_downtime": True})["name"]
    wait_until(lambda: server.settled(2)[who]["pid"] != table[who]["pid"], "a restart")
    assert path.is_socket()
    for name in table:
        wait_for_answer(server, name)
    assert server.stop() == 0
    assert not path.exists()
    assert server.log("err") == ""


@pytest.mark.ours
def test_a_unix_socket_is_shared_and_has_its_mode(socket_path: Path, run: Run) -> None:
    server = run("apps.supervised:app", "--unix-mode=0600", unix=socket_path, workers=4).wait_ready()
    before = server.settled(4)
    assert stat.S_IMODE(socket_path.stat().st_mode) == 0o600
    workers = [entry["pid"] for entry in before.values()]
    for pid in workers:
        # A stopped process accepts nothing.
        others = [one for one in workers if one != pid]
        for other in others:
            suspend(other)
        assert server.request("GET", "/pid").text == str(pid)
        for other in others:
            os.kill(other, SIGCONT)
    os.kill(workers[0], SIGKILL)
    wait_until(
        lambda: workers[0] not in {entry["pid"] for entry in server.settled(4).values()}, "another process"
    )
    assert socket_path.exists()
    assert server.stop() == 0
    assert not socket_path.exists()


@pytest.mark.ours
def test_a_unix_socket_in_use_is_refused(socket_path: Path, run: Run) -> None:
    server = run("apps.supervised:app", unix=socket_path, workers=1).wait_ready()
    second = Server.run("apps.supervised:app", cwd=server.cwd, unix=socket_path)
    assert second.wait() == 1
    assert "Address already in use" in second.log("err")
    wait_until(lambda: not second.processes(), "its processes gone")
    second.output.close()
    assert server.request("GET", "/pid").status == 200
    # A socket without a listener is replaced.
    # Stopped first, no worker does anything at the end of the main process.
    server.signal(SIGSTOP, to="all")
    server.signal(SIGKILL, to="all")
    server.wait()
    assert socket_path.exists()
    run("apps.supervised:app", unix=socket_path, workers=1).wait_ready()


def test_an_early_request_on_a_unix_socket(socket_path: Path, run: Run) -> None:
    server = run("apps.cluster:app", unix=socket_path)
    wait_until(socket_path.is_socket, "the socket")
    assert server.get("/whoami")["name"].startswith("Sanic-Server-")


def test_http3_requests_and_a_restart(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("aioquic")
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    certificate.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    args = ("--http=3", f"--cert={tmp_path / 'cert.pem'}", f"--key={tmp_path / 'key.pem'}")
    server = run("apps.cluster:app", *args, workers=1)
    server.wait_events("after_server_start")
    status, body = asyncio.run(
        asyncio.wait_for(ask_over_quic(server.port, tmp_path / "ca.pem", "/workers"), TIMEOUT)
    )
    assert status == 200
    assert b"Sanic-Server-0-0" in body
    assert b'"ACKED"' in body
    if not STOCK:
        # Two processes cannot have its port at once.
        server.signal(SIGHUP)
        server.wait_line("its port cannot be bound twice. Restarting with SHUTDOWN_FIRST")
        old, new = server.wait_events("after_server_start", 2)
        assert old.pid != new.pid
        status, body = asyncio.run(
            asyncio.wait_for(ask_over_quic(server.port, tmp_path / "ca.pem", "/workers"), TIMEOUT)
        )
        assert status == 200
        assert f'"pid":{new.pid}'.encode() in body
    assert server.stop() == 0
    assert len(server.events("after_server_stop")) == len(server.events("after_server_start"))
    assert tracebackless(server)


async def ask_over_quic(port: int, authority: Path, path: str) -> tuple[int, bytes]:
    """Return status and body of one GET over HTTP/3."""
    from aioquic.asyncio.client import connect
    from aioquic.asyncio.protocol import QuicConnectionProtocol
    from aioquic.h3.connection import H3_ALPN, H3Connection
    from aioquic.h3.events import DataReceived, HeadersReceived
    from aioquic.quic.configuration import QuicConfiguration
    from aioquic.quic.events import QuicEvent

    class Client(QuicConnectionProtocol):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.http = H3Connection(self._quic)
            self.status = 0
            self.body = b""
            self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def quic_event_received(self, event: QuicEvent) -> None:
            for found in self.http.handle_event(event):
                if isinstance(found, HeadersReceived):
                    self.status = int(dict(found.headers)[b":status"])
                elif isinstance(found, DataReceived):
                    self.body += found.data
                if getattr(found, "stream_ended", False) and not self.done.done():
                    self.done.set_result(None)

    configuration = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, verify_mode=ssl.CERT_REQUIRED)
    configuration.load_verify_locations(str(authority))
    configuration.server_name = "localhost"
    async with connect("127.0.0.1", port, configuration=configuration, create_protocol=Client) as client:
        assert isinstance(client, Client)
        stream = client._quic.get_next_available_stream_id()
        headers = {":method": "GET", ":scheme": "https", ":authority": "localhost", ":path": path}
        client.http.send_headers(
            stream, [(k.encode(), v.encode()) for k, v in headers.items()], end_stream=True
        )
        client.transmit()
        await asyncio.wait_for(client.done, TIMEOUT)
        return client.status, client.body


@pytest.mark.modes(*NOT_FORK)
def test_a_factory_and_its_shared_context(run: Run) -> None:
    server = run("apps.factory:create_app", "--factory").wait_ready()
    server.settled(2)
    answers = [server.post("/count")]

    def both_counted() -> bool:
        answers.append(server.post("/count"))
        return len({answer["name"] for answer in answers}) == 2

    wait_until(both_counted, "both workers counting")
    assert [answer["count"] for answer in answers] == list(range(1, len(answers) + 1))
    if not STOCK:
        assert server.post("/replace") == "Cannot set other on locked SharedContext object"
    assert len(server.events("created")) == 3
    assert server.stop() == 0
    assert server.log("err") == ""


@pytest.mark.modes(*NOT_FORK)
def test_a_factory_that_is_called_by_its_name(run: Run) -> None:
    server = run("apps.factory:create_plain()", workers=1).wait_ready()
    assert server.post("/count")["count"] == 1
    assert len(server.events("created")) == 2
    assert server.stop() == 0


@pytest.mark.modes(*NOT_FORK)
def test_a_loader_handed_to_serve(tmp_path: Path) -> None:
    text = """
import os
from functools import partial
from sanic import Sanic
from sanic.worker.loader import AppLoader
from apps.factory import create_app

if __name__ == "__main__":
    loader = AppLoader(factory=partial(create_app, "given"))
    app = loader.load()
    app.prepare(host="127.0.0.1", port=int(os.environ["PORT"]), workers=1, motd=False)
    Sanic.serve(primary=app, app_loader=loader)
"""
    with Server(script(tmp_path, text), cwd=tmp_path, port=free_port()) as server:
        server.wait_ready()
        server.settled(1)
        assert [event.fields["given"] for event in server.events("created")] == [True] * 2
        assert server.stop() == 0


def test_a_script_that_runs_its_own_application(tmp_path: Path) -> None:
    text = """
import os
from sanic import Sanic
from apps.journal import record
from apps.steering import steerable

app = Sanic("own")
steerable(app)
record(app)

if __name__ == "__main__":
    app.run(host="127.0.0.1", port=int(os.environ["PORT"]), workers=2, motd=False)
"""
    with Server(script(tmp_path, text), cwd=tmp_path, port=free_port()) as server:
        server.wait_ready()
        server.settled(2)
        if not STOCK:
            assert server.get("/whoami")["multiplexer"].partition(".")[0] == "worker"
        assert server.stop() == 0
        assert server.log("err") == ""


@pytest.mark.modes(*NOT_FORK)
def test_a_script_without_the_main_guard_fails(tmp_path: Path) -> None:
    text = """
import os
from sanic import Sanic

app = Sanic("unguarded")
app.run(host="127.0.0.1", port=int(os.environ["PORT"]), workers=2, motd=False)
"""
    with Server(script(tmp_path, text), cwd=tmp_path, port=free_port()) as server:
        assert server.wait() != 0
        assert "__main__" in server.log("err")
