"""Imports the application in the preload process, by the steps that a spawned worker takes."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import process as processes
from multiprocessing import spawn
from multiprocessing.process import current_process
from typing import Any, BinaryIO

from sanic.log import error_logger

from worker._child import bootstrap

__all__ = ["Application", "load", "restore"]

# How much of an answer is sent: the main process reads it as one message.
MAX_TEXT = 1000
MAX_FINDINGS = 20

# Called first in a child, once the application is imported.
_restore: Callable[[], object] | None = None


class Application:
    """The application as the main process describes it, to be imported.

    Args:
        load (Callable | None): Imports its module. ``None``: the script that was run contains it, and is
            imported before this object is unpickled.
        set_up (Callable | None): A function to call before that.
        logs (bool): Whether an error is logged. Defaults to ``True``.
    """

    name = "Sanic-Preload"

    def __init__(
        self,
        load: Callable[[], object] | None,
        set_up: Callable[[], object] | None,
        *,
        logs: bool = True,
    ) -> None:
        self.load = load
        self.logs = logs
        self._set_up = set_up

    def __reduce__(self) -> tuple[Any, ...]:
        # The call comes before the state, which may import the application.
        return bootstrap.unpickle, (Application, self._set_up, {}), {"load": self.load, "logs": self.logs}


def load(data: BinaryIO, sentinel: int) -> dict[str, Any]:
    """Import the application that the main process describes.

    Args:
        data (BinaryIO): The preparation of a spawned process, then an :class:`Application`, both pickled.
        sentinel (int): A descriptor that becomes readable when the main process has ended.

    Returns:
        dict[str, Any]: ``error``, if it cannot be imported: the reason, which is logged here unless the main
            process reports it. ``unsafe``: at most 20 findings on what no fork may share, each a ``dict``
            of ``text``, ``module`` and ``line``.
    """
    # Imported on use: a process that forks workers without their application does not need these.
    from worker._child.preload.findings import Watch
    from worker._child.preload.hooks import run_before_fork
    from worker._child.preload.kept import Kept

    global _restore
    # As in a spawned process: an attempt to start another one is an error.
    process: Any = current_process()
    process._inheriting = True
    kept = Kept()
    watch = Watch(kept.observe)
    logs = True
    try:
        with watch:
            spawn.prepare(pickle.load(data))
            application = pickle.load(data)
            logs = application.logs
            _begin(sentinel)
            if application.load is not None:
                watch.module = _module(application.load)
                application.load()
    # The code of the application may raise any error, and may leave by SystemExit.
    except BaseException as error:
        text = f"{type(error).__name__}: {error}".removesuffix(": ")[:MAX_TEXT]
        if logs:
            error_logger.error("Failed to preload the application: %s", text, exc_info=error)
        watch.kill_processes()
        return {"error": text}
    finally:
        vars(process).pop("_inheriting", None)
    findings = [*run_before_fork(), *watch.find()]
    kept.end(watch.opened)
    _restore = kept.restore
    # Each child would print what is still in the buffers.
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with suppress(OSError, ValueError):
            stream.flush()
    unsafe = [{**finding._asdict(), "text": finding.text[:MAX_TEXT]} for finding in findings[:MAX_FINDINGS]]
    if not unsafe:
        return {}
    watch.kill_processes()
    return {"unsafe": unsafe}


def _begin(sentinel: int) -> None:
    """Let the application find a daemon of the main process, as in a worker that imports it."""
    process: Any = current_process()
    del process._inheriting
    process._config["daemon"] = True
    module: Any = processes
    module._parent_process = module._ParentProcess("MainProcess", os.getppid(), sentinel)


def restore() -> None:
    """Give a child what it would have if it had imported the application itself."""
    if _restore is not None:
        _restore()


def _module(load: Any) -> str:
    """Return the name of the module that a loader of an application imports."""
    loader = getattr(load, "__self__", None)
    factory, name = (getattr(loader, key, "") for key in ("factory", "module_name"))
    return str(getattr(factory, "__module__", "") or name or getattr(loader, "module_input", ""))
