"""Executes the commands of the control channel."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from traceback import walk_tb
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from sanic.exceptions import ServerKilled
from sanic.log import error_logger, logger

from worker._control.coalesce import Coalescing
from worker._control.receive import decode_command
from worker._control.throttle import LogThrottle
from worker._core.messages import (
    Busy,
    Command,
    Corrupt,
    Event,
    Invalid,
    Manage,
    Ping,
    Received,
    Recycle,
    Requested,
    Restart,
    Scale,
    ScaleBy,
    Stop,
    Terminate,
    Upgrade,
    decoded_files,
)
from worker._supervisor.model import ServerPhase
from worker._supervisor.operation import Kind, Origin
from worker.constants import NAME_LIMIT, excerpt

if TYPE_CHECKING:
    from worker._supervisor.supervisor import Supervisor
    from worker.constants import RestartOrder
    from worker.process import Worker
    from worker.settings import Settings

__all__ = ["Commands"]

PACKAGE = __name__.partition(".")[0]
# The largest number of commands, and of names in them, that wait for the start of the servers. Equal ones
# count once.
DEFERRED = 10_000
# The kind of the operation that each command requests.
KINDS = {
    Restart: Kind.RESTART,
    Scale: Kind.SCALE_UP,
    ScaleBy: Kind.SCALE_UP,
    Terminate: Kind.SHUTDOWN,
    Upgrade: Kind.UPGRADE,
}
# How much is shown of each of the two texts from outside in one line, besides a name.
PART = 110


class CommandHandler(Protocol):
    """The manager, as commands use it."""

    settings: Settings

    @property
    def num_server(self) -> int:
        """The number of servers in the process table."""

    def restart(
        self, process_names: list[str] | None = ..., restart_order: RestartOrder = ..., **kwargs: Any
    ) -> None:
        """Restart processes."""

    def scale(self, num_worker: int) -> None:
        """Run this number of servers."""

    def manage(
        self,
        ident: str,
        func: Callable[..., Any],
        kwargs: dict[str, Any],
        transient: bool = ...,
        restartable: bool | None = ...,
        tracked: bool = ...,
        auto_start: bool = ...,
        workers: int = ...,
    ) -> Worker:
        """Add a process to the table."""

    def start_worker(self, worker: Worker) -> None:
        """Start the processes of a worker."""

    def shutdown(self) -> None:
        """Stop the server."""

    def upgrade(self) -> None:
        """Start a new main process, which takes the place of this one."""


class Commands:
    """Executes commands by the verbs of the manager. A command that fails does not affect the next one.

    Args:
        manager (CommandHandler): Its verbs are called.
        supervisor (Supervisor): Knows the processes, and whether the server starts or stops.
        name_of (Callable): Returns the name of a sender, by its pid.
        may_end (Callable): Whether an empty message ends the loop.
    """

    def __init__(
        self,
        manager: CommandHandler,
        supervisor: Supervisor,
        name_of: Callable[[int | None], str],
        may_end: Callable[[], bool],
    ) -> None:
        self._manager = manager
        self._supervisor = supervisor
        self._name_of = name_of
        self._may_end = may_end
        self._deferred = Coalescing()
        self.throttle = LogThrottle(name_of)

    def obey(self, event: Received) -> None:
        """Execute a command; while the servers start for the first time, defer it if possible."""
        # An opaque command is unpickled only now. That may run code, so earlier commands come first.
        command = decode_command(event.command)
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("Monitor message: %s", excerpt(command), extra={"verbosity": 2})
        if self._supervisor.phase.is_over:
            return
        carried = command.command if isinstance(command, Requested) else command
        if self._supervisor.phase is ServerPhase.STARTING and isinstance(
            carried, (Restart, Scale, ScaleBy, Manage, Upgrade)
        ):
            self._defer(command, event.sender)
            return
        self.guarded(partial(self._obey, command, event.sender), event.sender)

    def _defer(self, command: Command, sender: int | None) -> None:
        if self._deferred.size < DEFERRED:
            self._deferred.add(Received(command, sender))
        elif not self._deferred.has(command):
            self.throttle.log(
                sender,
                lambda: (
                    f"Monitor dropped a command from {self._name_of(sender)}: "
                    f"{DEFERRED} already wait until the servers have started."
                ),
            )

    def take_deferred(self) -> list[Event]:
        """Return the commands that were deferred during the first start, and forget them."""
        return self._deferred.take()

    def report_corrupt(self, event: Corrupt) -> None:
        """Log bytes that are not a message."""

        def text() -> str:
            return (
                f"Monitor dropped data from {self._name_of(event.sender)} that is no message: "
                f"{excerpt(event.reason, PART)}. It begins with {excerpt(event.sample, PART)}."
            )

        if event.sample:
            self.throttle.log(event.sender, text)
        else:
            # The end of the channel, which is reported once.
            error_logger.error("%s", text())

    def guarded(self, call: Callable[[], None], sender: int | None) -> None:
        """Make a call for a sender, and log its error, so that supervision goes on."""
        try:
            call()
        except ServerKilled:
            raise
        # A command may run code of its sender, such as the repr of an argument, which may raise any error.
        except BaseException as error:
            refusal = _refusal(error)
            verb = "Monitor refused" if refusal else "Monitor failed to execute"
            self.throttle.log(
                sender,
                lambda: f"{verb} a command from {self._name_of(sender)}{refusal}",
                exc_info=not refusal,
            )

    def _obey(self, command: Command, sender: int | None) -> None:
        match command:
            case Requested(requested, id_, origin, made_at):
                self._execute(requested, Origin(excerpt(origin, NAME_LIMIT), id_, made_at))
            case Restart() | Scale() | ScaleBy() | Terminate(early=False) | Upgrade():
                self._execute(command, Origin(self._name_of(sender)))
            case Ping():
                self._supervisor.log.pong(command.token)
            case Recycle():
                self._note_limit(command, sender)
            case Busy():
                if (child := self._supervisor.children.by_pid(sender)) is not None:
                    child.is_busy = True
            case Manage():
                self._manage(command, sender)
            case Terminate():
                self._supervisor.on_start_failure(sender, self._name_of(sender))
            case Stop() if self._may_end():
                self._supervisor.end_loop()
            case Stop():
                self.throttle.log(
                    sender, lambda: f"Monitor ignored an empty message from {self._name_of(sender)}."
                )
            case Invalid():
                self._report_invalid(command, sender)
            case _:
                _no_branch(command)

    def _execute(self, command: Command, origin: Origin) -> None:
        """Execute a command by the verb of the manager, as a request of an origin."""
        manager = self._manager
        with self._supervisor.operations.requested_by(origin, KINDS.get(type(command), Kind.RESTART)):
            match command:
                case Restart(names=names, files=files, order=order):
                    manager.restart(
                        process_names=None if names is None else [*names],
                        reloaded_files=files and decoded_files(files),
                        restart_order=order,
                    )
                case Scale():
                    manager.scale(command.num_workers)
                case ScaleBy():
                    manager.scale(manager.num_server + command.change)
                case Upgrade():
                    manager.upgrade()
                case _:
                    manager.shutdown()

    def _note_limit(self, limit: Recycle, sender: int | None) -> None:
        """Keep the first limit that a process reports, for :mod:`~worker._supervisor.duties.recycling`."""
        child = self._supervisor.children.by_pid(sender)
        if child is not None and child.recycle is None:
            child.recycle, child.recycle_asked_at = limit, time.monotonic()

    def _report_invalid(self, invalid: Invalid, sender: int | None) -> None:
        self.throttle.log(
            sender,
            lambda: (
                f"Monitor received an invalid message: {excerpt(invalid.message, PART, quoted=True)}, "
                f"from {self._name_of(sender)}: {excerpt(invalid.reason, PART)}. Ignoring it."
            ),
        )

    def _manage(self, command: Manage, sender: int | None) -> None:
        ceiling = self._manager.settings.max_workers
        if command.workers > ceiling:
            raise ValueError(
                f"Cannot manage {command.workers} processes of {excerpt(command.ident, NAME_LIMIT)}: "
                f"max_workers is {ceiling}. Set SANIC_WORKER_MAX_WORKERS to allow more."
            )
        try:
            worker = self._manager.manage(
                command.ident,
                command.func,
                {**command.kwargs},
                transient=command.transient,
                restartable=command.restartable,
                tracked=command.tracked,
                auto_start=command.auto_start,
                workers=command.workers,
            )
        except Exception as error:
            refusal = _refusal(error)
            self.throttle.log(
                sender,
                lambda: f"Monitor failed to manage worker {excerpt(command.ident, NAME_LIMIT)}{refusal}",
                exc_info=not refusal,
            )
            return
        self._manager.start_worker(worker)


def _no_branch(command: NoReturn) -> NoReturn:
    raise AssertionError(f"{type(command).__name__} has no branch")


def _refusal(error: BaseException) -> str:
    """Return the reason of a refusal, to be appended to a log line; empty text for a fault in some code.

    A ``ValueError`` is a refusal if this package raised it. The arguments of a process may raise another one,
    for instance when they are pickled. Its traceback is needed to find the fault.
    """
    if isinstance(error, ValueError):
        *_, (frame, _) = walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__", "").partition(".")[0] != PACKAGE:
            return ""
    elif not isinstance(error, ConnectionError):
        return ""
    return f": {excerpt(error)}"
