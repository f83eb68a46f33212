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
    """Take over the conditions of the main process."""
    # Imported on use: the main process, which imports this module too, does so before it imports Sanic.
    from worker._child.logs import read_variables

    _sync_environment(conditions.environment)
    read_variables()
    os.umask(conditions.umask)
    _set_limits(conditions.limits)
    # A directory that was missing at a search for a module is not looked at again. It may be there by now.
    for path in [path for path, finder in sys.path_importer_cache.items() if finder is None]:
        del sys.path_importer_cache[path]


def _prepared(data: dict[str, Any], conditions: Conditions) -> dict[str, Any]:
    apply(conditions)
    return data


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


def _set_limits(limits: dict[int, int]) -> None:
    from resource import getrlimit, setrlimit

    for resource, limit in limits.items():
        soft, hard = getrlimit(resource)
        if soft != limit:
            # The hard limit may have been set from outside just now.
            with suppress(OSError, ValueError):
                setrlimit(resource, (limit, hard))
