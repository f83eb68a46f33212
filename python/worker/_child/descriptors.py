"""The file descriptors of the main process: which of them a child keeps, and which it closes."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Protocol

__all__ = [
    "SHORTAGES",
    "STANDARD",
    "Closable",
    "Descriptor",
    "close_all",
    "close_in_children",
    "close_inherited",
    "fill_standard",
    "forget",
    "inheritable",
]

STANDARD = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))
# The errors of a call for which there are too many open files, or too little memory. It may succeed later.
SHORTAGES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ETOOMANYREFS))
# As many descriptors are searched one by one where the system does not list them.
MOST = 65_536

# A forked child is a copy of the main process. It closes the descriptors that only the main process may use,
# and, unless it is a server, those that only the main process and the servers may use.
_owned_by_main: list[Closable] = []
_owned_by_servers: list[Closable] = []


class Closable(Protocol):
    """An object with a ``close()``: a monitor, a connection."""

    def close(self) -> None:
        """Close the file descriptors."""


class Descriptor:
    """A file descriptor that only the main process may use.

    Args:
        fd (int): Its number; this object closes it.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        close_in_children(self)

    def fileno(self) -> int:
        """Return its number."""
        return self._fd

    def close(self) -> None:
        """Close it."""
        with suppress(ValueError):
            forget(self)
        os.close(self._fd)


def close_in_children(owned: Closable, *, servers_too: bool = False) -> None:
    """Let forked children close an object, until :func:`forget`.

    Args:
        owned (Closable): Only the main process may use it.
        servers_too (bool): Whether servers may use it, too. Defaults to ``False``.
    """
    (_owned_by_servers if servers_too else _owned_by_main).append(owned)


def forget(owned: Closable) -> None:
    """Let forked children close an object no more: the main process has closed it, or gives it up."""
    (_owned_by_main if owned in _owned_by_main else _owned_by_servers).remove(owned)


def close_inherited(is_server: bool) -> None:
    """Close in a forked child the descriptors that it must not have.

    Args:
        is_server (bool): Whether the child is a server. A listening socket that is open in any other process
            would outlive the main process and the servers.
    """
    for owned in (_owned_by_main, *([] if is_server else [_owned_by_servers])):
        while owned:
            with suppress(OSError):
                owned.pop().close()


def fill_standard() -> None:
    """Open the null device on each of the descriptors 0 to 2 that is closed.

    Otherwise the next file that is opened takes the number. A child uses these numbers for its input and
    output: it would write its log into that file.
    """
    for fd, (name, mode) in enumerate(STANDARD):
        try:
            os.fstat(fd)
        except OSError:
            with suppress(OSError):
                opened = os.open(os.devnull, os.O_RDWR)
                # The system takes the lowest free number. It differs if a thread has just taken this one.
                if opened != fd:
                    os.close(opened)
                    continue
                os.set_inheritable(fd, True)
                # The interpreter has made no stream for a closed descriptor.
                if getattr(sys, name) is None:
                    setattr(sys, name, open(fd, mode, closefd=False))  # noqa: SIM115


def close_all(*fds: int) -> None:
    """Close each of these."""
    for fd in fds:
        os.close(fd)


def inheritable() -> Iterator[int]:
    """Yield the open descriptors above 2 that a program started by this process would inherit."""
    numbers: Iterable[int]
    try:
        numbers = map(int, os.listdir("/dev/fd"))
    except FileNotFoundError:
        # It is part of /proc, which is not mounted.
        numbers = range(min(os.sysconf("SC_OPEN_MAX"), MOST))
    for fd in numbers:
        # The descriptor that has listed the directory is closed by now.
        with suppress(OSError):
            if fd >= len(STANDARD) and os.get_inheritable(fd):
                yield fd
