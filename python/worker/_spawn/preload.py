"""Starts servers quickly: forks them from a fork server that has imported Sanic.

Starting an interpreter and importing Sanic takes most of the time from a save to the new code. While a
reloader runs, the main process keeps a fork server that has done both, and has not imported the application.
Servers that would be spawned are then forked from it, and continue in the same way. With the start method
``forkserver``, every process is forked from it.

The fork server is an optimisation: an error in it is logged once, as a warning, and processes are spawned.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterable
from multiprocessing import forkserver

from sanic.log import logger

from worker._child.titles import FORK_SERVER
from worker._spawn.fork_server import ForkServer, ForkServerError, ForkServerGoneError

__all__ = [
    "disable",
    "interrupt",
    "invalidate_if_changed",
    "is_ready",
    "recover",
    "reset",
    "server",
    "start",
]

# The modules that a server imports before its application.
PRELOADED = ["sanic", "worker.integration", "worker.inspector", "worker.serve"]

_server: ForkServer | None = None
# Whether processes are spawned from now on, even if the fork server runs.
_is_disabled = False
# Whether the fork server gives itself a title.
_is_titled = False


def start(is_titled: bool = False) -> None:
    """Start the fork server, unless it has failed or its modules may have changed.

    Args:
        is_titled (bool): Whether it gives itself a title. Defaults to ``False``.
    """
    global _server, _is_titled
    if _server is None and not _is_disabled:
        # Without the script that was run: the children would keep its present version after a change.
        requested = [
            name for name in getattr(forkserver._forkserver, "_preload_modules", ()) if name != "__main__"
        ]
        _is_titled = is_titled
        try:
            _server = ForkServer([*PRELOADED, *requested], FORK_SERVER if is_titled else "")
        except ForkServerError as error:
            disable(str(error))


def server(is_titled: bool = False) -> ForkServer | None:
    """Return the fork server for new processes, starting it if needed; ``None`` if they are spawned."""
    start(is_titled)
    is_ready()
    return None if _is_disabled else _server


def is_ready() -> bool:
    """Return whether a fork server is ready, so that servers are forked instead of spawned."""
    if _server is None:
        return False
    try:
        return _server.is_ready() and not _is_disabled
    except ForkServerError as error:
        recover(error)
        return False


def recover(error: ForkServerError) -> None:
    """Restart the fork server if it has ended; after any other error, spawn processes from now on."""
    global _server
    if _server is None or _is_disabled or not isinstance(error, ForkServerGoneError):
        disable(str(error))
        return
    logger.warning("Fork server: %s. Starting it again.", error)
    _server.stop()
    _server = None
    start(_is_titled)


def disable(reason: str) -> None:
    """Kill the fork server, and spawn processes from now on."""
    global _server, _is_disabled
    if not _is_disabled:
        logger.warning("Fork server failed: %s. Processes are spawned from now on.", reason)
    _is_disabled = True
    if _server is not None:
        _server.stop()
        _server = None


def interrupt() -> None:
    """End the wait for the fork server because a stop was requested; for a signal handler."""
    if _server is not None:
        _server.interrupt()


def invalidate_if_changed(changed: Iterable[str]) -> None:
    """Spawn processes from now on if the modules of the fork server may have changed.

    Args:
        changed (Iterable[str]): The paths of the files that changed.
    """
    global _is_disabled
    # The fork server keeps running: only it can report the exit codes of its children.
    if _server is not None and any(path.startswith(_homes()) for path in changed):
        _is_disabled = True


def reset() -> None:
    """Kill the fork server, and reset this module for the next manager."""
    global _server, _is_disabled
    if _server is not None:
        _server.stop()
    _server, _is_disabled = None, False


def _homes() -> tuple[str, ...]:
    """Return the directories of the preloaded modules."""
    import sanic

    libraries = (sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    homes = [*libraries, *sanic.__path__, os.path.dirname(os.path.dirname(__file__))]
    return tuple(os.path.join(path, "") for home in homes for path in (home, os.path.realpath(home)))
