"""An inspector under test: in this process, or in one of its own with a real socket."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPResponse
from types import TracebackType
from typing import Any

from sanic.helpers import Default
from sanic_testing.testing import SanicASGITestClient

from support.fakes import FakePublisher
from support.ports import hold_port
from worker._state import events
from worker._state.event_log import EventLog
from worker.inspector import Inspector
from worker.integration import StateManager

TIMEOUT = 15.0
HOST = "localhost:6457"


def make(kind: type[Inspector] = Inspector, publisher: Any = None, **given: Any) -> Inspector:
    """Return an inspector that is not called yet."""
    options: dict[str, Any] = {
        "publisher": publisher or FakePublisher(),
        "app_info": {},
        "worker_state": {},
        "host": "localhost",
        "port": 6457,
        "api_key": "",
        "tls_key": Default(),
        "tls_cert": Default(),
    }
    return kind(**{**options, **given})


def ask(
    inspector: Inspector, method: str, path: str, data: Any = None, *, raw: Any = None, **headers: Any
) -> Any:
    """Return the answer of an inspector in this process, which was called with ``run=False``."""

    async def request() -> Any:
        async with SanicASGITestClient(inspector.app) as client:
            sent = {"host": HOST, **{name.replace("_", "-"): value for name, value in headers.items()}}
            content = raw if data is None else json.dumps(data)
            return (await client.request(method, path, content=content, headers=sent))[1]

    return asyncio.run(request())


class Shared:
    """A shared state as the main process has it, with an event log."""

    def __init__(self) -> None:
        self._manager = StateManager()
        self.state = self._manager.dict()
        self.state["Sanic-Main"] = {"pid": 1}
        for number in range(2):
            self.state[f"Sanic-Server-{number}-0"] = {"pid": 1, "server": True, "state": "ACKED"}
        self.log = EventLog(self.state)

    def append(self, text: str) -> None:
        """Append an event."""
        self.log.append(events.StopRequested(text=text, by="the test"))

    def show_operation(self, ident: str, status: str, **fields: Any) -> None:
        """Show an operation, as one more."""
        shown = {"id": ident, "kind": "restart", "status": status, "by": "the test", "done": 1, "total": 2}
        self.log.show_operation(self.log.new_operation(), {**shown, **fields})

    def close(self) -> None:
        """Release it."""
        self._manager.shutdown()


@contextmanager
def shared_state() -> Iterator[Shared]:
    """Return a shared state for the body."""
    shared = Shared()
    try:
        yield shared
    finally:
        shared.close()


class Announced(Inspector):
    """An inspector that reports when it serves and can be stopped, and ends with the test."""

    def _setup(self) -> None:
        super()._setup()
        # A stop that waits for a client takes longer than a test waits for the stop.
        self.app.config.GRACEFUL_SHUTDOWN_TIMEOUT = 10 * TIMEOUT
        self.app.after_server_start(self._announce)

    def _announce(self, app: Any) -> None:
        # A stop signal before that may be lost.
        if app.state.is_running:
            self._publisher.send("ready")
        else:
            app.loop.call_later(0.02, self._announce, app)


class Served:
    """An inspector in a process of its own, forked from this one with all that the test has patched."""

    def __init__(self, state: Any, kind: type[Inspector] = Announced, **given: Any) -> None:
        context = multiprocessing.get_context("fork")
        self._held = hold_port()
        self.port: int = self._held.getsockname()[1]
        self.commands, self._sender = context.Pipe(duplex=False)
        target = make(kind, self._sender, worker_state=state, host="127.0.0.1", port=self.port, **given)
        self.process = context.Process(target=target)

    def __enter__(self) -> Served:
        self.process.start()
        assert self.command() == "ready"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.join()
        self.process.close()
        self.commands.close()
        self._sender.close()
        self._held.close()

    def command(self) -> Any:
        """Return the next command to the main process."""
        assert self.commands.poll(TIMEOUT)
        return self.commands.recv()

    def stop(self) -> int | None:
        """Stop the inspector as the main process does; return its exit code, ``None`` if it runs on."""
        self.process.terminate()
        self.process.join(TIMEOUT)
        return self.process.exitcode

    def sockets(self) -> int:
        """Return the number of sockets that the inspector holds."""
        found = 0
        for entry in os.listdir(f"/proc/{self.process.pid}/fd"):
            with suppress(OSError):
                found += os.readlink(f"/proc/{self.process.pid}/fd/{entry}").startswith("socket:")
        return found

    def memory(self) -> int:
        """Return the memory that the inspector does not share with the test, bytes."""
        with open(f"/proc/{self.process.pid}/smaps_rollup", encoding="ascii") as rollup:
            return sum(int(line.split()[1]) * 1024 for line in rollup if line.startswith("Private_"))

    def connect(self, receive_buffer: int = 0) -> socket.socket:
        """Open a connection; its receive buffer has a fixed size if one is given."""
        sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(TIMEOUT)
        sock.connect(("127.0.0.1", self.port))
        return sock

    @contextmanager
    def open(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Iterator[HTTPResponse]:
        """Send a request; the body of the answer is still to be read."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)
        try:
            connection.connect()
            # The answer may come, and the connection be closed, before a large body is sent.
            with suppress(ConnectionError):
                connection.request(method, path, body, {"Connection": "close", **(headers or {})})
            with closing(connection.getresponse()) as answer:
                yield answer
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> tuple[int, Any]:
        """Return status and JSON of the answer to a GET."""
        with self.open("GET", path, None, headers) as answer:
            return answer.status, json.loads(answer.read())


class EventReader:
    """Reads a stream of server-sent events."""

    def __init__(self, answer: HTTPResponse) -> None:
        self._answer = answer

    def next(self, wanted: Callable[[dict[str, str]], bool] = lambda piece: True) -> dict[str, str]:
        """Return the next piece of the wanted kind; an empty one at the end of the stream."""
        while True:
            piece: dict[str, str] = {}
            while line := self._answer.readline().rstrip(b"\r\n").decode():
                name, _, value = line.partition(":")
                piece[name or "comment"] = value.strip()
            if not piece or (wanted(piece) and "retry" not in piece):
                return piece
