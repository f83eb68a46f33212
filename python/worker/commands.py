"""From a command that came down the pipe to what main does about it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from reprlib import Repr
from typing import TYPE_CHECKING, NamedTuple

from sanic.exceptions import ServerKilled
from sanic.log import error_logger, logger

from worker.constants import ProcessState, RestartOrder
from worker.inbox import load
from worker.messages import (
    Command,
    Corrupt,
    Event,
    Exited,
    Invalid,
    Manage,
    Received,
    Restart,
    Scale,
    Stop,
    Terminate,
)

if TYPE_CHECKING:
    from worker.loop import Loop
    from worker.manager import WorkerManager

__all__ = ["Commands", "Loaded", "coalesce"]

# How many complaints of one sender are logged in full of one batch: whoever floods main with nonsense is not
# to keep it from all else for as long as it takes to write it all down.
COMPLAINTS = 10

_show = Repr()
_show.maxstring = _show.maxother = 160


# Whether all are meant, the files and the order -> the names, in their order, and the first sender.
_Alike = dict[tuple[bool, str | None, RestartOrder], tuple[dict[str, None], int | None]]


class Loaded(NamedTuple):
    """A command, and the pid of who sent it, if the kernel knows."""

    command: Command
    sender: int | None = None


def coalesce(events: Iterable[Event | Loaded]) -> Iterator[Loaded | Exited | Corrupt]:
    """Load the commands among the events, and make one restart of those that follow each other and are equal.

    They are equal in files, in order, and in whether they name processes or mean all of them; the one that
    stands for them has the names of all, each once, in the order in which they came, and the first sender.
    Restarts that differ come in the order of the first of each kind; no other event is overtaken.
    """
    alike: _Alike = {}
    for event in events:
        loaded = Loaded(load(event.command), event.sender) if isinstance(event, Received) else event
        if isinstance(loaded, Loaded) and isinstance(loaded.command, Restart):
            of_all, files, order = loaded.command.names is None, loaded.command.files, loaded.command.order
            names, _ = alike.setdefault((of_all, files, order), ({}, loaded.sender))
            names.update(dict.fromkeys(loaded.command.names or ()))
            continue
        yield from _restarts(alike)
        alike.clear()
        yield loaded
    yield from _restarts(alike)


def _restarts(alike: _Alike) -> Iterator[Loaded]:
    for (of_all, files, order), (names, sender) in alike.items():
        yield Loaded(Restart(None if of_all else tuple(names), files, order), sender)


class Commands:
    """Obeys commands by the verbs of the manager; whatever comes of one, the next is obeyed too.

    Args:
        loop (Loop): Who waits for them.
        manager (WorkerManager): Whose verbs are called.
    """

    def __init__(self, loop: Loop, manager: WorkerManager) -> None:
        self._loop = loop
        self._manager = manager
        self._deferred: list[Loaded] = []
        self._complaints: Counter[int | None] = Counter()

    def obey(self, command: Command, sender: int | None) -> None:
        """Do what is asked for; while the servers start, keep it if it can wait."""
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("Monitor message: %s", _safely_shown(command), extra={"verbosity": 2})
        if self._loop.ended:
            return
        if self._loop.starting and isinstance(command, (Restart, Scale, Manage)):
            self._deferred.append(Loaded(command, sender))
            return
        self.guarded(partial(self._obey, command, sender), sender)

    def obey_deferred(self) -> None:
        """Do what was asked for while the servers were starting."""
        deferred, self._deferred = self._deferred, []
        for loaded in coalesce(deferred):
            if isinstance(loaded, Loaded) and not self._loop.stop_asked:
                self.obey(*loaded)

    def end_batch(self) -> None:
        """Tell how many complaints of the batch were not logged."""
        complaints, self._complaints = self._complaints, Counter()
        for sender, count in complaints.items():
            if count > COMPLAINTS:
                error_logger.error(
                    "Monitor received %s more messages like these at once, from %s",
                    count - COMPLAINTS,
                    self._loop.name_of(sender),
                )

    def dropped(self, event: Corrupt) -> None:
        """Complain of what is no message."""

        def text() -> str:
            return (
                f"Monitor dropped what is no message, from {self._loop.name_of(event.sender)}: "
                f"{event.reason}; it begins with {_show.repr(event.sample)}"
            )

        if event.sample:
            self._complain(event.sender, text)
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
            self._complain(sender, lambda: f"Refused a command of {self._loop.name_of(sender)}: {refusal}")
        # What came down the pipe brings code of its own, in the reprs of its arguments for one.
        except BaseException:
            error_logger.exception("Failed to obey a command of %s", self._loop.name_of(sender))

    def _obey(self, command: Command, sender: int | None) -> None:
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
            self._complain(
                sender, lambda: f"Monitor received an empty message from {loop.name_of(sender)}, and goes on"
            )
        elif isinstance(command, Invalid):
            self._complain(
                sender,
                lambda: (
                    f"Monitor received an invalid message: {_safely_shown(command.message)}, "
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

    def _complain(self, sender: int | None, text: Callable[[], str]) -> None:
        self._complaints[sender] += 1
        if self._complaints[sender] <= COMPLAINTS:
            error_logger.error("%s", text())


def _safely_shown(message: object) -> str:
    try:
        return _show.repr(message)
    except BaseException:
        return f"<{type(message).__name__} whose repr fails>"
