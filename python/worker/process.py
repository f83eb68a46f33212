"""One process and the worker it belongs to, as main sees them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from datetime import datetime, timezone
from inspect import Parameter, signature
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from signal import SIGINT
from threading import Condition, Thread
from typing import Any, Protocol

from sanic.log import Colors, logger

from worker import launch
from worker.constants import SERVER_LABEL, ProcessState, RestartOrder
from worker.entry import Entry

__all__ = ["ProcessState", "Worker", "WorkerProcess", "get_now"]

# How long cleanup waits for a process that was told to leave, seconds.
EXIT_TIMEOUT = 10.0


def get_now() -> datetime:
    """The current time, as an aware ``datetime`` in UTC."""
    return datetime.now(tz=timezone.utc)


class Overseer(Protocol):
    """Who watches over processes while it is at work: the manager's loop."""

    @property
    def at_work(self) -> bool:
        """Whether it watches now."""

    def watch(self, process: WorkerProcess) -> None:
        """Watch over the process that has just been started in this place."""

    def moved(self, process: WorkerProcess) -> None:
        """Take note that the state of this place has changed."""


class WorkerProcess:
    """A named place in the table that one process fills at a time.

    The name and the entry in ``worker_state`` outlive the process: a restart puts a new one in the
    same place.

    Args:
        factory (Callable): Makes the process; called with ``name``, ``target``, ``kwargs`` and
            ``daemon=True``.
        name (str): Name of the process and of its entry in ``worker_state``. One that has
            ``SERVER_LABEL`` in it is a server.
        target (Callable): What the process runs.
        kwargs (dict[str, Any]): The arguments of ``target``.
        worker_state (MutableMapping[str, Any]): The state of all processes.
        restartable (bool): Whether a restart may be asked for. Defaults to ``False``.
        overseer (Overseer | None): Is told of every start, and waits for acks in place of a thread.
            Defaults to ``None``.
    """

    THRESHOLD = 300
    """How long a zero-downtime restart waits for the ack of the new process, in tenths of a second."""
    SERVER_LABEL = SERVER_LABEL
    """What the name of a server has in it."""
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
    ) -> None:
        self.state = ProcessState.IDLE
        self.factory = factory
        self.name = name
        self.ident = name
        self.target = target
        self.kwargs = kwargs
        self.worker_state = worker_state
        self.restartable = restartable
        self.overseer = overseer
        # Re-entrant: whoever starts the waiting thread may run its target in the same thread.
        self._changed = Condition()
        self._old_process: Any = None
        # What main has to say of the process that is to fill this place: said when the entry is handed over
        # to it. (Over a foreign mapping, two who write one entry at once lose one of the two writes: said
        # again.)
        self._facts: dict[str, Any] = {}
        self.spawn()

    @property
    def is_server(self) -> bool:
        """Whether this is one of the processes that serve requests (by its name)."""
        return self.SERVER_LABEL in self.name

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

    def forget(self) -> None:
        """Remove the entry of the process."""
        self._entry.remove()

    def terminate(self) -> None:
        """Tell the process to leave (SIGINT), once; and the predecessor that it was to replace."""
        if self.state is ProcessState.TERMINATED:
            return
        self._log("Terminating a process", self.pid)
        leaving = [self._old_process, self._current_process]
        self._old_process = None
        self.set_state(ProcessState.TERMINATED, force=True)
        for process in leaving:
            if process is not None and process.is_alive():
                with suppress(KeyError, AttributeError, ProcessLookupError):
                    os.kill(process.pid, SIGINT)

    def restart(self, restart_order: RestartOrder = RestartOrder.SHUTDOWN_FIRST, **kwargs: Any) -> None:
        """Put a new process in the place of the present one.

        With ``STARTUP_FIRST`` the present one stays until the new one has acknowledged its start.
        Under a running manager loop it is the loop that waits for that; otherwise a thread does.

        Args:
            restart_order (RestartOrder): Which comes first. Defaults to ``SHUTDOWN_FIRST``.
            **kwargs: Handed to a ``target`` that has a ``config`` parameter (or takes any keyword)
                as ``config``, the names in upper case (``RELOADED_FILES``, for one).

        Raises:
            ConnectionError: The state of the workers cannot be reached; the present process stays.
            RuntimeError: The new process could not be made.
            TimeoutError: In the waiting thread: the new process sent no ack in time.
        """
        self._log("Restarting a process", self.pid)
        # Before anybody leaves: without a state the newcomer could not start.
        self._entry.require(self.is_server)
        entry = self._entry.read()
        startup_first = restart_order is RestartOrder.STARTUP_FIRST
        if self._old_process is not None:
            # A newcomer that has not been acked yet makes way; the one that serves keeps its place.
            self._current_process.terminate()
        elif startup_first and self.is_alive():
            self._old_process = self._current_process
        self.set_state(ProcessState.RESTARTING, force=True)
        # All of it before the newcomer writes as well; whether it serves is its own word from now on.
        serving = {"serving": False} if entry.get("serving") else {}
        self._state_facts({"starts": entry.get("starts", 1) + 1, "restart_at": get_now()}, serving)
        if not startup_first:
            self._terminate_now()
        if self._takes_config():
            self.kwargs.update({"config": {key.upper(): value for key, value in kwargs.items()}})
        try:
            self.spawn()
            self.start()
        except Exception as error:
            if self._old_process is not None:
                self.take_back()
            raise RuntimeError("Restart failed") from error
        if startup_first and self._old_process is not None:
            self._terminate_soon()

    def is_alive(self) -> bool:
        """Whether the process runs. ``False`` before its start."""
        try:
            return bool(self._current_process.is_alive())
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
    def pid(self) -> int:
        """The process id; ``None`` before the start."""
        return self._current_process.pid  # type: ignore[no-any-return]

    @property
    def exitcode(self) -> int | None:
        """The exit code, negative for the signal that ended it; ``None`` while it runs."""
        return self._current_process.exitcode  # type: ignore[no-any-return]

    @property
    def predecessor(self) -> BaseProcess | None:
        """The process that still holds this place's name while its successor starts."""
        return self._old_process  # type: ignore[no-any-return]

    def hand_over(self) -> None:
        """Let the predecessor go: its successor is ready."""
        old, self._old_process = self._old_process, None
        self._inherit_entry()
        self._log("Process acked. Terminating", old.pid)
        old.terminate()

    def lose_predecessor(self) -> None:
        """The predecessor has ended by itself."""
        self._old_process = None
        if not self._entry.is_foreign:
            self._inherit_entry()

    def said(self) -> Mapping[str, Any]:
        """What the process has said of itself, and not a predecessor of the same name."""
        return self._entry.read(self.pid if self._waits_for_entry else 0)

    def acked(self) -> None:
        """The process has acknowledged its start."""
        self._move(ProcessState.ACKED)
        if self._old_process is None:
            self._take_entry(state=self.state.name)

    def take_back(self) -> None:
        """Give the place back to the predecessor: its successor has failed."""
        self._current_process, self._old_process = self._old_process, None
        self._move(ProcessState.ACKED)
        if self._entry.is_foreign:
            self._entry.record({"state": ProcessState.ACKED.name, "serving": True, "pid": self.pid})

    def left(self, pid: int) -> None:
        """A process that had this place has ended: what it wrote last, under its name, does not count."""
        if self._entry.is_foreign and self.state is ProcessState.ACKED and pid != self.pid:
            self._take_entry(serving=True)
        self._entry.drop_part(pid)

    @property
    def _entry(self) -> Entry:
        return Entry(self.worker_state, self.name)

    @property
    def _waits_for_entry(self) -> bool:
        """Whether the entry is a predecessor's until this process is ready."""
        is_starting = ProcessState.RESTARTING <= self.state < ProcessState.ACKED
        return self._old_process is not None and is_starting and not self._entry.is_foreign

    def _inherit_entry(self) -> None:
        """Let the predecessor's entry be that of the present process: it serves if it has said so itself."""
        entry = self._entry
        serving = {"serving": False} if entry.read().get("serving") and not entry.is_foreign else {}
        self._take_entry(state=self.state.name, **serving)

    def _take_entry(self, **changes: Any) -> None:
        """Let the entry be that of the present process."""
        self._entry.hand_over(self.pid, {**self._facts, **changes})

    def _record(self, changes: Mapping[str, Any]) -> None:
        if not self._waits_for_entry:
            self._entry.record(changes)

    def _state_facts(self, facts: Mapping[str, Any], more: Mapping[str, Any] | None = None) -> None:
        """Record what main alone knows, and remember it."""
        self._facts.update(facts)
        self._record({**facts, **(more or {})})

    def _move(self, state: ProcessState) -> None:
        with self._changed:
            self.state = state
            self._changed.notify_all()
        if self.overseer is not None:
            self.overseer.moved(self)

    def _terminate_now(self) -> None:
        leaving = [self._old_process] if self._old_process is not None else []
        self._old_process = None
        if not leaving:
            if not self.is_alive():
                return
            leaving = [self._current_process]
        self._log("Begin restart termination", leaving[0].pid)
        for process in leaving:
            process.terminate()

    def _terminate_soon(self) -> None:
        self._log("Begin restart termination", self._current_process.pid)
        if self.overseer is None or not self.overseer.at_work:
            Thread(target=self._wait_to_terminate).start()

    def _log(self, what: str, *pid: int | None) -> None:
        """A line of the debug log; what it says, and in which order, is relied upon."""
        where = f" {Colors.BLUE}[%s]" if pid else ""
        logger.debug(
            f"{Colors.BLUE}{what}: {Colors.BOLD}{Colors.SANIC}%s{where}{Colors.END}", self.name, *pid
        )

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
        grace (float): How long a process may take to end when main is gone, seconds. Defaults to
            ``20.0``.
        overseer (Overseer | None): Who watches over the processes. Defaults to ``None``.
    """

    WORKER_PREFIX = "Sanic-"

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
        grace: float = 20.0,
        overseer: Overseer | None = None,
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
        self.grace = grace
        self.overseer = overseer
        for _ in range(num):
            self.create_process()

    def create_process(self) -> WorkerProcess:
        """Make one more process of this worker, without starting it."""
        process = WorkerProcess(
            factory=launch.factory(self.context, self.grace),
            name=f"{self.WORKER_PREFIX}{self.ident}-{len(self.processes)}",
            target=self.serve,
            kwargs={**self.server_settings},
            worker_state=self.worker_state,
            restartable=self.restartable,
            overseer=self.overseer,
        )
        process.ident = self.label
        self.processes.add(process)
        return process

    def has_alive_processes(self) -> bool:
        """Whether any of the processes runs."""
        return any(process.is_alive() for process in self.processes)
