"""From a command that came down the pipe to what main does about it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

from sanic.exceptions import ServerKilled
from sanic.log import error_logger, logger

from worker.complaints import Complaints, safely_shown
from worker.constants import ProcessState, RestartOrder
from worker.inbox import load
from worker.messages import (
    Command,
    Corrupt,
    Event,
    Invalid,
    Manage,
    Opaque,
    Received,
    Restart,
    Scale,
    Stop,
    Terminate,
)

if TYPE_CHECKING:
    from worker.loop import Loop
    from worker.manager import WorkerManager

__all__ = ["Commands", "coalesce"]

# How many commands wait for the servers to start, those that are equal counted as one.
DEFERRED = 1_000


def coalesce(events: Iterable[Event]) -> Iterator[Event]:
    """Load the commands among the events, and make one restart of those that follow each other and are equal.

    They are equal in files, in order, and in whether they name processes or mean all of them; the one that
    stands for them has the names of all, each once, in the order in which they came, and the first sender.
    Restarts that differ come in the order of the first of each kind; no other event is overtaken.
    """
    alike: dict[tuple[bool, str | None, bool], list[tuple[Received, Restart]]] = {}
    for event in map(_loaded, events):
        if isinstance(event, Received):
            command = event.command
            if isinstance(command, Restart):
                # Not the order itself: an enum takes its time to be hashed.
                key = (command.names is None, command.files, command.order is RestartOrder.STARTUP_FIRST)
                alike.setdefault(key, []).append((event, command))
                continue
        yield from map(_union, alike.values())
        alike.clear()
        yield event
    yield from map(_union, alike.values())


def _loaded(event: Event) -> Event:
    if isinstance(event, Received) and isinstance(event.command, Opaque):
        return Received(load(event.command), event.sender)
    return event


def _union(same: list[tuple[Received, Restart]]) -> Received:
    event, command = same[0]
    if len(same) == 1 or command.names is None:
        return event
    names = chain.from_iterable(one.names or () for _, one in same)
    return Received(replace(command, names=tuple(dict.fromkeys(names))), event.sender)


class Commands:
    """Obeys commands by the verbs of the manager; whatever comes of one, the next is obeyed too.

    Args:
        loop (Loop): Who waits for them.
        manager (WorkerManager): Whose verbs are called.
    """

    def __init__(self, loop: Loop, manager: WorkerManager) -> None:
        self._loop = loop
        self._manager = manager
        self._deferred: list[Received] = []
        self.complaints = Complaints(loop.name_of)

    def obey(self, event: Received) -> None:
        """Do what is asked for; while the servers start, keep it if it can wait."""
        command = event.command
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("Monitor message: %s", safely_shown(command), extra={"verbosity": 2})
        if self._loop.ended:
            return
        if self._loop.starting and isinstance(command, (Restart, Scale, Manage)):
            self._defer(event)
            return
        self.guarded(partial(self._obey, command, event.sender), event.sender)

    def _defer(self, event: Received) -> None:
        if len(self._deferred) >= DEFERRED:
            self._deferred = [one for one in coalesce(self._deferred) if isinstance(one, Received)]
        if len(self._deferred) < DEFERRED:
            self._deferred.append(event)
        else:
            self.complaints.make(
                event.sender,
                lambda: (
                    f"Monitor dropped a message, from {self._loop.name_of(event.sender)}: {DEFERRED} others "
                    "wait already until the servers have started"
                ),
            )

    def obey_deferred(self) -> None:
        """Do what was asked for while the servers were starting."""
        deferred, self._deferred = self._deferred, []
        for event in coalesce(deferred):
            if isinstance(event, Received) and not self._loop.stop_asked:
                self.obey(event)

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
        except (ValueError, ConnectionError) as error:
            refusal = str(error)
            self.complaints.make(
                sender, lambda: f"Refused a command of {self._loop.name_of(sender)}: {refusal}"
            )
        # What came down the pipe brings code of its own, in the reprs of its arguments for one.
        except BaseException:
            error_logger.exception("Failed to obey a command of %s", self._loop.name_of(sender))

    def _obey(self, command: Command | Opaque, sender: int | None) -> None:
        manager, loop = self._manager, self._loop
        if isinstance(command, Restart):
            names = None if command.names is None else [*command.names]
            manager.restart(process_names=names, reloaded_files=command.files, restart_order=command.order)
        elif isinstance(command, Scale):
            manager.scale(command.num_workers)
        elif isinstance(command, Manage):
            self._manage(command)
        elif isinstance(command, Terminate) and command.early:
            what = f"{loop.name_of(sender)} failed to start; its error is in the log above."
            loop.fails_to_start(what, loop.is_server(sender))
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

    def _manage(self, command: Manage) -> None:
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
        except Exception:
            error_logger.exception("Failed to manage worker %s", command.ident)
            return
        for process in worker.processes:
            if self._loop.stop_asked:
                break
            if command.auto_start:
                process.start()
            else:
                process.set_state(ProcessState.NONE, True)
