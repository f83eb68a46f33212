"""A server process under test: `worker_serve` over a real socket, steered and observed."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPConnection
from multiprocessing import Pipe, get_context
from multiprocessing.connection import wait as wait_for
from typing import Any

from sanic import Sanic, text
from sanic.application.state import ApplicationServerInfo
from sanic.http.constants import HTTP

from support.running import until
from worker._spawn.processes import factory
from worker.integration import StateManager
from worker.loader import CertLoader
from worker.serve import worker_serve
from worker.settings import resolve

NAME = "Sanic-Server-0-0"
APP = "under_test"


class Loader:
    """Make the application in the server process; ``build`` adds the subject of the test."""

    def __init__(self, build: Callable[[Any], None]) -> None:
        self.build = build

    def load(self) -> Any:
        app = Sanic(APP, certloader_class=CertLoader)
        app.config.GRACEFUL_SHUTDOWN_TIMEOUT = 1.0

        @app.get("/")
        async def hello(request: Any) -> Any:
            return text("hello")

        self.build(app)
        return app


class Server:
    """`worker_serve` in a process of the manager's kind, over a real socket."""

    def __init__(
        self, build: Callable[[Any], None], *, idle_drain_timeout: float = 0.3, **options: Any
    ) -> None:
        self.sock = socket.create_server(("127.0.0.1", 0))
        self._state_manager = StateManager()
        self.state = self._state_manager.dict()
        self.state[NAME] = {"server": True}
        self.port = self.sock.getsockname()[1]
        self.subscriber, self.publisher = Pipe(True)
        self.state_reader, self._state_writer = Pipe(False)
        self.journal, writer = Pipe(False)
        self._writer = writer

        def with_journal(app: Any) -> None:
            app.ctx.say = writer.send
            build(app)

        self.process: Any = factory(
            get_context("fork"), resolve({"graceful_timeout": 5, "idle_drain_timeout": idle_drain_timeout})
        )(
            name=NAME,
            target=worker_serve,
            kwargs={
                "host": None,
                "port": None,
                "app_name": APP,
                "monitor_publisher": self.publisher,
                "app_loader": Loader(with_journal),
                "worker_state": self.state,
                "server_info": {APP: [ApplicationServerInfo({"version": HTTP.VERSION_1})]},
                "sock": self.sock,
                **options,
            },
            daemon=True,
        )
        self.process.start()

    def says(self, *words: Any) -> None:
        """Wait for the next report of the application."""
        for word in words:
            wait_for([self.journal, self.process.sentinel], 15)
            assert self.journal.poll(0), f"{word!r} was not said"
            assert self.journal.recv() == word

    def signal(self, *signums: signal.Signals) -> None:
        for signum in signums:
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, signum)

    def tell(self, signum: signal.Signals) -> None:
        """Send a signal once its loop runs for good: uvloop may lose one before."""
        # It answers before that already.
        until(lambda: self.state[NAME].get("serving"), "it to serve")
        assert self.answers() == "hello"
        self.signal(signum)

    def answers(self, path: str = "/") -> str:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=15)
        connection.request("GET", path, headers={"Connection": "close"})
        body = connection.getresponse().read().decode()
        connection.close()
        return body

    def ends(self) -> int:
        """Return its exit code; no report is left unread."""
        self.process.join(20)
        code = self.process.exitcode
        assert code is not None, "it lives on"
        assert not self.journal.poll(0), self.journal.recv()
        return int(code)

    def told(self) -> list[Any]:
        """Return the messages to the main process."""
        found = []
        while self.subscriber.poll(0):
            found.append(self.subscriber.recv())
        return found

    def close(self) -> None:
        self.process.kill()
        self.process.join()
        self.process.close()
        self._state_manager.shutdown()
        for end in (
            self.sock,
            self.subscriber,
            self.publisher,
            self.journal,
            self._writer,
            self.state_reader,
            self._state_writer,
        ):
            end.close()


def says_its_life(app: Any) -> None:
    for event in ("before_server_start", "after_server_start", "before_server_stop", "after_server_stop"):
        app.register_listener(lambda app, event=event: app.ctx.say(event), event)


STARTED = ("before_server_start", "after_server_start")
STOPPED = ("before_server_stop", "after_server_stop")
