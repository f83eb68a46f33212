"""The files by which a user's commands find the inspectors of the servers that run here.

The inspector writes ``<directory>/<pid of the main process>.json`` when it listens, and removes it at its
end. Its contents::

    {"pid": 4242, "app": "shop", "url": "http://127.0.0.1:6457", "started": "2026-01-31T12:00:00+00:00",
     "start_ticks": 1234567}

The URL of a unix socket is ``unix:<path>``. ``start_ticks`` is the start of the main process in clock ticks
since boot: a later process of the same pid has another one. ``started`` does not tell, as the clock may be
set meanwhile.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TypedDict

__all__ = ["RunningServer", "directories", "is_private", "is_running", "remove", "write"]

NAME = "sanic-worker"
SUFFIX = ".json"


class RunningServer(TypedDict):
    """A server, as its file describes it beside ``start_ticks``.

    Attributes:
        pid: The pid of the main process.
        app: The name of the application.
        url: Where the inspector listens.
        started: When it was first started, in ISO 8601.
    """

    pid: int
    app: str
    url: str
    started: str


def directories() -> list[str]:
    """Return the directories where the files of this user may be, the preferred one first.

    A server and a shell of one user may have different environments, so that a reader looks into both.
    """
    found = [f"/tmp/{NAME}-{os.getuid()}"]
    own = os.environ.get("XDG_RUNTIME_DIR", "")
    return [os.path.join(own, NAME), *found] if os.path.isabs(own) and os.path.isdir(own) else found


def is_private(directory: str) -> bool:
    """Return whether a directory exists, is no symlink, and only this user can enter it and write to it."""
    try:
        found = os.lstat(directory)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077


def is_running(file: Mapping[str, Any]) -> bool:
    """Return whether the main process of a server still runs, by the contents of its file."""
    ticks = _start_ticks(file["pid"])
    return ticks is not None and ticks == file.get("start_ticks")


def write(server: RunningServer) -> None:
    """Write the file of a server as a whole, and remove those of servers that are gone.

    Raises:
        OSError: There is no private directory that can be written to.
    """
    refusals: list[OSError] = []
    for directory in directories():
        try:
            _write_into(directory, server)
            return
        except OSError as error:
            refusals.append(error)
    raise refusals[-1]


def _write_into(directory: str, server: RunningServer) -> None:
    with suppress(FileExistsError):
        os.mkdir(directory, 0o700)
    if not is_private(directory):
        raise PermissionError(f"{directory} is not a directory of this user alone (mode 0700)")
    _remove_stale(directory)
    path = os.path.join(directory, f"{server['pid']}{SUFFIX}")
    draft = f"{path}.{os.getpid()}"
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        json.dump({**server, "start_ticks": _start_ticks(server["pid"])}, file)
    os.replace(draft, path)


def remove(pid: int) -> None:
    """Remove the file of the server with this main process, if it exists."""
    for directory in filter(is_private, directories()):
        _unlink(os.path.join(directory, f"{pid}{SUFFIX}"))


def _remove_stale(directory: str) -> None:
    for name in os.listdir(directory):
        pid = name.partition(".")[0]
        if pid.isascii() and pid.isdecimal() and not _exists(int(pid)):
            _unlink(os.path.join(directory, name))


def _unlink(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)


def _start_ticks(pid: int) -> int | None:
    """Return the start of a process in clock ticks since boot; ``None`` if it does not run."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            data = file.read()
    except OSError:
        return None
    # The name of the program may hold any character; the fields after it are numbers.
    return int(data[data.rfind(b")") + 2 :].split()[19])


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        # Another user's process.
        return True
    return True
