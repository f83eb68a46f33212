"""What the manager is told: commands that came down the pipe, and events of its wait.

Every class is frozen and compares by value. Both cores build these very classes, so ``==`` between
what the two return is the test that they agree.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
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
    "ScaleBy",
    "Stop",
    "Terminate",
    "decoded_files",
    "encoded_files",
]

# What would end a path, or the message, or is no text: of these bytes none may go as it is.
_TO_ENCODE = re.compile("[%:,\r\n\udc80-\udcff]")
_ENCODED = re.compile("%(25|3A|2C|0D|0A|[89A-F][0-9A-F])")


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
class ScaleBy:
    """A signal, never a message: run ``change`` servers more, or fewer, than there are when it is obeyed."""

    change: int


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


Command = Stop | Terminate | Scale | ScaleBy | Restart | Manage | Invalid


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


def encoded_files(paths: Iterable[str]) -> str:
    """Paths as the ``files`` of a :class:`Restart`, joined by commas.

    Percent-encoded are ``%``, ``:``, ``,``, CR, LF and the bytes that are no UTF-8 (as :func:`os.fsdecode`
    has them), and nothing else.
    """
    return ",".join(_TO_ENCODE.sub(lambda found: f"%{ord(found[0]) & 0xFF:02X}", path) for path in paths)


def decoded_files(files: str) -> str:
    """The paths of :func:`encoded_files`, still joined by commas; what else follows a ``%`` stays."""

    def decoded(found: re.Match[str]) -> str:
        byte = int(found[1], 16)
        return chr(byte if byte < 0x80 else 0xDC00 + byte)

    return _ENCODED.sub(decoded, files)
