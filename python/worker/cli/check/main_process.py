"""The throw-away main process: Sanic's command, with stand-ins for sockets and for the manager's loop."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
from contextlib import suppress
from functools import partial
from importlib import import_module
from multiprocessing.connection import Connection, wait
from typing import Any

from sanic import Sanic, __version__
from sanic.exceptions import ServerKilled
from sanic.http.constants import HTTP

from worker._core import core_info
from worker.cli import sanic_command
from worker.cli.check.arguments import Options
from worker.cli.check.errors import describe
from worker.cli.check.imports import marking_imports
from worker.cli.check.reporter import Reporter
from worker.cli.check.server import START, serve_once
from worker.cli.check.stand_in import LOOPBACK, stand_in
from worker.cli.inspect.text import one_line
from worker.integration import install
from worker.integration.beginning import begin
from worker.loader import AppLoader
from worker.settings import resolve

__all__ = ["run"]

MAX_LINE = 300
# How often the worker is looked at, seconds.
INTERVAL = 0.05


def run(options: Options, pipes: str) -> None:
    """Run Sanic's command as the throw-away main process of a check.

    Args:
        options (Options): The options of the check.
        pipes (str): The descriptors of the pipes for the reports of this process and of the worker, and of
            the one that ends with the command, joined by commas.

    Raises:
        SystemExit: As in Sanic's command.
    """
    main, worker, lifeline = map(int, pipes.split(","))
    for descriptor in (main, worker, lifeline):
        os.set_inheritable(descriptor, False)
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()
    with suppress(OSError, ValueError, AttributeError):
        faulthandler.enable()
    report = Reporter(Connection(main, readable=False), "main")
    info = core_info()
    report.send(
        "versions",
        python=sys.version.split()[0],
        sanic=__version__,
        sanic_worker=info.version,
        core=info.core,
    )
    report.allow(options.limit)
    report.observe()
    sys.argv[1:] = options.server
    try:
        _MainProcess(report, options, Connection(worker, readable=False)).run()
    except BaseException as error:
        cause = error.__context__ if isinstance(error, SystemExit) else error
        if cause is not None and not isinstance(cause, ServerKilled):
            report.send("error", problem=describe(cause))
        raise


def _end_with(lifeline: int) -> None:
    """End this process when the command is gone, which holds the other end of a pipe."""
    os.read(lifeline, 1)
    os._exit(1)


class _MainProcess:
    """Reports the steps of the main process, and starts one worker."""

    def __init__(self, report: Reporter, options: Options, pipe: Connection) -> None:
        self._report = report
        self._options = options
        self._pipe = pipe
        self._settings = report.begin("settings")
        self._is_loaded = False
        self._has_begun = False
        self._target: Any = None

    def run(self) -> None:
        """Run Sanic's command."""
        install()
        self._observe()
        sanic_command.run(retries=False)

    def _observe(self) -> None:
        """Observe the functions of Sanic that a start calls in turn, and replace some by stand-ins."""
        startup: Any = import_module("sanic.mixins.startup")
        command: Any = import_module("sanic.cli.app").SanicCLI
        loaders: Any = AppLoader
        apps: Any = Sanic
        load, prepare, trigger, kind = (
            AppLoader.load,
            Sanic.prepare,
            startup.trigger_events,
            startup.WorkerManager,
        )
        report, options = self._report, self._options

        def observed_load(loader: AppLoader) -> Any:
            # A forked worker loads it once more, and observes that itself.
            loaders.load = load
            report.end(self._settings)
            report.allow(options.limit)
            report.send("target", target=loader.module_input)
            with report.step("import"), marking_imports(options.imports, loader.module_input):
                app = load(loader)
            self._is_loaded = True
            return app

        def observed_prepare(app: Any, *args: Any, **kwargs: Any) -> None:
            if not self._is_loaded:
                # The application prepares another one while it is imported.
                prepare(app, *args, **kwargs)
                return
            report.allow(options.limit)
            with report.step("prepare"):
                prepare(app, *args, **kwargs)

        def observed_trigger(events: Any, loop: Any, app: Any = None, **kwargs: Any) -> None:
            names = [name for name, found in app.listeners.items() if found is events] if app else []
            if not names:
                trigger(events, loop, app, **kwargs)
                return
            report.allow(options.limit)
            report.loop = loop
            with report.step(names[0]):
                trigger(events, loop, app, **kwargs)

        def configure_socket(settings: dict[str, Any]) -> Any:
            self._change_user()
            # Nothing binds this path, and nothing may remove it: the server in use may listen there.
            settings["unix"] = None
            if settings.get("version") is HTTP.VERSION_3:
                settings.update(host=LOOPBACK, port=0)
                return None
            settings["sock"] = stand_in()
            return settings["sock"]

        run_worker = self._run_worker

        class Manager(kind):  # type: ignore[misc, valid-type]
            """Starts one server, and nothing else."""

            def run(self) -> None:
                run_worker(self)

        self._target = target = partial(serve_once, options=options, pipe=self._pipe, limit=options.limit)
        target.handles_stop_itself = True  # type: ignore[attr-defined]
        loaders.load = observed_load
        apps.prepare = observed_prepare
        startup.trigger_events = observed_trigger
        startup.configure_socket = configure_socket
        startup.WorkerManager = Manager
        startup.worker_serve = target
        for name in ("_repl", "_setup_daemon"):
            if hasattr(command, name):
                setattr(command, name, lambda *_: None)

    def _change_user(self) -> None:
        """Change the user as a server does when its sockets are bound, once."""
        chosen = resolve({})
        if not self._has_begun and (chosen.user or chosen.group):
            with self._report.step("user"):
                # The pid file is that of the server in use.
                begin(is_managed=False)
        self._has_begun = True

    def _run_worker(self, manager: Any) -> None:
        """Start the first server, and wait for its exit. Its commands have no effect."""
        report = self._report
        slot = next(process for process in manager.transient_processes if process.is_server)
        limit = self._options.timeout or max(manager.THRESHOLD, slot.THRESHOLD) / 10
        self._target.keywords["limit"] = limit
        report.begin("start of the worker", START)
        report.allow(limit, elsewhere=True)
        try:
            slot.start()
        except BaseException as error:
            report.end(START, describe(error))
            raise
        commands = manager.monitor_subscriber
        # A process that the worker has forked may keep the sentinel open.
        while slot.exitcode is None:
            if commands in wait([commands, slot.current.sentinel], INTERVAL):
                self._report_command(commands)
        while commands.poll():
            self._report_command(commands)
        slot.join()
        report.send("exit", code=slot.exitcode)
        for worker in manager.workers:
            for process in worker.processes:
                process.forget()
        report.allow(self._options.limit)
        if slot.exitcode != 0:
            raise ServerKilled

    def _report_command(self, commands: Any) -> None:
        """Report a command of the worker, except for the one of a failed start."""
        try:
            command = commands.recv()
        except Exception as error:
            command = f"{type(error).__name__}: {error}"
        if command != "__TERMINATE_EARLY__":
            text = one_line(repr(command))[:MAX_LINE]
            self._report.warn(f"the application sent a command to the main process, without effect: {text}")
