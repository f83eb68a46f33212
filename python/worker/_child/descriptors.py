"""The file descriptors of the main process: which of them a child has, and which it closes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Protocol

__all__ = [
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

# What only main may use, and what only main and the servers: a forked child, a copy of main, closes it.
_owned_by_main: list[Closable] = []
_owned_by_servers: list[Closable] = []


class Closable(Protocol):
    """Something with a ``close()``: a monitor, a connection."""

    def close(self) -> None:
        """Let go of the file descriptors."""


class Descriptor:
    """A file descriptor that only main may use.

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
    """Have forked children close what only main may use, or only servers besides, until :func:`forget`."""
    (_owned_by_servers if servers_too else _owned_by_main).append(owned)


def forget(owned: Closable) -> None:
    """Main has closed it, or gives it up."""
    (_owned_by_main if owned in _owned_by_main else _owned_by_servers).remove(owned)


def close_inherited(is_server: bool) -> None:
    """Close in a forked child what it is not to have.

    Args:
        is_server (bool): Whether it serves. A listening socket that any other process had open would
            outlive main and the servers.
    """
    for owned in (_owned_by_main, *([] if is_server else [_owned_by_servers])):
        while owned:
            with suppress(OSError):
                owned.pop().close()


def fill_standard() -> None:
    """Open the null device on each of the descriptors 0 to 2 that is closed.

    A file that is opened later would take its number. A child uses these numbers for its input and output:
    it would write its log into that file.
    """
    for fd, (name, mode) in enumerate(STANDARD):
        try:
            os.fstat(fd)
        except OSError:
            with suppress(OSError):
                opened = os.open(os.devnull, os.O_RDWR)
                # The lowest free number: another one only if a thread has just taken this one.
                if opened != fd:
                    os.close(opened)
                    continue
                os.set_inheritable(fd, True)
                # The interpreter makes no stream of one that is closed.
                if getattr(sys, name) is None:
                    setattr(sys, name, open(fd, mode, closefd=False))  # noqa: SIM115


def close_all(*fds: int) -> None:
    """Close each of these."""
    for fd in fds:
        os.close(fd)


def inheritable() -> Iterator[int]:
    """Yield the open descriptors above 2 that a program started by this process would inherit."""
    for entry in os.listdir("/dev/fd"):
        fd = int(entry)
        # The one that has listed the directory is closed by now.
        with suppress(OSError):
            if fd >= len(STANDARD) and os.get_inheritable(fd):
                yield fd
