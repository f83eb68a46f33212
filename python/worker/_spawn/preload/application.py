"""Has a preload process import the application."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing import popen_forkserver, spawn
from typing import Any

from worker._child.preload.application import Application
from worker._spawn import processes
from worker._spawn.popen import pickled
from worker._spawn.preload.conditions import present, read_status
from worker._spawn.preload.preloads import preloads
from worker._spawn.preload.process import NAME, PreloadProcess

__all__ = ["described", "has_present_conditions", "load_early"]

METHOD = "spawn"


class _Popen:
    """Takes the place of a child while its data are pickled. A preload process gets no descriptors."""

    DupFd = popen_forkserver.Popen.DupFd

    def duplicate_for_child(self, fd: int) -> int:
        raise ValueError("a preload process takes no file descriptors")


def load_early(loader: Any) -> None:
    """Let the preload process, if there is one, import the application while this process does so, too.

    An error is reported by this process alone. If it is in other conditions afterwards, which a spawned
    worker would take over, that import is of no use: see :func:`has_present_conditions`.

    Args:
        loader (AppLoader): The loader of the application, before it is used.

    Raises:
        PreloadError: The preload process has ended.
    """
    process, method = preloads.current, multiprocessing.get_start_method(allow_none=True)
    if process is None:
        return
    # Not chosen yet: the application may choose it when it is imported.
    multiprocessing.set_start_method(METHOD, force=True)
    try:
        loader.find_modules()
        process.load(described(loader, logs=False))
        process.loaded_in = _conditions()
    finally:
        multiprocessing.set_start_method(method, force=True)


def has_present_conditions(process: PreloadProcess) -> bool:
    """Return whether an import of the application would begin in the conditions of :func:`load_early`."""
    return process.loaded_in == _conditions()


def _conditions() -> object:
    """Return the conditions of an import, apart from those that make a preload process outdated."""
    now = present(read_status())
    return spawn.get_preparation_data(NAME), now.umask, now.limits


def described(loader: Any, *, logs: bool = True) -> bytes:
    """Return the data from which a preload process imports the application.

    Args:
        loader (AppLoader | None): The loader of the application; ``None``: the script that was run has it.
        logs (bool): Whether the preload process logs an error. Defaults to ``True``.
    """
    load: Callable[[], object] | None = getattr(loader, "preload", None)
    application = Application(load, processes.set_up_function(), logs=logs)
    conditions = present(read_status())
    # The preload process is a child, too: without this, the application could take it for the main process.
    conditions.environment["SANIC_WORKER_NAME"] = NAME
    return bytes(pickled(_Popen(), application, conditions))
