"""The target of a server process: loads the application, serves it, and stops once."""

from __future__ import annotations

import asyncio
import errno
import os
import signal as signals
import socket
import warnings
from collections.abc import Collection
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from ssl import SSLContext
from typing import Any

from sanic.application.constants import ServerStage
from sanic.application.state import ApplicationServerInfo
from sanic.http.constants import HTTP
from sanic.log import error_logger
from sanic.models.server_types import Signal
from sanic.server.protocols.http_protocol import HttpProtocol
from sanic.server.runners import _serve_http_1, _serve_http_3

from worker._child import bootstrap, parent_watch, responder, stacks
from worker._child.drain import Drain
from worker._child.handshakes import secure
from worker._child.heartbeat import Heartbeat
from worker._child.logs import setup_logging
from worker._child.signals import STOPS
from worker._state import identity
from worker._state.foreign import adapted
from worker._state.shared import SharedState
from worker.constants import SERVER_LABEL, WORKER_PREFIX, excerpt, prefixed
from worker.loader import AppLoader, CertLoader, without_our_frames
from worker.multiplexer import WorkerMultiplexer

__all__ = ["worker_serve"]

# The time to the next attempt of a stop that came before the server runs, seconds.
TRY_AGAIN = 0.02


def worker_serve(
    host: str | None,
    port: int | None,
    app_name: str,
    monitor_publisher: Connection | None,
    app_loader: AppLoader | None,
    worker_state: dict[str, Any] | None = None,
    server_info: dict[str, list[ApplicationServerInfo]] | None = None,
    ssl: SSLContext | dict[str, str | os.PathLike[str]] | None = None,
    sock: socket.socket | None = None,
    unix: str | None = None,
    reuse_port: bool = False,
    loop: asyncio.AbstractEventLoop | None = None,
    protocol: type[asyncio.Protocol] = HttpProtocol,
    backlog: int = 100,
    register_sys_signals: bool = True,
    run_multiple: bool = False,
    run_async: bool = False,
    connections: set[Any] | None = None,
    signal: Any = Signal(),  # noqa: B008
    state: Any = None,
    asyncio_server_kwargs: dict[str, Any] | None = None,
    version: HTTP = HTTP.VERSION_1,
    config: dict[str, Any] | None = None,
    passthru: dict[str, Any] | None = None,
) -> Any:
    """Serve an application in this process until it is stopped.

    Sanic also calls it in the main process (``single_process``), without ``monitor_publisher``.

    Args:
        host (str | None): Address to bind if there is no ``sock``.
        port (int | None): Port to bind if there is no ``sock``.
        app_name (str): Name of the application if there is no ``app_loader``.
        monitor_publisher (Connection | None): The sending end of the control channel.
        app_loader (AppLoader | None): Makes the application.
        worker_state (MutableMapping[str, Any] | None): The state of all processes. Defaults to
            ``None``.
        server_info (dict[str, list[ApplicationServerInfo]] | None): The servers of every application,
            by its name. Defaults to ``None``.
        ssl (SSLContext | dict | None): A context, or the data for one. Defaults to ``None``.
        sock (socket.socket | None): The listening socket. Defaults to ``None``.
        unix (str | None): Path of the unix socket to listen on. Defaults to ``None``.
        reuse_port (bool): Passed to ``create_server``. Defaults to ``False``.
        loop (AbstractEventLoop | None): Ignored: the process has a loop of its own.
        protocol (type[Protocol]): The protocol of a connection. Defaults to ``HttpProtocol``.
        backlog (int): Length of the queue of the listening socket. Defaults to ``100``.
        register_sys_signals (bool): Whether SIGINT and SIGTERM stop the server. Defaults to ``True``.
        run_multiple (bool): Passed on to Sanic's runner. Defaults to ``False``.
        run_async (bool): Passed on to Sanic's runner. Defaults to ``False``.
        connections (set | None): The set of open connections, to be filled. Defaults to ``None``.
        signal (sanic.models.server_types.Signal): Tells connections that the server stops.
        state (Any): A mapping in which connections count their requests. Defaults to ``None``.
        asyncio_server_kwargs (dict[str, Any] | None): More arguments of ``create_server``. Defaults to
            ``None``.
        version (HTTP): The protocol's version. Defaults to ``HTTP.VERSION_1``.
        config (dict[str, Any] | None): Updates the application's configuration. Defaults to ``None``.
        passthru (dict[str, Any] | None): Attributes of the application in the main process. Defaults to
            ``None``.

    Returns:
        Any: The result of Sanic's runner (usually ``None``).

    Raises:
        RuntimeError: In a server process, without a publisher.
        Exception: Any error of the start, without a publisher. With one, it is logged and reported to the
            main process (``__TERMINATE_EARLY__``), and the process exits with code 1.
    """
    try:
        if _is_server_process():
            responder.start(worker_state)
        app = _load(app_name, app_loader)
        app.refresh(passthru)
        app.setup_loop()
        setup_logging(app)
        own_loop = asyncio.new_event_loop()
        asyncio.set_event_loop(own_loop)
        _hydrate(server_info)

        if isinstance(ssl, dict) or app.certloader_class is not CertLoader:
            ssl = app.certloader_class(ssl or {}).load(app)
            for info in app.state.server_info:
                info.settings["ssl"] = ssl

        connections = set() if connections is None else connections
        responder.observe(own_loop, connections)
        server = _Server(app, own_loop, connections)
        if _is_server_process():
            state = _begin_to_beat(
                app, own_loop, worker_state, version, state, connections, monitor_publisher
            )
            _become_worker(app, monitor_publisher, worker_state, connections, state)
            server.show_stops(worker_state)
            _watch_loop(app, own_loop)
            if sock is not None:
                unix = None
        if app.debug:
            own_loop.set_debug(app.debug)
        app.asgi = False
        if app.state.server_info:
            app.state.server_info[0].stage = ServerStage.SERVING
        if config:
            app.update_config(config)

        if version is HTTP.VERSION_3:
            server.report_serving_when_started()
            return _serve_http_3(host, port, app, own_loop, ssl)
        result = _serve_http_1(  # type: ignore[no-untyped-call]
            host,
            port,
            app,
            ssl,
            sock,
            unix,
            reuse_port,
            own_loop,
            protocol,
            backlog,
            register_sys_signals,
            run_multiple,
            run_async,
            connections,
            signal,
            state,
            asyncio_server_kwargs,
        )
        if server.error is not None:
            _report_failure(worker_state, server.error)
        return result
    except Exception as error:
        # Warnings about remains of the half-started application (coroutines never awaited) hide the error.
        warnings.simplefilter("ignore", category=RuntimeWarning)
        if not monitor_publisher:
            raise
        log_error(error)
        _report_failure(worker_state, error)
        WorkerMultiplexer(monitor_publisher, {}).terminate(True)
        return None


# It sets handlers of its own for a stop.
worker_serve.handles_stop_itself = True  # type: ignore[attr-defined]


def _load(app_name: str, app_loader: AppLoader | None) -> Any:
    if app_loader:
        return app_loader.load()
    from sanic import Sanic

    return Sanic.get_app(app_name)


def _hydrate(server_info: dict[str, list[ApplicationServerInfo]] | None) -> None:
    """Give every application the servers that the main process prepared for it."""
    if not server_info:
        return
    from sanic import Sanic

    for name, infos in server_info.items():
        app = Sanic.get_app(name)
        if app.state.server_info:
            continue
        app.state.server_info = []
        for info in infos:
            if not info.settings.get("app"):
                info.settings["app"] = app
            app.state.server_info.append(info)


def _is_server_process() -> bool:
    name = os.environ.get("SANIC_WORKER_NAME", "")
    return name.startswith(prefixed(WORKER_PREFIX, SERVER_LABEL))


def _begin_to_beat(
    app: Any,
    loop: asyncio.AbstractEventLoop,
    state: Any,
    version: HTTP,
    counts: Any,
    connections: set[Any],
    publisher: Connection | None = None,
) -> Any:
    """Begin to note requests and beats in the state; return the mapping in which connections count."""
    settings = bootstrap.current_settings()
    if not (isinstance(state, SharedState) or settings.recycles):
        return counts
    on_beat = None
    if settings.recycles and publisher is not None:
        # Imported on use: it is a matter of a setting.
        from worker._child.recycle import Recycler

        on_beat = Recycler(settings, WorkerMultiplexer(publisher, state)._request_recycling).check
    is_http3 = version is HTTP.VERSION_3
    # Sanic keeps no set of the connections of HTTP/3.
    known = None if is_http3 else connections
    counts = {} if counts is None else counts
    heartbeat = Heartbeat(loop, adapted(state), counts, known, settings.hang_timeout, on_beat)
    if settings.range is not None and publisher is not None:
        heartbeat.report_busy(WorkerMultiplexer(publisher, state)._report_busy)
    if is_http3:
        heartbeat.count_http3()
    app.after_server_stop(lambda _: heartbeat.last_beat())
    return heartbeat.counts


def _watch_loop(app: Any, loop: asyncio.AbstractEventLoop) -> None:
    """Warn of slow steps of the loop while the server runs, if the setting says so."""
    limit = bootstrap.current_settings().slow_loop_warning
    if limit:
        # Imported on use: it is a matter of a setting.
        from worker._child.slow_loop import SlowLoop

        slow_loop = SlowLoop(loop, limit)
        app.after_server_start(lambda _: slow_loop.begin())
        app.after_server_stop(lambda _: slow_loop.end())


def _become_worker(
    app: Any,
    publisher: Connection | None,
    state: dict[str, Any] | None,
    connections: set[Any],
    counts: dict[str, Any] | None,
) -> None:
    """Start the secondary servers with this one, and give every application its multiplexer."""
    if publisher is None:
        raise RuntimeError("No restart publisher found in worker process")
    if state is None:
        raise RuntimeError("No worker state found in worker process")
    from sanic import Sanic

    apps: list[Any] = list(Sanic._app_registry.values())
    app.before_server_start(partial(app._start_servers, apps=apps))
    for one in apps:
        one.multiplexer = WorkerMultiplexer(publisher, state)
        one.shared_ctx.lock()
        for info in one.state.server_info:
            # Connections of secondary servers drain with the others, and their requests count, too.
            info.settings["connections"] = connections
            info.settings["state"] = counts
            # With a path, Sanic would bind it anew and remove it at the end. Both belong to the main process.
            if info.settings.get("sock") is not None:
                info.settings["unix"] = None


def _report_failure(state: Any, error: BaseException) -> None:
    """Let this process exit as a failed start, and write the error to its entry."""
    bootstrap.mark_failed()
    kind = type(error).__name__
    if isinstance(error, OSError) and error.errno is not None:
        kind = errno.errorcode.get(error.errno, kind)
    if kind == "EADDRINUSE":
        error_logger.error(
            "The address is in use. If each worker binds it itself, a new worker cannot bind it before the "
            "previous worker has exited: set SANIC_WORKER_RELOAD_ORDER=SHUTDOWN_FIRST."
        )
    name = os.environ.get("SANIC_WORKER_NAME", "")
    # The main process can do without it.
    with suppress(Exception):
        text = f"{kind}: {excerpt(error)}"
        adapted(state).update_entry(name, {"start_error": text}, identity.worker_pid())


def log_error(error: Exception, text: str = "") -> None:
    """Log an error of the application behind a text, with its traceback."""
    error_logger.error("%s%s", text, excerpt(error), exc_info=without_our_frames(error))


def describe_stacks(loop: asyncio.AbstractEventLoop | None, connections: Collection[Any] = ()) -> str:
    """Return the stacks of this process, with the tasks of a loop and the requests of connections."""
    return stacks.describe(stacks.Subject(loop, connections))


class _Server:
    """The server, controlled through the event loop that this module makes for it.

    In Sanic, every signal stops the loop. A second one, or one during an asynchronous start or stop listener,
    would break that listener off. So this loop replaces Sanic's handlers by its own: at the first signal the
    server stops accepting, and it stops as soon as it runs. Later signals have no effect.

    Attributes:
        error: The error of listening; ``None`` if the server listens.
    """

    def __init__(self, app: Any, loop: asyncio.AbstractEventLoop, connections: set[Any]) -> None:
        self.error: BaseException | None = None
        self._app = app
        self._loop = loop
        self._state: SharedState | None = None
        self._drain = Drain(loop, connections, bootstrap.current_settings().idle_drain_timeout)
        self._drain.register(app)
        self._stopping = False
        self._reports_serving = False
        self._episodes = 0
        # The handlers of the process while the loop has ours.
        self._handlers: dict[int, Any] = {}
        self._add, self._remove = loop.add_signal_handler, loop.remove_signal_handler
        self._stop, self._create = loop.stop, loop.create_server
        self._run_episode, self._run_for_good = loop.run_until_complete, loop.run_forever
        instance: Any = loop
        instance.add_signal_handler = self._add_handler
        instance.remove_signal_handler = self._remove_handler
        instance.stop = self._loop_stops
        instance.run_until_complete = self._run_until_complete
        instance.run_forever = self._run_forever
        instance.create_server = self._create_server

    def report_serving_when_started(self) -> None:
        """Report that the server accepts connections, where Sanic does not (HTTP/3).

        A listener is too early for the report: other listeners may follow. Their episode ends before the
        loop runs for good, and uvloop loses a signal to stop that answers the report in between.
        """
        self._reports_serving = True

    def show_stops(self, state: Any) -> None:
        """Show in the shared state whether the stop handlers are set."""
        if isinstance(state, SharedState):
            self._state = state

    def stop(self) -> None:
        """Stop the server, once, as soon as it runs."""
        if self._stopping:
            return
        self._drain.stop_accepting()
        parent_watch.stop_begun()
        if self._state is not None:
            self._state.flag(stopping=True)
        if self._episodes:
            self._loop.call_later(TRY_AGAIN, self.stop)
        else:
            self._app.stop(terminate=False)

    def _add_handler(self, signum: int, callback: Any, *args: Any) -> None:
        if isinstance(callback, partial) and callback.func == self._app.stop:
            self._add(signum, self.stop)
            self._handlers[signum] = signals.getsignal(signum)
        else:
            self._add(signum, callback, *args)
            if self._handlers.pop(signum, None) is not None:
                self._set_stoppable(False)

    def _begin_to_serve(self) -> None:
        """Show that the stop handlers are set, unless the application has set its own; report HTTP/3."""
        handlers = {signum: signals.getsignal(signum) for signum in STOPS}
        self._set_stoppable(self._handlers == handlers)
        responder.offer_signal()
        if self._reports_serving:
            self._app.set_serving(True)

    def _set_stoppable(self, stoppable: bool) -> None:
        """Show whether a stop signal reaches our handler, which ignores repeats."""
        if self._state is not None:
            self._state.flag(stoppable=stoppable)
        if stoppable:
            parent_watch.stop_handlers_set()

    def _remove_handler(self, signum: int) -> bool:
        if signum in (signals.SIGINT, signals.SIGTERM) and not self._loop.is_closed():
            # Without a handler, a repeated signal would end the process in the middle of its stop.
            return True
        removed = self._remove(signum)
        if signum in (signals.SIGINT, signals.SIGTERM) and bootstrap.is_child():
            signals.signal(signum, signals.SIG_IGN)
        return removed

    def _run_until_complete(self, future: Any) -> Any:
        # Sanic runs the loop in episodes (start, listeners), and between them until the stop.
        self._episodes += 1
        try:
            return self._run_episode(future)
        finally:
            self._episodes -= 1

    def _run_forever(self) -> None:
        # An episode calls this, too. Between episodes uvloop loses signals.
        if not self._episodes:
            self._loop.call_soon(self._begin_to_serve)
        self._run_for_good()

    def _loop_stops(self) -> None:
        # Each episode ends with a stop of the loop. Outside of an episode, the server is stopping.
        self._stopping = self._stopping or not self._episodes
        self._stop()

    async def _create_server(self, factory: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            factory = secure(self._loop, factory, kwargs, self._drain.handshakes, self._drain.make)
            server = await self._create(factory, *args, **kwargs)
        except BaseException as error:
            self.error = error
            raise
        self._drain.add_server(server)
        return server
