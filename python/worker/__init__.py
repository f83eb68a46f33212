"""The worker manager of Sanic servers, built anew: a drop-in for ``sanic.worker``.

``worker.install()`` puts it under Sanic; the ``sanic-worker`` command runs an application on it;
the classes stand on their own as well.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from worker._child.descriptors import fill_standard
from worker._cli import namesake
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
    "core_info",
    "install",
    "uninstall",
    "worker_serve",
]

__version__ = core_info().version

# Before any file is opened for long. An import closes the files that it opens.
fill_standard()

sys.meta_path.append(namesake.Finder)

if not TYPE_CHECKING:

    def __getattr__(name: str) -> None:
        raise namesake.missing_attribute(name)
