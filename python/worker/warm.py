"""Servers that start quickly: forked from a process that has imported what every server needs.

To start an interpreter and to import Sanic is most of the time from a save to the new code. Where a reloader
runs, a fork server of ``multiprocessing`` is kept that has done so, and nothing else: least of all has it
imported the application. From then on, the servers that would be spawned come from it; what they do next is
the same.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterable, Mapping

__all__ = ["cool_down_after", "follow", "forget", "is_warm", "start"]

# All that a server imports before its application.
PRELOADED = ["sanic", "worker", "worker.cli"]

_is_warm = False
_is_cold = False
# The fork server imports this module as well: in its children, this is what it has begun with.
_inherited = dict(os.environ)


def start() -> None:
    """Start the fork server, unless :func:`cool_down_after` has found that it is of no use."""
    global _is_warm
    if not (_is_warm or _is_cold):
        from multiprocessing import forkserver

        forkserver.set_forkserver_preload(PRELOADED)
        forkserver.ensure_running()
        _is_warm = True


def is_warm() -> bool:
    """Whether servers are to come from the fork server."""
    return _is_warm


def cool_down_after(changed: Iterable[str]) -> None:
    """Start servers from nothing again, for good, if what the fork server has imported may have changed.

    Args:
        changed (Iterable[str]): The paths of the files that changed.
    """
    global _is_warm, _is_cold
    if _is_warm and any(path.startswith(_homes()) for path in changed):
        _is_warm, _is_cold = False, True


def follow(environment: Mapping[str, str]) -> None:
    """Bring what a child of the fork server has inherited up to what main has; what is its own stays.

    Args:
        environment (Mapping[str, str]): Main's, as it was when the child was started.
    """
    for name, _ in _inherited.items() ^ environment.items():
        if name in environment:
            os.environ[name] = environment[name]
        else:
            os.environ.pop(name, None)


def forget() -> None:
    """Begin anew with the next manager. The fork server itself ends with main, or is used again."""
    global _is_warm, _is_cold
    _is_warm = _is_cold = False


def _homes() -> tuple[str, ...]:
    """The directories that what is preloaded lies in."""
    import sanic

    libraries = (sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    homes = [*libraries, *sanic.__path__, os.path.dirname(__file__)]
    return tuple(os.path.join(path, "") for home in homes for path in (home, os.path.realpath(home)))
