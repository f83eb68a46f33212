"""The target of the throw-away worker: serves an application without a listening socket, once."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from http.client import HTTPException
from multiprocessing.connection import Connection
from time import monotonic
from typing import Any

from sanic import Sanic
from sanic.models.server_types import ConnInfo

from worker.cli.check.arguments import Options
from worker.cli.check.findings import in_one_line
from worker.cli.check.imports import marking_imports
from worker.cli.check.reporter import Reporter
from worker.cli.check.request import get
from worker.cli.check.stand_in import LOOPBACK, StandInServer, WithAddress, is_stand_in
from worker.loader import AppLoader
from worker.serve import worker_serve

__all__ = ["START", "serve_once"]

# The key of the step that begins in the main process, and ends when the worker begins.
START = "start"
# The names of Sanic's events in steps.
LISTENERS = {
    ("init", "before"): "before_server_start",
    ("init", "after"): "after_server_start",
    ("shutdown", "before"): "before_server_stop",
    ("shutdown", "after"): "after_server_stop",
}
# The longest time for which a start may block the event loop without a warning, seconds.
BLOCKING = 1.0
PULSE = 0.05


def serve_once(*, options: Options, limit: float, pipe: Connection, **arguments: Any) -> Any:
    """Serve an application as :func:`worker.serve.worker_serve` does, and stop once it has served.

    Args:
        options (Options): The options of the check.
        limit (float): How long the start may take, seconds.
        pipe (Connection): The sending end of a pipe to the command.
        **arguments: Those of ``worker_serve``.
    """
    report = Reporter(pipe, "worker")
    report.send("pid", pid=os.getpid())
    report.end(START)
    report.allow(limit)
    report.observe()
    # Sanic keeps the open connections in it.
    arguments["connections"] = report.connections
    _Observer(report, options, arguments).observe()
    return worker_serve(**arguments)


# It sets handlers of its own for a stop.
serve_once.handles_stop_itself = True  # type: ignore[attr-defined]


class _Observer:
    """Reports the steps of a worker, and stops it when it has served."""

    def __init__(self, report: Reporter, options: Options, arguments: dict[str, Any]) -> None:
        self._report = report
        self._options = options
        self._arguments = arguments
        self._primary: StandInServer | None = None
        self._others: list[StandInServer] = []
        self._was_ready = False

    def observe(self) -> None:
        """Observe the functions of Sanic that a start calls in turn. They belong to this process alone."""
        apps: Any = Sanic
        loaders: Any = AppLoader
        connections: Any = ConnInfo
        load, startup, listeners = loaders.load, apps._startup, apps._server_event
        set_serving, new_loop, set_up = apps.set_serving, asyncio.new_event_loop, connections.__init__
        report, name = self._report, self._name
        begun: set[str] = set()

        def observed_load(loader: AppLoader) -> Any:
            with report.step("import (worker)"), marking_imports(self._options.imports, loader.module_input):
                return load(loader)

        async def observed_startup(app: Any) -> None:
            with report.step(name("routes", app)):
                await startup(app)

        async def observed_listeners(app: Any, concern: str, action: str, *args: Any, **kwargs: Any) -> None:
            text = name(LISTENERS.get((concern, action), action), app)
            if text in begun:
                # Sanic may call failed stop listeners once more.
                await listeners(app, concern, action, *args, **kwargs)
                return
            begun.add(text)
            with report.step(text):
                pulse = _Pulse(asyncio.get_running_loop())
                await listeners(app, concern, action, *args, **kwargs)
            if (blocked := pulse.stop()) > BLOCKING:
                report.warn(f"{text} blocked the event loop for {blocked:.1f} s")

        def observed_set_serving(app: Any, serving: bool) -> None:
            set_serving(app, serving)
            if serving and not self._was_ready:
                self._was_ready = True
                step = report.begin("ready")
                thread = threading.Thread(target=self._serve, args=(step,), daemon=True)
                # Before the loop runs for good, uvloop would lose the signal to stop.
                loop = self._report.loop
                assert loop is not None
                loop.call_soon(thread.start)

        def observed_loop() -> asyncio.AbstractEventLoop:
            loop: Any = new_loop()
            create = loop.create_server

            async def create_server(factory: Any, *args: Any, sock: Any = None, **kwargs: Any) -> Any:
                if not is_stand_in(sock):
                    return await create(factory, *args, sock=sock, **kwargs)
                server = StandInServer(loop, factory, kwargs)
                if sock is self._arguments.get("sock"):
                    self._primary = server
                else:
                    self._others.append(server)
                return server

            loop.create_server = create_server
            report.loop = loop
            return loop  # type: ignore[no-any-return]

        def observed_connection(info: Any, transport: Any, *args: Any, **kwargs: Any) -> None:
            set_up(info, WithAddress(transport, self._address), *args, **kwargs)

        loaders.load = observed_load
        apps._startup, apps._server_event = observed_startup, observed_listeners
        apps.set_serving = observed_set_serving
        asyncio.new_event_loop = observed_loop
        connections.__init__ = observed_connection

    @property
    def _address(self) -> tuple[str, int]:
        return self._arguments.get("host") or LOOPBACK, self._arguments.get("port") or 80

    def _name(self, step: str, app: Any) -> str:
        return step if app.name == self._arguments["app_name"] else f"{step} ({app.name})"

    def _serve(self, step: str) -> None:
        """Wait until all servers serve, send the requests, and stop the worker; a thread of its own."""
        report = self._report
        while not report.has_failed and not all(server.serves.wait(PULSE) for server in self._others):
            pass
        report.end(step)
        if not report.has_failed:
            for path in self._options.paths:
                report.allow(self._options.limit)
                self._request(path)
        report.allow(self._options.limit)
        # As the main process does.
        os.kill(os.getpid(), signal.SIGINT)

    def _request(self, path: str) -> None:
        report, expected = self._report, self._options.expected
        report.last_logged()
        step = report.begin(f"GET {path}")
        began = monotonic()
        status = size = None
        try:
            if self._primary is None:
                raise HTTPException("the server speaks HTTP/3 only")
            is_tls = self._arguments.get("ssl") is not None
            status, size = get(self._primary.connect(), self._address, path, self._options.headers, is_tls)
            is_good = status < 400 if expected is None else status == expected
            wanted = "one below 400" if expected is None else expected
            problem = "" if is_good else f"status {status} instead of {wanted}"
        except (OSError, HTTPException) as error:
            problem = f"no response: {type(error).__name__}: {error}"
        seconds = monotonic() - began
        report.send("request", path=path, status=status, seconds=seconds, bytes=size, ok=not problem)
        if not problem:
            report.end(step, note=f"{status}, {size} bytes")
            if cause := report.last_logged():
                report.warn(f"GET {path} has logged an error: {in_one_line(cause)}")
        elif cause := report.last_logged():
            report.end(step, {**cause, "text": f"{problem}: {cause['text']}"})
        else:
            report.end(step, {"text": problem, "where": "", "traceback": ""})


class _Pulse:
    """Measures for how long the event loop is blocked at a time, until it is stopped."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._longest = 0.0
        self._last = monotonic()
        self._beat()

    def stop(self) -> float:
        """Return the longest time without a turn of the loop, seconds."""
        self._timer.cancel()
        return max(self._longest, monotonic() - self._last)

    def _beat(self) -> None:
        now = monotonic()
        self._longest = max(self._longest, now - self._last)
        self._last = now
        self._timer = self._loop.call_later(PULSE, self._beat)
