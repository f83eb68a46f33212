"""The worker manager of Sanic servers, built anew: a drop-in for ``sanic.worker``.

``worker.install()`` puts it under Sanic; the ``sanic-worker`` command runs an application on it;
the classes stand on their own as well.

A name is imported from its module when it is first used: a process that serves requests never needs the
manager, and starts sooner without it.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Remembers the signals that were blocked or ignored when this process was started.
import worker._child.signals  # noqa: F401
from worker._child.descriptors import fill_standard
from worker.cli import namesake

if TYPE_CHECKING:
    # For type checkers and for programs that freeze this package: both read imports and run none.
    from worker._child.preload.hooks import after_fork, before_fork
    from worker._core import CoreInfo, core_info
    from worker.constants import ProcessState, RestartOrder
    from worker.inspector import Inspector
    from worker.integration import install, uninstall
    from worker.loader import AppLoader, CertLoader
    from worker.manager import MonitorCycle, WorkerManager
    from worker.multiplexer import WorkerMultiplexer
    from worker.process import Worker, WorkerProcess
    from worker.reloader import Reloader
    from worker.restarter import Restarter
    from worker.serve import worker_serve
    from worker.state import WorkerState

    __version__: str

__all__ = [
    "AppLoader",
    "CertLoader",
    "CoreInfo",
    "Inspector",
    "MonitorCycle",
    "ProcessState",
    "Reloader",
    "RestartOrder",
    "Restarter",
    "Worker",
    "WorkerManager",
    "WorkerMultiplexer",
    "WorkerProcess",
    "WorkerState",
    "after_fork",
    "before_fork",
    "core_info",
    "install",
    "uninstall",
    "worker_serve",
]

# The public modules, each with the names that are imported from it on use.
_MODULES = {
    "constants": ("ProcessState", "RestartOrder"),
    "inspector": ("Inspector",),
    "integration": ("install", "uninstall"),
    "loader": ("AppLoader", "CertLoader"),
    "manager": ("MonitorCycle", "WorkerManager"),
    "multiplexer": ("WorkerMultiplexer",),
    "process": ("Worker", "WorkerProcess"),
    "reloader": ("Reloader",),
    "restarter": ("Restarter",),
    "serve": ("worker_serve",),
    "settings": (),
    "state": ("WorkerState",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}
_HOMES |= {"CoreInfo": "_core", "core_info": "_core"}
_HOMES |= dict.fromkeys(("after_fork", "before_fork"), "_child.preload.hooks")

# Before any file is opened for long. An import closes the files that it opens.
fill_standard()

sys.meta_path.append(namesake.Finder)

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            return import_module(f"worker.{name}")
        if name in _HOMES:
            # Not kept: a test may have replaced it for a while.
            return getattr(import_module(f"worker.{_HOMES[name]}"), name)
        if name == "__version__":
            # Kept: it is read from the files of the distribution.
            return globals().setdefault(name, __getattr__("core_info")().version)
        raise namesake.missing_attribute(name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, *_MODULES, "__version__"})
