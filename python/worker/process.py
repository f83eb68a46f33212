"""A slot of the process table, and the worker that it belongs to, as the main process sees them.

This file is longer than 450 lines: a slot is one class, and its name, its state entry and the processes that
fill it belong together.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from datetime import datetime, timezone
from functools import partial
from inspect import Parameter, signature
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from signal import SIGTERM
from threading import Condition, Thread
from typing import Any, NamedTuple, Protocol, runtime_checkable

from sanic.http.constants import HTTP
from sanic.log import Colors, logger

from worker._spawn import liveness, processes
from worker._state import schema
from worker._state.entry import Entry
from worker._state.foreign import adapted
from worker._state.shared import SharedState
from worker.constants import (
    NAME_LIMIT,
    NEVER,
    SERVER_LABEL,
    WORKER_PREFIX,
    Phase,
    ProcessState,
    RestartOrder,
    excerpt,
    prefixed,
)
from worker.settings import Settings

__all__ = ["ProcessState", "Worker", "WorkerProcess", "get_now"]

# How long cleanup waits for the exit of a stopping process, seconds.
EXIT_TIMEOUT = 10.0


def get_now() -> datetime:
    """Return the current time, as an aware ``datetime`` in UTC."""
    return datetime.now(tz=timezone.utc)


class SlotStarted(NamedTuple):
    """A process was started in a slot."""

    slot: WorkerProcess


class SlotChanged(NamedTuple):
    """A slot has moved to a state."""

    slot: WorkerProcess
    state: ProcessState


class RestartAsked(NamedTuple):
    """A slot is to be restarted."""

    slot: WorkerProcess
    order: RestartOrder
    config: Mapping[str, Any]


SlotMessage = SlotStarted | SlotChanged | RestartAsked


class Mailbox(Protocol):
    """Takes messages of slots for the supervisor, which reads them later, in the thread of the loop."""

    @property
    def is_open(self) -> bool:
        """Whether the supervisor reads them: a loop runs."""

    def post(self, message: SlotMessage) -> None:
        """Leave a message, from any thread."""


@runtime_checkable
class AskedTarget(Protocol):
    """A target that the main process asks before it starts the processes, and tells after their end.

    Users give no method such a name: the public methods of an inspector are commands.
    """

    def __before_start__(self, settings: Settings | None) -> str | None:
        """Return the URL at which the process will be reached; ``None``, after a log line, to refuse."""

    def __after_stop__(self, settings: Settings | None) -> None:
        """Remove files that an unclean end of the process may have left."""


class SentSignal(NamedTuple):
    """A signal to stop that was sent to a process.

    Attributes:
        at: When, on the monotonic clock.
        signum: Which signal.
        may_be_lost: Whether the process had not set its handlers yet: Sanic loses a signal meanwhile.
    """

    at: float
    signum: int
    may_be_lost: bool


class WorkerProcess:
    """A slot: a named position in the process table, which one process fills at a time.

    Its name and its entry in ``worker_state`` outlive the process. During a restart with ``STARTUP_FIRST``
    two processes bear its name: the previous one has the entry until the current one is ready. Under a
    running loop, :meth:`restart` only leaves a request: the supervisor restarts one slot after the other.

    Args:
        factory (Callable): Makes the process; called with ``name``, ``target``, ``kwargs`` and
            ``daemon=True``.
        name (str): Name of the process and of its entry in ``worker_state``.
        target (Callable): The target of the process.
        kwargs (dict[str, Any]): The arguments of ``target``.
        worker_state (MutableMapping[str, Any]): The state of all processes.
        restartable (bool): Whether a restart may be requested. Defaults to ``False``.
        mailbox (Mailbox | None): Takes messages for the supervisor. Defaults to ``None``.
        is_server (bool | None): Whether it serves requests. Defaults to ``None``: it does if its name
            contains ``SERVER_LABEL``.
    """

    THRESHOLD = 300
    """How long a start may take until the process is ready, in tenths of a second; under a manager, that of
    :class:`~worker.manager.WorkerManager` counts if it is longer."""
    SERVER_LABEL = SERVER_LABEL
    """The part of a name that marks a server, where ``is_server`` is not given."""
    SERVER_IDENTIFIER = "Srv"
    """The begin of a server's label in the log (read by Sanic 24.12 and later)."""

    def __init__(
        self,
        factory: Callable[..., Any],
        name: str,
        target: Callable[..., Any],
        kwargs: dict[str, Any],
        worker_state: MutableMapping[str, Any],
        restartable: bool = False,
        *,
        mailbox: Mailbox | None = None,
        is_server: bool | None = None,
    ) -> None:
        self.state = ProcessState.IDLE
        self.name = name
        self.is_server = self.SERVER_LABEL in name if is_server is None else is_server
        self.worker_state = worker_state
        self.mailbox = mailbox
        self.factory = factory
        self.ident = name
        self.target = target
        self.kwargs = kwargs
        self.restartable = restartable
        self.restart_policy = NEVER
        self.exclusive = False
        # Re-entrant: the thread that waits for an ack may set the state itself.
        self._changed = Condition()
        self._current_process: Any = None
        self._old_process: Any = None
        self._stops: dict[Any, SentSignal] = {}
        # The requests in `requests_before`, by process. A process that drains receives more.
        self._counted: dict[int, int] = {}
        self._is_ready = False
        # Fields that the main process writes for the next process of this slot. They are written when the
        # entry is handed over to it; again, because a foreign mapping loses one of two concurrent writes.
        self._pending_fields: dict[str, Any] = {}
        self.spawn()

    @property
    def pid(self) -> int:
        """The process id; ``None`` before the start."""
        return self._current_process.pid  # type: ignore[no-any-return]

    @property
    def exitcode(self) -> int | None:
        """The exit code, negative for the signal that ended it; ``None`` while it runs."""
        return self._current_process.exitcode  # type: ignore[no-any-return]

    @property
    def current(self) -> Any:
        """The process that fills the slot."""
        return self._current_process

    @property
    def previous(self) -> BaseProcess | None:
        """The process that serves under the slot's name while the current one starts."""
        return self._old_process  # type: ignore[no-any-return]

    @property
    def is_reloader(self) -> bool:
        """Whether its process reports changes of the code."""
        return getattr(self.target, "is_reloader", False) is True

    @property
    def absence(self) -> str:
        """The effect of its absence in words, if its target says so: it is never FAILED. Else empty."""
        text = getattr(self.target, "absence", "")
        return text if isinstance(text, str) else ""

    @property
    def is_supervised(self) -> bool:
        """Whether a loop runs, whose supervisor reads the slot's messages."""
        return self.mailbox is not None and self.mailbox.is_open

    def is_alive(self) -> bool:
        """Return whether the process runs; ``False`` before its start."""
        try:
            return liveness.is_alive(self._current_process)
        except AssertionError:
            return False

    # The current and the previous process

    def spawn(self) -> None:
        """Make the next process, without starting it.

        Raises:
            Exception: There is a process in this slot, and no restart is under way.
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

    def start(self) -> None:
        """Start the process that :meth:`spawn` has made."""
        self._log("Starting a process")
        entry = self._entry.read()
        self.set_state(ProcessState.STARTING)
        if "start_at" not in entry:
            self._note_own({"start_at": get_now(), "starts": entry.get("starts", 1)})
        # Written before the start, so that it never overwrites the ack of a quick child.
        self._record({"state": ProcessState.STARTED.name})
        # Stock contexts pass the environment to the child; ours pass it on the process object.
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
        self._post(SlotStarted(self))
        if self.state < ProcessState.STARTED:
            self._move(ProcessState.STARTED)
        if not self._waits_for_entry:
            self._take_entry()

    def set_state(self, state: ProcessState, force: bool = False) -> None:
        """Move to a state, here and in ``worker_state``.

        Args:
            state (ProcessState): The new state.
            force (bool): Allow an earlier state. Defaults to ``False``.

        Raises:
            Exception: ``state`` is earlier than the present one and ``force`` is not given.
        """
        if not force and state < self.state:
            raise Exception(
                f"{excerpt(self.name, NAME_LIMIT)} cannot go back from {self.state.name} to {state.name} "
                "without force=True"
            )
        self._move(state)
        self._record({"state": state.name})

    def join(self) -> None:
        """Wait until the process has exited."""
        self.set_state(ProcessState.JOINED)
        self._current_process.join()

    def exit(self) -> None:
        """Wait up to 10 seconds for the exit of the process, then remove its entry."""
        if self.is_alive():
            self._current_process.join(EXIT_TIMEOUT)
        if not self.is_alive():
            self.forget()

    def terminate(self) -> None:
        """Stop the process, once, and the previous one that it was to replace.

        The signal is SIGINT; for a process that has not begun, SIGTERM.
        """
        if self.state is ProcessState.TERMINATED:
            return
        self._log("Terminating a process", self.pid)
        stopping = [self._old_process, self._current_process]
        self._old_process = None
        self.set_state(ProcessState.TERMINATED, force=True)
        for process in stopping:
            # A process that could not be started raises AssertionError.
            with suppress(AssertionError, KeyError, AttributeError, ProcessLookupError):
                if process is not None and liveness.is_alive(process):
                    signum = liveness.stop_signal(process)
                    self._send_stop(process, signum, partial(os.kill, process.pid, signum))

    def restart(self, restart_order: RestartOrder = RestartOrder.SHUTDOWN_FIRST, **kwargs: Any) -> None:
        """Replace the process by a new one.

        With ``STARTUP_FIRST`` the current one stays until the new one has acknowledged its start. Under a
        running loop this only leaves a request for the supervisor.

        Args:
            restart_order (RestartOrder): The order. Defaults to ``SHUTDOWN_FIRST``.
            **kwargs: Passed to a ``target`` that has a ``config`` parameter (or takes any keyword)
                as ``config``, with names in upper case (for example ``RELOADED_FILES``).

        Raises:
            ConnectionError: The state of the workers cannot be reached; the current process stays.
            RuntimeError: The new process could not be started.
            TimeoutError: In the waiting thread: the new process sent no ack in time.
        """
        if self.is_supervised:
            self._entry.require(self.is_server)
            self._post(RestartAsked(self, restart_order, kwargs))
            return
        self.replace_process(restart_order, kwargs)
        if restart_order is RestartOrder.STARTUP_FIRST and self._old_process is not None:
            Thread(target=self._wait_to_terminate).start()

    # Steps of a restart, for the supervisor

    def replace_process(self, order: RestartOrder, config: Mapping[str, Any]) -> None:
        """Start a new process now. With ``SHUTDOWN_FIRST``, stop the current one before.

        Args:
            order (RestartOrder): The order.
            config (Mapping[str, Any]): As in :meth:`restart`.

        Raises:
            ConnectionError: The state of the workers cannot be reached; the current process stays.
            RuntimeError: The new process could not be started.
        """
        self._log("Restarting a process", self.pid)
        # Before any process is stopped: without a state the new one could not start.
        self._entry.require(self.is_server)
        entry = self._entry.read()
        if self._old_process is not None:
            # The starting process is replaced; the previous one goes on serving.
            self._terminate(self._current_process)
        elif order is RestartOrder.STARTUP_FIRST and self.is_alive():
            self._old_process = self._current_process
        self.set_state(ProcessState.RESTARTING, force=True)
        # Written before the new process starts: from then on, only that process writes whether it serves.
        anew = {"serving": False, "start_error": ""}
        stale = {key: value for key, value in anew.items() if entry.get(key)}
        self._note_own({"starts": entry.get("starts", 1) + 1, "restart_at": get_now()}, stale)
        if order is not RestartOrder.STARTUP_FIRST:
            self._terminate_now()
        if self._takes_config():
            self.kwargs.update({"config": {key.upper(): value for key, value in config.items()}})
        try:
            self.spawn()
            self.start()
        except Exception as error:
            if self._old_process is not None:
                self.roll_back()
            raise RuntimeError("Restart failed") from error
        if self._old_process is not None:
            self._log("Begin restart termination", self._current_process.pid)

    def stop_current(self) -> None:
        """Stop the current process; :meth:`replace_process` starts the next one."""
        self._log("Restarting a process", self.pid)
        self.set_state(ProcessState.RESTARTING, force=True)
        self.show_not_serving()
        self._terminate_now()

    def hand_over(self) -> None:
        """Hand the entry over to the current process, and stop the previous one."""
        old, self._old_process = self._old_process, None
        self.count_requests(old.pid)
        self._inherit_entry()
        self._log("Process acked. Terminating", old.pid)
        self._terminate(old)

    def continue_alone(self) -> None:
        """Forget the previous process: it has exited by itself."""
        self._old_process = None
        if not self._entry.is_foreign:
            self._inherit_entry()

    def roll_back(self) -> None:
        """Let the previous process be the current one again: the new one has failed."""
        self._current_process, self._old_process = self._old_process, None
        self._move(ProcessState.ACKED)
        if self._entry.is_foreign:
            self._entry.record({"state": ProcessState.ACKED.name, "serving": True, "pid": self.pid})

    def acknowledge(self) -> None:
        """Count the start of the current process as acknowledged."""
        self._move(ProcessState.ACKED)
        if self._old_process is None:
            self._take_entry(state=self.state.name)

    def on_exit(self, process: Any, is_ready: bool) -> None:
        """Drop the last writes of a process of this slot that has exited.

        Args:
            process (Process): The process.
            is_ready (bool): Whether the current process is ready.
        """
        self._stops.pop(process, None)
        self._counted.pop(process.pid, None)
        if self._entry.is_foreign and self.is_server and is_ready and process.pid != self.pid:
            self._take_entry(serving=True)
        self._entry.drop_staged(process.pid)

    def stop_sent(self, process: Any) -> SentSignal | None:
        """Return the stop signal that was sent to a process of this slot under a running loop, if any."""
        return self._stops.get(process)

    # The state entry

    def read_entry(self, pid: int | None = None) -> Mapping[str, Any]:
        """Return the fields that a process has written; by default the current one, not the previous one."""
        if pid is None:
            pid = self.pid if self._waits_for_entry else 0
        return self._entry.read(pid)

    def show_phase(self, phase: Phase) -> None:
        """Show the slot's phase in the entry."""
        name: str | None = phase.name.lower()
        # Without merging, this write may undo a concurrent one of the process itself. So only the phases
        # without a process are shown.
        if not self._entry.merges and phase not in (Phase.STOPPED, Phase.BACKOFF, Phase.FAILED):
            name = None
        self._is_ready = phase is Phase.READY
        if self._pending_fields.get("phase") != name:
            self.note({"phase": name})

    def show_not_serving(self) -> None:
        """Show in the entry that no process serves in the slot."""
        if self._entry.read().get("serving"):
            self._record({"serving": False})

    def note(self, fields: Mapping[str, Any]) -> None:
        """Write to the entry, whichever process owns it."""
        self._pending_fields.update(fields)
        self._entry.record(fields)

    def forget(self) -> None:
        """Remove the entry."""
        self._entry.remove()

    @property
    def _entry(self) -> Entry:
        return Entry(self.worker_state, self.name, self._last_known)

    @property
    def _waits_for_entry(self) -> bool:
        """Whether the previous process still owns the entry, as the current one is not ready."""
        return self._old_process is not None and not self._entry.is_foreign

    def _last_known(self) -> dict[str, Any]:
        """Return the last known fields of the process that owns the entry; none before the first start."""
        pid = getattr(self._old_process or self._current_process, "pid", None)
        if type(pid) is not int or self._entry.is_foreign:
            return {}
        # The pid makes it the owner: the next process stages its writes until the entry is handed over.
        return {
            "server": self.is_server,
            "state": self.state.name,
            **self._pending_fields,
            "serving": self._old_process is not None or self._is_ready,
            "pid": pid,
        }

    def count_requests(self, pid: int) -> bool:
        """Count the requests of a process that loses the entry, or has exited, among those of the slot.

        The entry shows them from its next handover on, or from the next :meth:`show_requests`.

        Returns:
            bool: Whether there are more than before.
        """
        requests = adapted(self.worker_state).numbers(pid).get(schema.REQUESTS, 0)
        more = requests - self._counted.get(pid, 0)
        self._counted[pid] = requests
        if more:
            before = self._pending_fields.get("requests_before", 0)
            self._pending_fields["requests_before"] = before + more
        return bool(more)

    def show_requests(self) -> None:
        """Show in the entry the requests of the processes of this slot that have exited."""
        self._entry.record({"requests_before": self._pending_fields["requests_before"]})

    def _inherit_entry(self) -> None:
        """Hand the entry over to the current process, without the previous one's ``serving``."""
        entry = self._entry
        serving = {"serving": False} if entry.read().get("serving") and not entry.is_foreign else {}
        self._take_entry(state=self.state.name, **serving)

    def _take_entry(self, **changes: Any) -> None:
        """Hand the entry over to the current process."""
        self._entry.hand_over(self.pid, {**self._pending_fields, **changes})

    def _record(self, changes: Mapping[str, Any]) -> None:
        if not self._waits_for_entry:
            self._entry.record(changes)

    def _note_own(self, fields: Mapping[str, Any], more: Mapping[str, Any] | None = None) -> None:
        """Write fields that only the main process knows, and remember them."""
        self._pending_fields.update(fields)
        self._record({**fields, **(more or {})})

    def _post(self, message: SlotMessage) -> None:
        if self.mailbox is not None and self.mailbox.is_open:
            self.mailbox.post(message)

    def _move(self, state: ProcessState) -> None:
        with self._changed:
            self.state = state
            self._changed.notify_all()
        self._post(SlotChanged(self, state))

    def _terminate(self, process: Any) -> None:
        """Stop a process by SIGTERM, as in a restart."""
        self._send_stop(process, SIGTERM, process.terminate)

    def _send_stop(self, process: Any, signum: int, send: Callable[[], object]) -> None:
        """Send a stop signal; under a running loop only the first one."""
        if self.is_supervised:
            if process in self._stops:
                return
            state = adapted(self.worker_state)
            has_handlers = not isinstance(state, SharedState) or state.numbers(process.pid).get("stoppable")
            self._stops[process] = SentSignal(time.monotonic(), signum, not has_handlers)
        send()

    def _terminate_now(self) -> None:
        stopping = [self._old_process] if self._old_process is not None else []
        self._old_process = None
        if not stopping:
            if not self.is_alive():
                return
            stopping = [self._current_process]
        self._log("Begin restart termination", stopping[0].pid)
        for process in stopping:
            # The next process may take the entry before this one has exited.
            self.count_requests(process.pid)
            self._terminate(process)

    def _wait_to_terminate(self) -> None:
        self._log("Waiting for process to be acked", self._old_process.pid)
        seconds = self.THRESHOLD / 10
        with self._changed:
            if not self._changed.wait_for(lambda: self.state is ProcessState.ACKED, timeout=seconds):
                name = excerpt(self.name, NAME_LIMIT)
                raise TimeoutError(f"Worker {name} failed to come ack within {seconds} seconds")
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

    def _log(self, event: str, *pid: int | None) -> None:
        """Write a line to the debug log. Users rely on its text, and on the order of such lines."""
        where = f" {Colors.BLUE}[%s]" if pid else ""
        name = excerpt(self.name, NAME_LIMIT)
        logger.debug(f"{Colors.BLUE}{event}: {Colors.BOLD}{Colors.SANIC}%s{where}{Colors.END}", name, *pid)


class Worker:
    """One or more processes that run the same function.

    Args:
        ident (str): The worker's name, without prefix: ``Server-0``, ``Reloader``.
        serve (Callable): The target of each process.
        server_settings (dict[str, Any]): The arguments of ``serve``; each process has its own copy.
        context (BaseContext): Makes the processes (``multiprocessing.get_context()``).
        worker_state (MutableMapping[str, Any]): The state of all processes.
        num (int): The number of processes. Defaults to ``1``.
        restartable (bool): Whether a restart may be requested. Defaults to ``False``.
        tracked (bool): Whether the worker stays in the table after its exit. Defaults to ``True``.
        auto_start (bool): Whether the manager starts it by itself. Defaults to ``True``.
        label (str): The text before its lines in the log (Sanic 24.12 and later). Defaults to
            ``ident``.
        settings (Settings | None): The settings for the processes. Defaults to ``None``.
        restart_policy (str): When a process is replaced after it exits by itself: ``always``, ``on-failure``
            or ``never``. Defaults to ``never``.
        mailbox (Mailbox | None): Takes messages for the supervisor. Defaults to ``None``.
        is_server (bool | None): Whether the processes serve requests. Defaults to ``None``: their names
            tell.
        application (str): The application, for the titles of the processes. Defaults to none.

    Attributes:
        address: The URL at which the processes are reached, if their target has given one; else empty.
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
        mailbox: Mailbox | None = None,
        is_server: bool | None = None,
        application: str = "",
    ) -> None:
        self.ident = ident
        self.name = ident
        self.label = excerpt(label or ident, NAME_LIMIT)
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
        self.mailbox = mailbox
        self.is_server = is_server
        self.application = application
        self.address = ""
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
            factory=processes.factory(
                self.context, self.settings, self.is_server is True, self.worker_state, self.application
            ),
            name=prefixed(self.WORKER_PREFIX, f"{self.ident}-{len(self.processes)}"),
            target=self.serve,
            kwargs={**self.server_settings},
            worker_state=self.worker_state,
            restartable=self.restartable,
            mailbox=self.mailbox,
            is_server=self.is_server,
        )
        process.ident = self.label
        process.restart_policy = self.restart_policy
        # A UDP port cannot be bound twice.
        process.exclusive = self.server_settings.get("version") is HTTP.VERSION_3
        self.processes.add(process)
        return process

    def may_start(self) -> bool:
        """Return whether to start the processes: their target can refuse (:class:`AskedTarget`)."""
        # It may be a user's method, and runs in the main process. The process itself checks again.
        with suppress(Exception):
            target: Any = self.serve
            if isinstance(target, AskedTarget):
                address = target.__before_start__(self.settings)
                self.address = excerpt(address or "")
                return address is not None
        return True

    def after_stop(self) -> None:
        """Tell the target, in the main process, that all processes have ended (:class:`AskedTarget`)."""
        target: Any = self.serve
        with suppress(Exception):
            if self.address and isinstance(target, AskedTarget):
                target.__after_stop__(self.settings)

    def has_alive_processes(self) -> bool:
        """Return whether any of the processes runs."""
        return any(process.is_alive() for process in self.processes)
