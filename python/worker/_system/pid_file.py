"""The file with the pid of the main process."""

from __future__ import annotations

import os
import time
from contextlib import suppress

from worker._system import proc
from worker._system.errors import BeginError

__all__ = ["PidFileError", "follow", "may_be_replaced", "remove", "take_over", "write"]

# The clock may have been set between the start of a process and the writing of its file, seconds.
TOLERANCE = 2.0
MAX_BYTES = 32

_path = ""
_predecessor = 0


class PidFileError(BeginError):
    """The pid file cannot be written; the message has the path, the reason and the remedy."""


def follow(pid: int) -> None:
    """Leave a pid file to another main process until :func:`take_over`.

    Args:
        pid (int): The pid of that process.
    """
    global _predecessor
    _predecessor = pid


def take_over() -> None:
    """Write the pid of this process into the file of the main process before it.

    Raises:
        PidFileError: The file cannot be written.
    """
    follow(0)
    if _path:
        _replace(_path)


def may_be_replaced() -> bool:
    """Return whether another main process of this user could write its pid; ``True`` if there is no file."""
    return not _path or os.access(os.path.dirname(_path) or ".", os.W_OK)


def write(path: str) -> bool:
    """Write the pid of this process into a file, as a whole, until :func:`remove`.

    A file of a process that is gone is replaced.

    Args:
        path (str): The path.

    Returns:
        bool: Whether it was written; ``False`` if this process has written it before.

    Raises:
        PidFileError: The file is that of another running process, is no regular file, or cannot be written.
    """
    global _path
    # Root would replace /dev/null, and to read a pipe would wait for its writer.
    if os.path.exists(path) and not os.path.isfile(path):
        wrong = PidFileError(None, f"The pid file {path} is no regular file. Choose another pid_file.")
        wrong.is_wrong_usage = True
        raise wrong
    other = _holder(path)
    if path == _path and other in (os.getpid(), _predecessor):
        return False
    if other not in (None, os.getpid(), _predecessor):
        remedy = "Stop that process, or choose another pid_file."
        raise PidFileError(None, f"The pid file {path} is that of the running process {other}. {remedy}")
    if other != _predecessor:
        _replace(path)
    _path = path
    return True


def _replace(path: str) -> None:
    draft = f"{path}.{os.getpid()}"
    try:
        with suppress(FileNotFoundError):
            os.unlink(draft)
        # Not through a link, which the owner of the directory may have made for root to follow.
        with open(draft, "x", encoding="ascii") as file:
            file.write(f"{os.getpid()}\n")
        os.replace(draft, path)
    except OSError as error:
        with suppress(OSError):
            os.unlink(draft)
        raise PidFileError(
            error.errno, f"Cannot write the pid file {path}: {error.strerror}. Its directory has to exist."
        ) from error


def remove() -> None:
    """Remove the file, if it still has the pid of this process."""
    global _path
    if _path and _read(_path) == os.getpid():
        # After a change of the user, this process may have no right to do so. Then the file is stale.
        with suppress(OSError):
            os.unlink(_path)
    _path = ""


def _holder(path: str) -> int | None:
    """Return the running process to which a pid file belongs."""
    pid = _read(path)
    if pid is None:
        return None
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except OSError:
        # Another user's process.
        pass
    # The time before the look: however long that takes, a process does not seem to be younger.
    now, usage = time.time(), proc.usage(pid)
    if usage is not None and not usage.is_running:
        # Its parent has not collected it.
        return None
    with suppress(OSError):
        # A process that is younger than the file has the pid of one that is gone.
        if usage is not None and now - usage.uptime > os.stat(path).st_mtime + TOLERANCE:
            return None
    return pid


def _read(path: str) -> int | None:
    """Return the pid in a file; ``None`` if it has none."""
    with suppress(OSError, ValueError), open(path, encoding="ascii") as file:
        number = int(file.read(MAX_BYTES))
        return number if number > 0 else None
    return None
