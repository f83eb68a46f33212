"""Gives a child of the preload process the conditions in which a spawned child begins.

A spawned child takes them over from the main process, which may have changed them since the preload process
was started.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from typing import Any, NamedTuple

__all__ = ["Conditions", "Preparation", "apply"]

# The environment of the main process as this process has last taken it over.
_environment = dict(os.environ)
# The other conditions, and the preparation data. There are none before the application is imported here.
_before: Conditions | None = None
_data: dict[str, Any] = {}


class Conditions(NamedTuple):
    """The conditions that a running process can take over.

    Attributes:
        environment: All environment variables.
        umask: The permissions that new files lack.
        limits: The soft limit of each resource, by the number of the resource. The hard limits are equal.
    """

    environment: dict[str, str]
    umask: int
    limits: dict[int, int]


class Preparation:
    """The preparation data of ``multiprocessing``, which a child reads first.

    Unpickling it applies the conditions, then gives the data alone: the script that was run is imported
    after that.

    Args:
        data (dict[str, Any]): The preparation data.
        conditions (Conditions): The conditions of the main process.
    """

    def __init__(self, data: dict[str, Any], conditions: Conditions) -> None:
        self._data = data
        self._conditions = conditions

    def __reduce__(self) -> tuple[Any, ...]:
        return _prepared, (self._data, self._conditions)


def apply(conditions: Conditions) -> None:
    """Take over the conditions of the main process.

    Those that the main process has not changed since the last call stay as they are: the import of the
    application may have changed them here, as it would in a spawned process.
    """
    global _before
    # Imported on use: the main process, which imports this module too, does so before it imports Sanic.
    from worker._child.logs import read_variables

    _sync_environment(conditions.environment)
    read_variables()
    if _before is None or _before.umask != conditions.umask:
        os.umask(conditions.umask)
    _set_limits(conditions.limits, {} if _before is None else _before.limits)
    _before = conditions
    # A directory that was missing at a search for a module is not looked at again. It may be there by now.
    for path in [path for path, finder in sys.path_importer_cache.items() if finder is None]:
        del sys.path_importer_cache[path]


def _prepared(data: dict[str, Any], conditions: Conditions) -> dict[str, Any]:
    global _data
    apply(conditions)
    present = {"sys_path": sys.path, "sys_argv": sys.argv, "dir": _directory()}
    # Without a new value, this process stays as the import of the application has left it.
    own = {name for name, value in present.items() if value not in (None, data[name])}
    kept = {name for name in own if _data.get(name) == data[name]}
    # The lists in the data are those that the import changes.
    _data = {name: [*data[name]] if name != "dir" else data[name] for name in present}
    return {name: value for name, value in data.items() if name not in kept}


def _directory() -> str | None:
    """Return the working directory; ``None`` if it was deleted."""
    with suppress(OSError):
        return os.getcwd()
    return None


def _sync_environment(environment: dict[str, str]) -> None:
    """Bring the environment up to that of the main process; variables set in this process stay."""
    global _environment
    changed = {name for name, _ in _environment.items() ^ environment.items()}
    for name in changed:
        if name in environment:
            os.environ[name] = environment[name]
        else:
            os.environ.pop(name, None)
    if "TZ" in changed:
        time.tzset()
    _environment = environment


def _set_limits(limits: dict[int, int], before: dict[int, int]) -> None:
    from resource import getrlimit, setrlimit

    for resource, limit in limits.items() - before.items():
        soft, hard = getrlimit(resource)
        if soft != limit:
            # The hard limit may have been set from outside just now.
            with suppress(OSError, ValueError):
                setrlimit(resource, (limit, hard))
