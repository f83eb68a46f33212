"""A server whose event loop is blocked for a moment says where, on each loop and by each kind of work."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from integration.harness import Server
from integration.test_supervision import steady
from integration.tools import wait_until

from operations.quic import get, http3

pytestmark = pytest.mark.operations

APP = """
import ctypes, os
from asyncio import sleep as pause
from time import sleep as block
from sanic import Sanic, text

Sanic.start_method = os.environ["START_METHOD"]
app = Sanic("blocking")
app.config.USE_UVLOOP = os.environ["LOOP"] == "uvloop"

@app.get("/whoami")
async def whoami(request):
    return text("here")

@app.get("/sleeps")
async def sleeps(request):
    block(0.3)  # in a handler
    return text("slept")

@app.get("/keeps")
async def keeps(request):
    ctypes.PyDLL(None).poll(None, 0, 300)  # in C
    return text("kept")

@app.get("/task")
async def task(request):
    async def polls():
        await pause(0.01)
        block(0.3)  # in a task
    request.app.add_task(polls(), name="poller")
    return text("added")

@app.websocket("/socket")
async def socket(request, ws):
    await ws.recv()
    block(0.3)  # in a socket
    await ws.send("done")
"""
WARNING = r"WARNING: The event loop was blocked for \d+\.\d\d s or longer at "


def line_of(text: str) -> int:
    """Return the number of the line of the application with this comment."""
    return next(number for number, line in enumerate(APP.splitlines(), 1) if f"# {text}" in line)


def await_warning(server: Server, block: Callable[[], object], where: str) -> None:
    """Block the loop until the log names the place. A block is missed if the watching thread cannot run."""
    since = server.mark()

    def is_logged() -> bool:
        block()
        return any(re.search(WARNING + ".*" + where, line.text) for line in server.output.lines[since:])

    wait_until(is_logged, where)


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def server(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("blocking")
    (folder / "blocking.py").write_text(APP)
    env = {"LOOP": request.param}
    options = ("--slow-loop-warning=0.1", "--no-access-log")
    with Server.run("blocking:app", *options, cwd=folder, workers=1, env=env) as server:
        yield server.wait_ready()


@pytest.mark.parametrize(
    ("path", "place", "function", "work"),
    [
        ("/sleeps", "in a handler", "sleeps", "GET /sleeps"),
        ("/keeps", "in C", "keeps", "GET /keeps"),
        ("/task", "in a task", "task.<locals>.polls", "task poller"),
    ],
)
def test_a_blocking_step_is_logged_once_with_its_place(
    server: Server, path: str, place: str, function: str, work: str
) -> None:
    since = server.mark()
    where = rf"blocking\.py:{line_of(place)} in (.*\.)?{re.escape(function.rpartition('.')[2])}, for {work}"
    await_warning(server, lambda: server.request("GET", path), where)
    # The second one within a minute is left out.
    assert server.request("GET", path).status == 200
    assert server.request("GET", "/whoami").status == 200
    found = [line.text for line in server.output.lines[since:] if re.search(where, line.text)]
    assert len(found) == 1


def test_a_websocket_names_its_request(server: Server) -> None:
    from websockets.sync.client import connect

    def block() -> None:
        with connect(f"ws://127.0.0.1:{server.port}/socket") as socket:
            socket.send("go")
            assert socket.recv(15) == "done"

    await_warning(server, block, rf"blocking\.py:{line_of('in a socket')} in socket, for GET /socket")


def test_a_server_that_does_not_block_logs_nothing(tmp_path: Path) -> None:
    (tmp_path / "blocking.py").write_text(APP)
    env = {"LOOP": "uvloop"}
    with Server.run("blocking:app", cwd=tmp_path, workers=2, env=env) as server:
        server.wait_ready()
        with steady(server, "/whoami", "--rate=300") as seen:
            for _ in range(200):
                assert server.request("GET", "/whoami").status == 200
        assert seen["failures"] == []
        assert server.stop() == 0
        assert "event loop" not in server.log()


def test_a_handler_of_http3_names_its_request(tmp_path: Path) -> None:
    with http3(tmp_path, APP, "--slow-loop-warning=0.1") as server:

        def block() -> None:
            assert get(server, tmp_path, "/sleeps") == (200, b"slept")

        where = rf"blocking\.py:{line_of('in a handler')} in sleeps, for GET /sleeps"
        await_warning(server, block, where)
        assert server.stop() == 0
