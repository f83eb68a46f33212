"""Servers that start quickly: forked from a process that has imported what every server needs.

To start an interpreter and to import Sanic is most of the time from a save to the new code. Where a reloader
runs, a fork server is kept that has done so, and nothing else: least of all has it imported the application.
From then on, the servers that would be spawned come from it; what they do next is the same. With the start
method ``forkserver`` every process comes from there.

The fork server is an optimisation: whatever goes wrong with it is one warning, and processes are spawned.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterable
from multiprocessing import forkserver

from sanic.log import logger

from worker._spawn.fork_server import ForkServer, ForkServerError, ForkServerGoneError

__all__ = [
    "fail",
    "forget",
    "interrupt",
    "invalidate_if_changed",
    "is_warm",
    "lose",
    "server",
    "start",
]

# All that a server imports before its application.
PRELOADED = ["sanic", "worker", "worker.cli"]

_server: ForkServer | None = None
# Whether processes are spawned from now on, whatever there is.
_is_cold = False


def start() -> None:
    """Start the fork server, unless it has failed or what it would import may have changed."""
    global _server
    if _server is None and not _is_cold:
        # Not the script that was run: the children would have it as it was then, whatever changes.
        asked = [
            name for name in getattr(forkserver._forkserver, "_preload_modules", ()) if name != "__main__"
        ]
        try:
            _server = ForkServer([*PRELOADED, *asked])
        except ForkServerError as error:
            fail(str(error))


def server() -> ForkServer | None:
    """Return the fork server that processes come from, which is started if need be; ``None``: none."""
    start()
    is_warm()
    return None if _is_cold else _server


def is_warm() -> bool:
    """Whether there is a fork server that is ready: servers that would be spawned come from it."""
    if _server is None:
        return False
    try:
        return _server.is_ready() and not _is_cold
    except ForkServerError as error:
        lose(error)
        return False


def lose(error: ForkServerError) -> None:
    """Start the fork server again if it is gone; if it has failed otherwise, spawn processes from now on."""
    global _server
    if _server is None or _is_cold or not isinstance(error, ForkServerGoneError):
        fail(str(error))
        return
    logger.warning("Fork server: %s. Starting it again.", error)
    _server.stop()
    _server = None
    start()


def fail(reason: str) -> None:
    """Kill the fork server, and spawn processes from now on."""
    global _server, _is_cold
    if not _is_cold:
        logger.warning("Fork server failed: %s. Processes are spawned from now on.", reason)
    _is_cold = True
    if _server is not None:
        _server.stop()
        _server = None


def interrupt() -> None:
    """Let main wait no longer until the fork server is ready: a stop was asked for. For a signal handler."""
    if _server is not None:
        _server.interrupt()


def invalidate_if_changed(changed: Iterable[str]) -> None:
    """Start servers from nothing again, for good, if what the fork server has imported may have changed.

    Args:
        changed (Iterable[str]): The paths of the files that changed.
    """
    global _is_cold
    # It stays until main ends: it alone knows how its children end.
    if _server is not None and any(path.startswith(_homes()) for path in changed):
        _is_cold = True


def forget() -> None:
    """Kill the fork server, and begin anew with the next manager."""
    global _server, _is_cold
    if _server is not None:
        _server.stop()
    _server, _is_cold = None, False


def _homes() -> tuple[str, ...]:
    """The directories that what is preloaded lies in."""
    import sanic

    libraries = (sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    homes = [*libraries, *sanic.__path__, os.path.dirname(os.path.dirname(__file__))]
    return tuple(os.path.join(path, "") for home in homes for path in (home, os.path.realpath(home)))
