"""The manager: the process table, and the verbs that change it.

This file is longer than 450 lines: it is one public class, with documentation of every parameter.
"""

from __future__ import annotations

import os
import signal as signals
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import suppress
from enum import IntEnum, auto
from functools import partial, wraps
from itertools import chain, count
from multiprocessing.context import BaseContext
from signal import SIGKILL
from socket import socket
from typing import Any, TypeVar, cast

from sanic.exceptions import ServerKilled
from sanic.log import error_logger, logger

from worker import settings
from worker._supervisor import exit_code, reports
from worker._supervisor.banner import announce
from worker._supervisor.loop import Loop, frozen_heap
from worker._supervisor.model import ServerPhase
from worker._supervisor.operation import Kind, Operation, Origin
from worker._supervisor.pid_file import kept
from worker._supervisor.supervisor import Supervisor
from worker.constants import (
    MAIN_NAME,
    NAME_LIMIT,
    NEVER,
    ExitCode,
    RestartOrder,
    accept_newer_keywords,
    excerpt,
)
from worker.process import ProcessState, Worker, WorkerProcess
from worker.restarter import Restarter

__all__ = ["MonitorCycle", "WorkerManager"]


Verb = TypeVar("Verb", bound=Callable[..., None])


def in_the_loop(verb: Verb) -> Verb:
    """Hand a verb of the manager to the running loop when another thread calls it."""

    @wraps(verb)
    def call(manager: WorkerManager, *args: Any, **kwargs: Any) -> None:
        manager._loop.do(partial(verb, manager, *args, **kwargs))

    return cast(Verb, call)


class MonitorCycle(IntEnum):
    """The result of a turn of the loop: end the loop, or continue."""

    BREAK = auto()
    CONTINUE = auto()


class WorkerManager:
    """Manage the processes of a server: start, watch, restart, scale and stop them.

    Sanic makes one in the main process; a ``main_process_ready`` listener finds it as ``app.manager``.
    The verbs (:meth:`restart`, :meth:`scale`, :meth:`shutdown_server`, :meth:`shutdown`) act at once if no
    loop runs. While :meth:`monitor` runs, the loop calls them for commands of the workers, and a call from
    another thread is passed to the loop.

    Args:
        number (int): The number of servers at the start. The setting ``workers`` overrides it.
        serve (Callable): The target of each server, usually :func:`worker.serve.worker_serve`.
        server_settings (dict[str, Any]): The arguments of ``serve``.
        context (BaseContext): Makes the processes (``multiprocessing.get_context()``).
        monitor_pubsub (tuple[Connection, Connection]): The sending and the receiving end of the control
            channel.
        worker_state (MutableMapping[str, Any]): The state of all processes, name to entry.
        max_workers, graceful_timeout, ...: The settings of :mod:`worker.settings`; ``None`` counts as not
            given.

    Raises:
        RuntimeError: ``number`` is 0.
        ValueError: A setting is wrong.
    """

    THRESHOLD = WorkerProcess.THRESHOLD
    """How long a start may take until the server is ready, in tenths of a second; that of
    :class:`~worker.process.WorkerProcess` counts if it is longer."""
    MAIN_IDENT = MAIN_NAME = MAIN_NAME
    """The name of the main process and of its entry in ``worker_state``; ``MAIN_NAME`` from 24.12 on."""

    def __init__(
        self,
        number: int,
        serve: Callable[..., Any],
        server_settings: dict[str, Any],
        context: BaseContext,
        monitor_pubsub: tuple[Any, Any],
        worker_state: MutableMapping[str, Any],
        *,
        max_workers: int | None = None,
        graceful_timeout: float | None = None,
        restart_policy: str | None = None,
        backoff_initial: float | None = None,
        backoff_max: float | None = None,
        max_consecutive_failures: int | None = None,
        min_uptime: float | None = None,
        max_surge: int | None = None,
        max_unavailable: int | None = None,
        canary: bool | str | None = None,
        reload_order: RestartOrder | str | None = None,
        reload_ignore: str | Iterable[str] | None = None,
        idle_drain_timeout: float | None = None,
        inspector_open: bool | None = None,
        health_open: bool | None = None,
        health_port: int | None = None,
        health_host: str | None = None,
        inspector_unix: str | os.PathLike[str] | None = None,
        process_titles: bool | str | None = None,
        hang_timeout: float | str | None = None,
        slow_loop_warning: float | str | None = None,
        max_requests: int | None = None,
        max_lifetime: float | None = None,
        max_rss: int | str | None = None,
        max_memory_percent: float | None = None,
        recycle_jitter: float | None = None,
        workers: int | str | None = None,
        drain_delay: float | None = None,
        pid_file: str | os.PathLike[str] | None = None,
        preload: str | None = None,
    ) -> None:
        self.settings = settings.resolve(locals())
        settings.warn_of_unknown_names()
        self.context = context
        self.transient: dict[str, Worker] = {}
        self.durable: dict[str, Worker] = {}
        self.restarter = Restarter()
        self.monitor_publisher, self.monitor_subscriber = monitor_pubsub
        self.worker_state = worker_state
        self.worker_state[self.MAIN_IDENT] = {"pid": self.pid}
        self._was_killed = False
        self._serve = serve
        self._server_settings = server_settings
        self._server_count = count()
        self._supervisor = Supervisor(self)
        self._loop = Loop(self, self._supervisor)

        if number == 0:
            raise RuntimeError("Cannot serve with no workers")
        allowed = self.settings.workers
        for _ in range(number if allowed is None else allowed.least):
            self.create_server()

        self._loop.take_signals()

    @accept_newer_keywords
    def manage(
        self,
        ident: str,
        func: Callable[..., Any],
        kwargs: dict[str, Any],
        transient: bool = False,
        restartable: bool | None = None,
        tracked: bool = True,
        auto_start: bool = True,
        workers: int = 1,
        *,
        label: str = "",
        restart_policy: str | None = None,
        is_server: bool = False,
    ) -> Worker:
        """Add a process to the table; :meth:`run` starts it, if it is not running already.

        Args:
            ident (str): Its name; the processes are called ``Sanic-<ident>-<n>``. Also ``name=``.
            func (Callable): The target.
            kwargs (dict[str, Any]): The arguments of ``func``.
            transient (bool): Whether it is restarted along with the servers. Defaults to ``False``.
            restartable (bool | None): Whether a restart may name it. Defaults to ``transient``.
            tracked (bool): Whether it stays in the table after its exit. Defaults to ``True``.
            auto_start (bool): Whether it is started by itself. Defaults to ``True``.
            workers (int): The number of processes. Defaults to ``1``.
            label (str): The text before its lines in the log. Defaults to ``ident``.
            restart_policy (str | None): When it is replaced after it exits by itself: ``always``,
                ``on-failure`` or ``never``. Defaults to the attribute of this name of ``func``, else
                ``never``.
            is_server (bool): Whether it is one of the servers (:meth:`create_server`). Defaults to ``False``.

        Returns:
            Worker: The new worker.

        Raises:
            ValueError: There is a worker of that name, a transient one is not restartable, or there is no
                such policy.
        """
        if ident in self.transient or ident in self.durable:
            raise ValueError(f"Worker {excerpt(ident, NAME_LIMIT)} already exists")
        restartable = transient if restartable is None else restartable
        if transient and not restartable:
            raise ValueError("Cannot create a transient worker that is not restartable")
        policy = getattr(func, "restart_policy", None) if restart_policy is None else restart_policy
        worker = Worker(
            ident,
            func,
            kwargs,
            self.context,
            self.worker_state,
            workers,
            restartable,
            tracked,
            auto_start,
            label=label,
            settings=self.settings,
            restart_policy=settings.checked("restart_policy", policy or NEVER, "manage()"),
            mailbox=self._supervisor.mailbox,
            is_server=is_server,
            application=self._application,
        )
        (self.transient if transient else self.durable)[worker.ident] = worker
        return worker

    def create_server(self) -> Worker:
        """Add one more server to the table, without starting it. Its number is never used again."""
        number = next(self._server_count)
        return self.manage(
            f"{WorkerProcess.SERVER_LABEL}-{number}",
            self._serve,
            self._server_settings,
            transient=True,
            restartable=True,
            label=f"{WorkerProcess.SERVER_IDENTIFIER}{number:2}",
            restart_policy=self.settings.restart_policy,
            is_server=True,
        )

    @property
    def _application(self) -> str:
        """The application, as it was named on the command line, or by its own name."""
        return str(
            getattr(self.app_loader, "module_input", "") or self._server_settings.get("app_name") or ""
        )

    @property
    def app_loader(self) -> Any:
        """Loads the application in a worker; ``None`` if that is not known."""
        return self._server_settings.get("app_loader")

    @property
    def num_server(self) -> int:
        """The number of servers in the process table."""
        return len(self._servers)

    @property
    def _servers(self) -> list[Worker]:
        return [worker for worker in self.transient.values() if worker.is_server]

    @accept_newer_keywords
    def shutdown_server(self, ident: str | None = None) -> None:
        """Stop one server, and remove it from the table.

        Args:
            ident (str | None): Its name (``Server-0``); also ``name=``. Defaults to ``None``: a server
                without a running process if there is any, else the newest one.

        Raises:
            KeyError: There is no worker of that name.
        """
        if ident:
            worker = self.transient[ident]
        else:
            servers = self._servers
            if not servers:
                error_logger.error("Server shutdown failed because a server was not found.")
                return
            worker = next((one for one in servers if not one.has_alive_processes()), servers[-1])
        self._remove_server(worker)

    @in_the_loop
    def _remove_server(self, worker: Worker) -> None:
        self.transient.pop(worker.ident, None)
        for process in worker.processes:
            self._supervisor.operations.add_removed(process)
            if process.pid:
                process.terminate()
        for process in worker.processes:
            # The entry of a process that still runs is removed when it has exited.
            self._supervisor.retire(process)

    def run(self) -> None:
        """Start all workers, handle commands and signals until the stop, and clean up.

        Raises:
            ServerKilled: A server was not ready in time, or a second signal killed processes.
            PidFileError: The pid file is that of another running process, or cannot be written.
        """
        exit_code.note(ExitCode.STOPPED)
        with kept(self.settings.pid_file):
            self._run()

    def _run(self) -> None:
        try:
            self._manage_health()
            self.start()
            announce(self.num_server, self.workers, self.settings.range)
            self.monitor()
            self.join()
            self.terminate()
            self.cleanup()
            self._end()
        except BaseException:
            self._supervisor.children.kill()
            if exit_code.noted() is ExitCode.STOPPED:
                exit_code.note(ExitCode.NOT_STARTED)
            raise
        finally:
            for worker in self.workers:
                worker.after_stop()
            self._loop.upgrade.close()
            self._loop.close()

    def _end(self) -> None:
        """Note how the server has ended."""
        killed = self._was_killed or self._supervisor.children.was_overdue
        if self._supervisor.gave_up:
            exit_code.note(ExitCode.CRASH_LOOP)
        elif killed:
            exit_code.note(ExitCode.KILLED)
        if self._supervisor.gave_up or self._was_killed:
            raise ServerKilled

    def start(self) -> None:
        """Start the processes of every worker that starts by itself."""
        self._loop.open()
        for worker in self.workers:
            self.start_worker(worker)

    def start_worker(self, worker: Worker, operation: Operation | None = None) -> None:
        """Start the processes of a worker, unless it does not start by itself."""
        for process in worker.processes:
            if not (worker.auto_start and worker.may_start()):
                process.set_state(ProcessState.NONE, True)
            elif not self._loop.stop_asked:
                self._supervisor.start(process, operation)

    def join(self) -> None:
        """Wait until every process has exited. One that takes too long for its stop is killed."""
        logger.debug("Joining processes", extra={"verbosity": 1})
        self._loop.drain()
        for process in self.processes:
            if process.state < ProcessState.JOINED:
                logger.debug("Joining %s", process.pid, extra={"verbosity": 1})
                process.join()

    def terminate(self) -> None:
        """Stop the server, unless a shutdown has done so."""
        if not self._shutting_down:
            self.shutdown()

    def cleanup(self) -> None:
        """Remove the entries of the processes that have exited."""
        for process in self.processes:
            process.exit()

    @in_the_loop
    def restart(
        self,
        process_names: list[str] | None = None,
        restart_order: RestartOrder = RestartOrder.SHUTDOWN_FIRST,
        **kwargs: Any,
    ) -> None:
        """Restart processes.

        Args:
            process_names (list[str] | None): Their names; ``None``, the default, for all transient ones.
            restart_order (RestartOrder): The order. If all are restarted because of changed files, the
                setting ``reload_order`` overrides it. Defaults to ``SHUTDOWN_FIRST``.
            **kwargs: Passed to the new processes as ``config`` (``reloaded_files``).
        """
        if process_names is None and kwargs.get("reloaded_files"):
            restart_order = self._supervisor.reload_order(restart_order)
        with self._supervisor.preloading.renewal(), self._supervisor.operation(Kind.RESTART):
            transient, durable = [*self.transient_processes], [*self.durable_processes]
            self.restarter.restart(transient, durable, process_names, restart_order, **kwargs)

    def scale(self, num_worker: int) -> None:
        """Run this number of servers from now on.

        Args:
            num_worker (int): The number. Over HTTP the inspector takes 0 for 1; here 0 is an error.

        Raises:
            ValueError: ``num_worker`` is below 1, above the ``max_workers`` setting, or out of the range of
                the ``workers`` setting.
        """
        if num_worker <= 0:
            raise ValueError("Cannot scale to 0 workers.")
        if num_worker > self.settings.max_workers:
            raise ValueError(
                f"Cannot scale to {num_worker} workers: max_workers is {self.settings.max_workers}. "
                "Set SANIC_WORKER_MAX_WORKERS to allow more."
            )
        allowed = self.settings.range
        if allowed is not None and not allowed.least <= num_worker <= allowed.most:
            raise ValueError(f"Cannot scale to {num_worker} workers: the setting workers is {allowed}.")
        self._scale(num_worker)

    @in_the_loop
    def _scale(self, num_worker: int) -> None:
        change = num_worker - self.num_server
        with self._supervisor.operation(Kind.SCALE_DOWN if change < 0 else Kind.SCALE_UP) as operation:
            if change:
                origin = self._supervisor.operations.origin
                self._supervisor.log.append(reports.scaled(self.num_server, num_worker, origin, operation))
            for _ in range(-change):
                self.shutdown_server()
            restarted = self._supervisor.restart_failed()
            for _ in range(change):
                self.start_worker(self.create_server(), operation)
        if not change and not restarted:
            logger.info("No change needed. There are already %s workers.", num_worker)

    def monitor(self) -> None:
        """Wait until every server is ready, then handle commands, exits and signals until a stop.

        Raises:
            ServerKilled: A server was not ready in time.
        """
        self._loop.open()
        self.wait_for_ack()
        with frozen_heap():
            while self._cycle() is not MonitorCycle.BREAK:
                pass

    def wait_for_ack(self) -> None:
        """Wait until every server has acknowledged its start.

        Raises:
            ServerKilled: A server exited before that, or took longer than ``THRESHOLD``.
        """
        if reason := self._loop.wait_until_ready(self._supervisor.start_limit()):
            summary = "Not all workers acknowledged a successful startup. Shutting down."
            error_logger.error("%s %s", summary, reason)
            self.kill()

    @property
    def workers(self) -> list[Worker]:
        """All workers, the transient ones first."""
        return [*self.transient.values(), *self.durable.values()]

    @property
    def all_workers(self) -> Iterable[tuple[str, Worker]]:
        """All workers with their names, the transient ones first."""
        return [*self.transient.items(), *self.durable.items()]

    @property
    def processes(self) -> Iterator[WorkerProcess]:
        """The processes of all workers that have been started."""
        return (process for worker in self.workers for process in worker.processes if process.pid)

    @property
    def transient_processes(self) -> Iterator[WorkerProcess]:
        """The processes of the transient workers."""
        return (process for worker in [*self.transient.values()] for process in worker.processes)

    @property
    def durable_processes(self) -> Iterator[WorkerProcess]:
        """The processes of the durable workers."""
        return (process for worker in [*self.durable.values()] for process in worker.processes)

    def kill(self) -> None:
        """Kill every process at once, also those that are stopping; then raise ``ServerKilled``."""
        for process in filter(WorkerProcess.is_alive, self.processes):
            self._supervisor.log.append(reports.killed_at_once(process.name, process.pid))
            with suppress(ProcessLookupError):
                os.kill(process.pid, SIGKILL)
        self._supervisor.children.kill()
        self._loop.upgrade.kill()
        raise ServerKilled

    def shutdown_signal(self, signal: int, frame: Any) -> None:
        """Stop the server after a signal; after the second one, kill all processes.

        SIGTERM waits for the drain delay. A second signal ends it, and so does any other signal.

        Args:
            signal (int): The number of the signal.
            frame (FrameType | None): Ignored; a signal handler receives it.
        """
        if self._shutting_down and self._loop.upgrade.expects_stop():
            name = signals.Signals(signal).name
            logger.info("Received signal %s. The upgrade is stopping this process already.", name)
            return
        if self._shutting_down:
            logger.info("Shutdown interrupted. Killing.")
            self._was_killed = self._was_killed or bool(self._supervisor.children)
            with suppress(ServerKilled):
                self.kill()
        name = signals.Signals(signal).name
        logger.info("Received signal %s. Shutting down.", name)
        stop = self._loop.delayed_stop
        if signal != signals.SIGTERM or stop.is_waiting:
            stop.skip_delay()
        if not self._loop.can_be_woken:
            self.monitor_publisher.send(None)
        with self._supervisor.operations.requested_by(Origin(f"signal {name}"), Kind.SHUTDOWN):
            self.shutdown()

    @in_the_loop
    def shutdown(self) -> None:
        """Stop every process, and end a running loop; first wait for the drain delay while servers run."""
        self._loop.delayed_stop.request()

    @in_the_loop
    def upgrade(self) -> None:
        """Start a new main process by the command of this one, and stop once its workers all serve.

        It may have new code, another release of Sanic or of this package, and listens on the same sockets.
        If it exits, or is not ready in time, this one stays.

        Raises:
            ValueError: The upgrade is refused: the server does not run, an upgrade is under way, or this
                process cannot be replaced.
        """
        self._loop.upgrade.begin()

    def remove_worker(self, worker: Worker) -> None:
        """Remove an untracked worker whose processes have exited, and its state entries.

        Args:
            worker (Worker): The worker. It stays if it is tracked or has processes that run.
        """
        name = excerpt(worker.ident, NAME_LIMIT)
        if worker.tracked:
            error_logger.error("Worker %s is tracked and cannot be removed.", name)
            return
        if worker.has_alive_processes():
            error_logger.error("Worker %s has alive processes and cannot be removed.", name)
            return
        self.transient.pop(worker.ident, None)
        self.durable.pop(worker.ident, None)
        for process in worker.processes:
            process.forget()
        logger.info("Removed worker %s", name)

    def _manage_health(self) -> None:
        """Add the process that answers probes on a port of its own, if the setting names one."""
        if self.settings.health_port is not None:
            # Imported on use: few servers have it.
            from worker._inspect.health_server import HealthServer

            server = HealthServer(
                self.monitor_publisher,
                {"app": self._server_settings.get("app_name") or ""},
                self.worker_state,
                self.settings.health_host,
                self.settings.health_port,
            )
            self.manage("Health", server, {})

    @property
    def listening_sockets(self) -> list[socket]:
        """The sockets that the servers listen on, those of secondary applications included."""
        infos = chain.from_iterable(self._server_settings.get("server_info", {}).values())
        found = [self._server_settings.get("sock"), *(info.settings.get("sock") for info in infos)]
        return list(dict.fromkeys(sock for sock in found if isinstance(sock, socket)))

    @property
    def pid(self) -> int:
        """The process id of the main process."""
        return os.getpid()

    def _cycle(self) -> MonitorCycle:
        if not self._loop.is_over:
            self._loop.turn()
        return MonitorCycle.BREAK if self._loop.is_over else MonitorCycle.CONTINUE

    @property
    def _shutting_down(self) -> bool:
        return self._supervisor.phase is ServerPhase.STOPPING
