"""The commands of the control channel, and the events of the main process's wait.

Both cores build these classes, so a test compares their results with ``==``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from worker._core.record import Record
from worker.constants import RestartOrder, excerpt

__all__ = [
    "RECYCLE_CAUSES",
    "Busy",
    "Command",
    "Corrupt",
    "Event",
    "Exited",
    "Invalid",
    "Manage",
    "Opaque",
    "Ping",
    "Received",
    "Recycle",
    "Requested",
    "Restart",
    "Scale",
    "ScaleBy",
    "Stop",
    "Terminate",
    "Upgrade",
    "decoded_files",
    "encoded_files",
]

RECYCLE_CAUSES = ("max_requests", "max_lifetime", "max_rss", "max_memory_percent")
"""The settings that limit a server, at which a new process replaces it."""

# The bytes to encode: those that would end a path or the message, and those that are not text.
_TO_ENCODE = re.compile("[%:,\r\n\udc80-\udcff]")
_ENCODED = re.compile("%(25|3A|2C|0D|0A|[89A-F][0-9A-F])")


class Stop(Record):
    """A falsy message (``None``, ``""``): end the loop."""


class Terminate(Record):
    """``__TERMINATE__``: stop the server.

    ``early`` is for ``__TERMINATE_EARLY__``: the sender itself failed to start.
    """

    early: bool = False


class Scale(Record):
    """``__SCALE__:<n>``: run ``num_workers`` servers."""

    num_workers: int


class ScaleBy(Record):
    """A signal, never a message: run ``change`` servers more, or fewer, than there are at its execution."""

    change: int


class Restart(Record):
    """``<name>[,<name>...][:<files>][:STARTUP_FIRST]``: restart processes.

    ``names`` is ``None`` for all processes (``__ALL_PROCESSES__``). ``files`` is the text between the first
    colon and the order, ``None`` if the message has no colon.
    """

    names: tuple[str, ...] | None
    files: str | None = None
    order: RestartOrder = RestartOrder.SHUTDOWN_FIRST


class Manage(Record):
    """A tuple of 8 (or 7: one process): manage a new worker.

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


class Upgrade(Record):
    """A signal, or the command of ``("__UPGRADE__", <id>, <origin>, <time>)``: start a new main process."""


class Requested(Record):
    """``("__OPERATION__", <text>, <id>, <origin>, <time>)``: execute a command as an operation.

    The command is a restart, a scaling, a stop or an upgrade. ``id`` is the id of the operation. ``origin``
    is the origin of the request in words. ``made_at`` is the time of the request, in seconds since 1970.
    """

    command: Command
    id: str
    origin: str
    made_at: float


class Ping(Record):
    """``("__PING__", <token>)``: show the token in the shared state."""

    token: str


class Recycle(Record):
    """``("__RECYCLE__", <cause>, <value>, <limit>)``: the sender has reached a limit, replace it.

    ``cause`` is one of :data:`RECYCLE_CAUSES`. ``value`` and ``limit`` are requests, seconds or bytes.
    """

    cause: str
    value: float
    limit: float


class Busy(Record):
    """``("__BUSY__",)``: the sender, a server, has become busy."""


class Invalid(Record):
    """A message that is none of the above, and the reason for that in words."""

    message: object
    reason: str

    @classmethod
    def because(cls, message: object, fault: str, error: BaseException) -> Invalid:
        """Return a message whose reason is an error, which the sender's own code may have raised."""
        return cls(message, f"{fault} ({type(error).__name__}: {excerpt(error)})")


class Opaque(Record):
    """The payload of a frame that is not a pickled ``None`` or ``str``: for ``pickle`` to load."""

    payload: bytes

    def __repr__(self) -> str:
        # It may be large.
        return "Opaque()"


Command = (
    Stop
    | Terminate
    | Scale
    | ScaleBy
    | Restart
    | Manage
    | Upgrade
    | Requested
    | Ping
    | Recycle
    | Busy
    | Invalid
)


class Received(Record):
    """A whole frame was received. ``sender`` is the pid of its sender, if the kernel knows it."""

    command: Command | Opaque
    sender: int | None = None


class Corrupt(Record):
    """Bytes that are not a frame were received and dropped.

    ``reason`` is the reason in words. ``sample`` holds the first of the bytes (at most 64).
    """

    reason: str
    sample: bytes
    sender: int | None = None


class Exited(Record):
    """A watched process has exited.

    ``exitcode`` is as in :attr:`multiprocessing.Process.exitcode` (negative: the signal that killed
    it). It is ``None`` if it is unknown, as for a process that is not a child of this one.
    """

    key: str
    pid: int
    exitcode: int | None


Event = Received | Corrupt | Exited


def encoded_files(paths: Iterable[str]) -> str:
    """Return paths as the ``files`` of a :class:`Restart`, joined by commas.

    Percent-encoded are ``%``, ``:``, ``,``, CR, LF and the bytes that are not UTF-8 (as decoded by
    :func:`os.fsdecode`), and nothing else.
    """
    return ",".join(_TO_ENCODE.sub(lambda found: f"%{ord(found[0]) & 0xFF:02X}", path) for path in paths)


def decoded_files(files: str) -> str:
    """Return the paths of :func:`encoded_files`, still joined by commas; any other ``%`` stays."""

    def decoded(found: re.Match[str]) -> str:
        byte = int(found[1], 16)
        return chr(byte if byte < 0x80 else 0xDC00 + byte)

    return _ENCODED.sub(decoded, files)
