"""What the manager is told: commands that came down the pipe, and events of its wait.

Every class is frozen and compares by value. Both cores build these very classes, so ``==`` between
what the two return is the test that they agree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from worker.constants import RestartOrder

__all__ = [
    "Command",
    "Corrupt",
    "Event",
    "Exited",
    "Invalid",
    "Manage",
    "Opaque",
    "Received",
    "Restart",
    "Scale",
    "Stop",
    "Terminate",
]


@dataclass(frozen=True, slots=True)
class Stop:
    """A falsy message (``None``, ``""``): leave the loop."""


@dataclass(frozen=True, slots=True)
class Terminate:
    """``__TERMINATE__``: shut the server down.

    ``early`` is ``__TERMINATE_EARLY__``: the sender itself failed to start.
    """

    early: bool = False


@dataclass(frozen=True, slots=True)
class Scale:
    """``__SCALE__:<n>``: run ``num_workers`` servers."""

    num_workers: int


@dataclass(frozen=True, slots=True)
class Restart:
    """``<name>[,<name>...][:<files>][:STARTUP_FIRST]``: restart processes.

    ``names`` is ``None`` for all of them (``__ALL_PROCESSES__``); ``files`` is the text between the
    first colon and the order, ``None`` where the message has no colon at all.
    """

    names: tuple[str, ...] | None
    files: str | None = None
    order: RestartOrder = RestartOrder.SHUTDOWN_FIRST


@dataclass(frozen=True, slots=True)
class Manage:
    """A tuple of 8 (or 7: one worker): manage a process from now on.

    The fields are the parameters of :meth:`worker.manager.WorkerManager.manage`, in their order.
    """

    ident: str
    func: Callable[..., Any]
    kwargs: dict[str, Any]
    transient: bool
    restartable: bool | None
    tracked: bool
    auto_start: bool
    workers: int = 1


@dataclass(frozen=True, slots=True)
class Invalid:
    """A message that is none of the above: what was received, and what is wrong with it."""

    message: object
    reason: str


@dataclass(frozen=True, slots=True)
class Opaque:
    """The payload of a frame that is not a pickled ``None`` or ``str``: for ``pickle`` to load."""

    payload: bytes = field(repr=False)


Command = Stop | Terminate | Scale | Restart | Manage | Invalid


@dataclass(frozen=True, slots=True)
class Received:
    """A whole frame came down the pipe. ``sender`` is the pid of its writer, if the kernel knows."""

    command: Command | Opaque
    sender: int | None = None


@dataclass(frozen=True, slots=True)
class Corrupt:
    """Bytes on the pipe that are no frame were dropped.

    ``reason`` says why in words, ``sample`` holds the first of them (at most 64).
    """

    reason: str
    sample: bytes
    sender: int | None = None


@dataclass(frozen=True, slots=True)
class Exited:
    """A watched process is dead.

    ``exitcode`` is as in :attr:`multiprocessing.Process.exitcode` (negative: the signal that killed
    it), ``None`` where this process is not allowed to know (it is no child of ours).
    """

    key: str
    pid: int
    exitcode: int | None


Event = Received | Corrupt | Exited
