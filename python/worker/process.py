"""One process and the worker it belongs to, as main sees them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from datetime import datetime, timezone
from inspect import Parameter, signature
from multiprocessing.context import BaseContext
from threading import Thread
from typing import Any

from sanic.http.constants import HTTP

from worker._spawn import liveness, processes
from worker._supervisor.restart_policy import NEVER
from worker.constants import WORKER_PREFIX, ProcessState, RestartOrder, prefixed
from worker.place import Overseer, Place
from worker.settings import Settings

__all__ = ["ProcessState", "Worker", "WorkerProcess", "get_now"]

# How long cleanup waits for a process that was told to leave, seconds.
EXIT_TIMEOUT = 10.0


def get_now() -> datetime:
    """The current time, as an aware ``datetime`` in UTC."""
    return datetime.now(tz=timezone.utc)


class WorkerProcess(Place):
    """A named place in the table that one process fills at a time.

    The name and the entry in ``worker_state`` outlive the process: a restart puts a new one in the
    same place.

    Args:
        factory (Callable): Makes the process; called with ``name``, ``target``, ``kwargs`` and
            ``daemon=True``.
        name (str): Name of the process and of its entry in ``worker_state``.
        target (Callable): What the process runs.
        kwargs (dict[str, Any]): The arguments of ``target``.
        worker_state (MutableMapping[str, Any]): The state of all processes.
        restartable (bool): Whether a restart may be asked for. Defaults to ``False``.
        overseer (Overseer | None): Is told of every start, and restarts in its own time. Defaults to
            ``None``.
        is_server (bool | None): Whether it serves requests. Defaults to ``None``: it does if its name has
            ``SERVER_LABEL`` in it.
    """

    THRESHOLD = 300
    """How long a start may take until the process is ready, in tenths of a second; under a manager, that of
    :class:`~worker.manager.WorkerManager` counts if it is longer."""
    SERVER_IDENTIFIER = "Srv"
    """What the label of a server in the log starts with (read by Sanic 24.12 and later)."""

    def __init__(
        self,
        factory: Callable[..., Any],
        name: str,
        target: Callable[..., Any],
        kwargs: dict[str, Any],
        worker_state: MutableMapping[str, Any],
        restartable: bool = False,
        *,
        overseer: Overseer | None = None,
        is_server: bool | None = None,
    ) -> None:
        super().__init__(name, worker_state, overseer, is_server)
        self.factory = factory
        self.ident = name
        self.target = target
        self.kwargs = kwargs
        self.restartable = restartable
        self.restart_policy = NEVER
        self.exclusive = False
        self.spawn()

    def set_state(self, state: ProcessState, force: bool = False) -> None:
        """Move to a state, here and in ``worker_state``.

        Args:
            state (ProcessState): Where to go.
            force (bool): Go there even if it lies behind. Defaults to ``False``.

        Raises:
            Exception: ``state`` lies behind the present one and ``force`` is not given.
        """
        if not force and state < self.state:
            raise Exception(
                f"{self.name} cannot go back from {self.state.name} to {state.name} unless it is forced to"
            )
        self._move(state)
        self._record({"state": state.name})

    def start(self) -> None:
        """Start the process that :meth:`spawn` has made."""
        self._log("Starting a process")
        entry = self._entry.read()
        self.set_state(ProcessState.STARTING)
        if "start_at" not in entry:
            self._state_facts({"start_at": get_now(), "starts": entry.get("starts", 1)})
        # Said before it is true, so that it is never said over the ack of a quick child.
        self._record({"state": ProcessState.STARTED.name})
        # Stock contexts hand the environment on to the child; ours carry it on the process object.
        os.environ["SANIC_WORKER_NAME"] = self.name
        os.environ["SANIC_WORKER_IDENTIFIER"] = self.ident
        try:
            self._current_process.start()
        except BaseException:
            self.set_state(ProcessState.FAILED, force=True)
            raise
        finally:
            del os.environ["SANIC_WORKER_NAME"]
            del os.environ["SANIC_WORKER_IDENTIFIER"]
        if self.overseer is not None and self.overseer.at_work:
            self.overseer.watch(self)
        if self.state < ProcessState.STARTED:
            self._move(ProcessState.STARTED)
        if not self._waits_for_entry:
            self._take_entry()

    def join(self) -> None:
        """Wait until the process has ended."""
        self.set_state(ProcessState.JOINED)
        self._current_process.join()

    def exit(self) -> None:
        """Wait up to 10 seconds for the end of the process; then remove its entry."""
        if self.is_alive():
            self._current_process.join(EXIT_TIMEOUT)
        if not self.is_alive():
            self.forget()

    def terminate(self) -> None:
        """Tell the process to leave, once; and the predecessor that it was to replace.

        The signal is SIGINT; for a process that has not begun, SIGTERM.
        """
        if self.state is ProcessState.TERMINATED:
            return
        self._log("Terminating a process", self.pid)
        leaving = [self._old_process, self._current_process]
        self._old_process = None
        self.set_state(ProcessState.TERMINATED, force=True)
        for process in leaving:
            # One that could not be started asserts that it is none.
            with suppress(AssertionError, KeyError, AttributeError, ProcessLookupError):
                if process is None or not liveness.is_alive(process):
                    continue
                signum = liveness.stop_signal(process)
                if self._is_first_stop(process, signum):
                    os.kill(process.pid, signum)

    def restart(self, restart_order: RestartOrder = RestartOrder.SHUTDOWN_FIRST, **kwargs: Any) -> None:
        """Put a new process in the place of the present one.

        With ``STARTUP_FIRST`` the present one stays until the new one has acknowledged its start. Under a
        running manager loop this only says what is wanted: the loop restarts one place after the other.

        Args:
            restart_order (RestartOrder): Which comes first. Defaults to ``SHUTDOWN_FIRST``.
            **kwargs: Handed to a ``target`` that has a ``config`` parameter (or takes any keyword)
                as ``config``, the names in upper case (``RELOADED_FILES``, for one).

        Raises:
            ConnectionError: The state of the workers cannot be reached; the present process stays.
            RuntimeError: The new process could not be made.
            TimeoutError: In the waiting thread: the new process sent no ack in time.
        """
        if self.is_overseen:
            self._entry.require(self.is_server)
            self.overseer.wish(self, restart_order, kwargs)  # type: ignore[union-attr]
            return
        self.renew(restart_order, kwargs)
        if restart_order is RestartOrder.STARTUP_FIRST and self._old_process is not None:
            Thread(target=self._wait_to_terminate).start()

    def renew(self, order: RestartOrder, config: Mapping[str, Any]) -> None:
        """Start a new process now; tell the present one to leave, unless it is to stay until then.

        Args:
            order (RestartOrder): Which comes first.
            config (Mapping[str, Any]): As in :meth:`restart`.

        Raises:
            ConnectionError: The state of the workers cannot be reached; the present process stays.
            RuntimeError: The new process could not be made.
        """
        self._log("Restarting a process", self.pid)
        # Before anybody leaves: without a state the newcomer could not start.
        self._entry.require(self.is_server)
        entry = self._entry.read()
        if self._old_process is not None:
            # A newcomer that is not ready yet makes way; the one that serves keeps its place.
            self._stop(self._current_process)
        elif order is RestartOrder.STARTUP_FIRST and self.is_alive():
            self._old_process = self._current_process
        self.set_state(ProcessState.RESTARTING, force=True)
        # All of it before the newcomer writes as well; whether it serves is its own word from now on.
        anew = {"serving": False, "start_error": ""}
        own_words = {key: value for key, value in anew.items() if entry.get(key)}
        self._state_facts({"starts": entry.get("starts", 1) + 1, "restart_at": get_now()}, own_words)
        if order is not RestartOrder.STARTUP_FIRST:
            self._terminate_now()
        if self._takes_config():
            self.kwargs.update({"config": {key.upper(): value for key, value in config.items()}})
        try:
            self.spawn()
            self.start()
        except Exception as error:
            if self._old_process is not None:
                self.take_back()
            raise RuntimeError("Restart failed") from error
        if self._old_process is not None:
            self._log("Begin restart termination", self._current_process.pid)

    def vacate(self) -> None:
        """Tell the present process to leave; :meth:`renew` puts the next one in its place."""
        self._log("Restarting a process", self.pid)
        self.set_state(ProcessState.RESTARTING, force=True)
        self.ceases_to_serve()
        self._terminate_now()

    def is_alive(self) -> bool:
        """Whether the process runs. ``False`` before its start."""
        try:
            return liveness.is_alive(self._current_process)
        except AssertionError:
            return False

    def spawn(self) -> None:
        """Make the next process, without starting it.

        Raises:
            Exception: There is a process in this place, and no restart is under way.
        """
        if self.state not in (ProcessState.IDLE, ProcessState.RESTARTING):
            raise Exception("Cannot spawn a worker process until it is idle.")
        self._entry.require(self.is_server)
        self._current_process = self.factory(
            name=self.name,
            target=self.target,
            kwargs=self.kwargs,
            daemon=True,
        )

    @property
    def exitcode(self) -> int | None:
        """The exit code, negative for the signal that ended it; ``None`` while it runs."""
        return self._current_process.exitcode  # type: ignore[no-any-return]

    def _terminate_now(self) -> None:
        leaving = [self._old_process] if self._old_process is not None else []
        self._old_process = None
        if not leaving:
            if not self.is_alive():
                return
            leaving = [self._current_process]
        self._log("Begin restart termination", leaving[0].pid)
        for process in leaving:
            self._stop(process)

    def _wait_to_terminate(self) -> None:
        self._log("Waiting for process to be acked", self._old_process.pid)
        seconds = self.THRESHOLD / 10
        with self._changed:
            if not self._changed.wait_for(lambda: self.state is ProcessState.ACKED, timeout=seconds):
                raise TimeoutError(f"Worker {self.name} failed to come ack within {seconds} seconds")
        if self._old_process is not None:
            self.hand_over()

    def _takes_config(self) -> bool:
        try:
            parameters = signature(self.target).parameters
        except (TypeError, ValueError):
            return False
        return "config" in parameters or any(
            parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values()
        )


class Worker:
    """One or more processes that run the same function.

    Args:
        ident (str): The worker's name, without prefix: ``Server-0``, ``Reloader``.
        serve (Callable): What each process runs.
        server_settings (dict[str, Any]): The arguments of ``serve``; each process has its own copy.
        context (BaseContext): Where the processes come from (``multiprocessing.get_context()``).
        worker_state (MutableMapping[str, Any]): The state of all processes.
        num (int): How many processes. Defaults to ``1``.
        restartable (bool): Whether a restart may be asked for. Defaults to ``False``.
        tracked (bool): Whether to keep the worker in the table when it is done. Defaults to ``True``.
        auto_start (bool): Whether the manager starts it by itself. Defaults to ``True``.
        label (str): What stands before its lines in the log (Sanic 24.12 and later). Defaults to
            ``ident``.
        settings (Settings | None): What the processes are to go by. Defaults to ``None``.
        restart_policy (str): When a process that ends by itself is replaced: ``always``, ``on-failure``
            or ``never``. Defaults to ``never``.
        overseer (Overseer | None): Who watches over the processes. Defaults to ``None``.
        is_server (bool | None): Whether they serve requests. Defaults to ``None``: their names tell.
    """

    WORKER_PREFIX = WORKER_PREFIX

    def __init__(
        self,
        ident: str,
        serve: Callable[..., Any],
        server_settings: dict[str, Any],
        context: BaseContext,
        worker_state: MutableMapping[str, Any],
        num: int = 1,
        restartable: bool = False,
        tracked: bool = True,
        auto_start: bool = True,
        *,
        label: str = "",
        settings: Settings | None = None,
        restart_policy: str = NEVER,
        overseer: Overseer | None = None,
        is_server: bool | None = None,
    ) -> None:
        self.ident = ident
        self.name = ident
        self.label = label or ident
        self.num = num
        self.context = context
        self.serve = serve
        self.server_settings = server_settings
        self.worker_state = worker_state
        self.processes: set[WorkerProcess] = set()
        self.restartable = restartable
        self.tracked = tracked
        self.auto_start = auto_start
        self.settings = settings
        self.restart_policy = restart_policy
        self.overseer = overseer
        self.is_server = is_server
        try:
            for _ in range(num):
                self.create_process()
        except BaseException:
            for process in self.processes:
                process.forget()
            raise

    def create_process(self) -> WorkerProcess:
        """Make one more process of this worker, without starting it."""
        process = WorkerProcess(
            factory=processes.factory(self.context, self.settings, self.is_server is True, self.worker_state),
            name=prefixed(self.WORKER_PREFIX, f"{self.ident}-{len(self.processes)}"),
            target=self.serve,
            kwargs={**self.server_settings},
            worker_state=self.worker_state,
            restartable=self.restartable,
            overseer=self.overseer,
            is_server=self.is_server,
        )
        process.ident = self.label
        process.restart_policy = self.restart_policy
        # A UDP port cannot be bound twice.
        process.exclusive = self.server_settings.get("version") is HTTP.VERSION_3
        self.processes.add(process)
        return process

    def may_start(self) -> bool:
        """Return whether to start the processes: what they run can refuse by a method ``_may_start``."""
        # It is code of the user's as well, and runs in main. A process that must not run asks again itself.
        with suppress(Exception):
            ask = getattr(self.serve, "_may_start", None)
            return ask is None or bool(ask(self.settings))
        return True

    def has_alive_processes(self) -> bool:
        """Whether any of the processes runs."""
        return any(process.is_alive() for process in self.processes)
