"""Unix sockets of the main process: never replaces that of a running server, nor removes a foreign file."""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import suppress

from sanic.server.socket import bind_unix_socket

__all__ = ["adopt", "bind", "bound", "keep", "remove", "remove_all", "remove_stale"]

# How long a probe of the socket may take, seconds. The kernel answers it for the server.
PROBE_TIMEOUT = 1.0
# The errors of a probe that show that a server has the socket open.
IN_USE = (errno.EAGAIN, errno.EPROTOTYPE, errno.EACCES, errno.EPERM)

# The device and the inode of each path that this process has bound.
_bound: dict[str, tuple[int, int]] = {}


def bind(path: str, mode: int, backlog: int) -> socket.socket:
    """Listen on a path, replacing a socket without a listener.

    Raises:
        OSError: ``EADDRINUSE`` if another server listens on it, or any error of binding.
    """
    if _is_in_use(path):
        raise OSError(errno.EADDRINUSE, f"{os.strerror(errno.EADDRINUSE)} by another server", path)
    sock = bind_unix_socket(path, mode=mode, backlog=backlog)
    _bound[path] = _identity(path)
    return sock


def bound() -> list[str]:
    """Return the paths that this process has bound."""
    return [*_bound]


def adopt(path: str) -> None:
    """Count a path as bound by this process: it has taken over the socket."""
    with suppress(FileNotFoundError):
        _bound[path] = _identity(path)


def keep(path: str) -> None:
    """Leave a path that this process has bound to another one."""
    _bound.pop(path, None)


def remove(path: str | os.PathLike[str] | None) -> None:
    """Remove the file of a socket, unless it has been replaced, or was not bound by this process."""
    text = os.fspath(path or "")
    with suppress(FileNotFoundError):
        if _bound.pop(text, None) == _identity(text):
            os.unlink(text)


def remove_all() -> None:
    """Remove the files of all sockets that this process has bound."""
    for path in list(_bound):
        remove(path)


def remove_stale(path: str) -> None:
    """Remove a socket on which no server listens, whichever process has bound it."""
    with suppress(FileNotFoundError):
        found = _identity(path)
        is_socket = stat.S_ISSOCK(os.lstat(path).st_mode)
        if is_socket and not _is_in_use(path) and _identity(path) == found:
            os.unlink(path)


def _is_in_use(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(PROBE_TIMEOUT)
        try:
            probe.connect(path)
        except TimeoutError:
            return True
        except OSError as error:
            # Binding the path will report any other error.
            return error.errno in IN_USE
    return True


def _identity(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino
