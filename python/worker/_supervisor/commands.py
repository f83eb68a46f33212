"""From a command that came down the pipe to what main does about it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from traceback import walk_tb
from typing import TYPE_CHECKING

from sanic.exceptions import ServerKilled
from sanic.log import error_logger, logger

from worker._control.receive import load
from worker._control.throttle import Complaints, safely_shown
from worker._core.messages import (
    Command,
    Corrupt,
    Event,
    Invalid,
    Manage,
    Opaque,
    Received,
    Restart,
    Scale,
    ScaleBy,
    Stop,
    Terminate,
    decoded_files,
)
from worker.constants import RestartOrder

if TYPE_CHECKING:
    from worker._supervisor.loop import Loop
    from worker.manager import WorkerManager

__all__ = ["Coalescing", "Commands", "coalesce"]

PACKAGE = __name__.partition(".")[0]
# How many commands may wait for the servers to start, and names in them, each that is equal counted once.
DEFERRED = 10_000


class Coalescing:
    """Makes one restart of those that follow each other and are equal.

    They are equal in files, in order, and in whether they name processes or mean all of them; the one that
    stands for them has the names of all, each once, in the order in which they came, and the first sender.
    Restarts that differ come in the order of the first of each kind; no other event is overtaken.

    Attributes:
        size: How many events, and names in them, there are.
    """

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._alike: dict[tuple[bool, str | None, bool], tuple[Received, Restart, dict[str, None]]] = {}
        self.size = 0

    def add(self, event: Event) -> None:
        """Take one more event."""
        command = event.command if isinstance(event, Received) else None
        if not isinstance(event, Received) or not isinstance(command, Restart):
            self._settle()
            self._events.append(event)
            self.size += 1
            return
        kind = _kind(command)
        if kind not in self._alike:
            self._alike[kind] = (event, command, {})
            self.size += 1
        _, _, names = self._alike[kind]
        before = len(names)
        names.update(dict.fromkeys(command.names or ()))
        self.size += len(names) - before

    def has(self, command: Command | Opaque) -> bool:
        """Whether another such command would change nothing."""
        if not isinstance(command, Restart) or (kind := _kind(command)) not in self._alike:
            return False
        _, _, names = self._alike[kind]
        return all(name in names for name in command.names or ())

    def take(self) -> list[Event]:
        """All of them, in order."""
        self._settle()
        events, self._events, self.size = self._events, [], 0
        return events

    def _settle(self) -> None:
        for event, command, names in self._alike.values():
            union = command.names is not None and len(names) != len(command.names)
            restart = replace(command, names=tuple(names)) if union else command
            self._events.append(Received(restart, event.sender) if union else event)
        self._alike.clear()


def _kind(command: Restart) -> tuple[bool, str | None, bool]:
    # Not the order itself: an enum takes its time to be hashed.
    return command.names is None, command.files, command.order is RestartOrder.STARTUP_FIRST


def coalesce(events: Iterable[Event]) -> list[Event]:
    """Make one restart of those that are equal (see :class:`Coalescing`)."""
    coalescing = Coalescing()
    for event in events:
        coalescing.add(event)
    return coalescing.take()


class Commands:
    """Obeys commands by the verbs of the manager; whatever comes of one, the next is obeyed too.

    Args:
        loop (Loop): Who waits for them.
        manager (WorkerManager): Whose verbs are called.
    """

    def __init__(self, loop: Loop, manager: WorkerManager) -> None:
        self._loop = loop
        self._manager = manager
        self._deferred = Coalescing()
        self.complaints = Complaints(loop.name_of)

    def obey(self, event: Received) -> None:
        """Do what is asked for; while the servers start, keep it if it can wait."""
        # What is opaque is loaded only now: that may do something, and comes after what was asked for before.
        command = load(event.command)
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("Monitor message: %s", safely_shown(command), extra={"verbosity": 2})
        if self._loop.ended:
            return
        if self._loop.starting and isinstance(command, (Restart, Scale, ScaleBy, Manage)):
            self._defer(command, event.sender)
            return
        self.guarded(partial(self._obey, command, event.sender), event.sender)

    def _defer(self, command: Command, sender: int | None) -> None:
        if self._deferred.size < DEFERRED:
            self._deferred.add(Received(command, sender))
        elif not self._deferred.has(command):
            self.complaints.make(
                sender,
                lambda: (
                    f"Monitor dropped a message, from {self._loop.name_of(sender)}: "
                    "too many wait already until the servers have started"
                ),
            )

    def take_deferred(self) -> list[Event]:
        """What was asked for while the servers were starting."""
        return self._deferred.take()

    def dropped(self, event: Corrupt) -> None:
        """Complain of what is no message."""

        def text() -> str:
            return (
                f"Monitor dropped what is no message, from {self._loop.name_of(event.sender)}: "
                f"{event.reason}; it begins with {safely_shown(event.sample)}"
            )

        if event.sample:
            self.complaints.make(event.sender, text)
        else:
            # The end of the pipe: the last that is heard of it.
            error_logger.error("%s", text())

    def guarded(self, call: Callable[[], None], sender: int | None) -> None:
        """Do what someone asked for; whatever comes of it, supervision goes on."""
        try:
            call()
        except ServerKilled:
            raise
        # What came down the pipe brings code of its own, in the reprs of its arguments for one.
        except BaseException as error:
            refusal = _refusal(error)
            verb = "Refused" if refusal else "Failed to obey"
            self.complaints.make(
                sender,
                lambda: f"{verb} a command of {self._loop.name_of(sender)}{refusal}",
                exc_info=not refusal,
            )

    def _obey(self, command: Command, sender: int | None) -> None:
        manager, loop = self._manager, self._loop
        if isinstance(command, Restart):
            names = None if command.names is None else [*command.names]
            files = command.files and decoded_files(command.files)
            manager.restart(process_names=names, reloaded_files=files, restart_order=command.order)
        elif isinstance(command, Scale):
            manager.scale(command.num_workers)
        elif isinstance(command, ScaleBy):
            manager.scale(manager.num_server + command.change)
        elif isinstance(command, Manage):
            self._manage(command, sender)
        elif isinstance(command, Terminate) and command.early:
            manager._overseer.has_failed(sender, loop.name_of(sender))
        elif isinstance(command, Terminate):
            manager.shutdown()
        elif isinstance(command, Stop) and loop.may_be_left:
            loop.leave()
        elif isinstance(command, Stop):
            self.complaints.make(
                sender, lambda: f"Monitor received an empty message from {loop.name_of(sender)}, and goes on"
            )
        elif isinstance(command, Invalid):
            self.complaints.make(
                sender,
                lambda: (
                    f"Monitor received an invalid message: {safely_shown(command.message)}, "
                    f"from {loop.name_of(sender)}: {command.reason}"
                ),
            )

    def _manage(self, command: Manage, sender: int | None) -> None:
        ceiling = self._manager.settings.max_workers
        if command.workers > ceiling:
            raise ValueError(f"{command.workers} processes of {command.ident}: max_workers is {ceiling}")
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
            self.complaints.make(
                sender, lambda: f"Failed to manage worker {command.ident}{refusal}", exc_info=not refusal
            )
            return
        self._manager._start(worker)


def _refusal(error: BaseException) -> str:
    """Return the reason of a refusal, to be appended to a log line; empty text for a fault in some code.

    A ``ValueError`` is a refusal where this package raised it. The arguments of a process may raise one of
    their own, for instance when they are pickled: its traceback is needed to find the fault.
    """
    if isinstance(error, ValueError):
        *_, (frame, _) = walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__", "").partition(".")[0] != PACKAGE:
            return ""
    elif not isinstance(error, ConnectionError):
        return ""
    return f": {error}"
