"""The pytest plugin under which Sanic's own tests meet this package.

It is loaded with ``-p`` before any test module is imported, so that what a test imports from
``sanic.worker`` already is ours. A run in which one class still is the stock one ends before its first
test.
"""

from __future__ import annotations

import importlib

import pytest

import worker

REPLACED = {
    "constants": "ProcessState",
    "inspector": "Inspector",
    "loader": "AppLoader",
    "manager": "WorkerManager",
    "multiplexer": "WorkerMultiplexer",
    "process": "WorkerProcess",
    "reloader": "Reloader",
    "restarter": "Restarter",
    "serve": "worker_serve",
    "state": "WorkerState",
}

worker.install()


def pytest_configure() -> None:
    """Refuse to run on a stock module."""
    for module, name in REPLACED.items():
        owner = getattr(importlib.import_module(f"sanic.worker.{module}"), name).__module__
        if not owner.startswith("worker."):
            raise pytest.UsageError(f"sanic.worker.{module}.{name} is still that of {owner}")


def pytest_report_header() -> str:
    """Say which core the run is on."""
    return f"worker: {worker.__file__}, {worker.core_info()}"
