"""The pytest plugin that runs Sanic's own tests on this package.

It is loaded with ``-p`` before any test module is imported, so that their imports from ``sanic.worker``
already get this package. A run in which one class still is the stock one ends before its first test.
"""

from __future__ import annotations

import importlib

import pytest
import sanic

import worker

# Tests of Sanic 24.6 and later that are not meant to pass, and the reasons.
DEVIATIONS = {
    "test_kill": "expects that the process group of main is killed",
    "test_shutdown_signal_send_kill": "expects that the process group of main is killed",
}

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Expect the deviations to fail; one that passes is a failure, so that the list stays true."""
    if sanic.__version__.startswith("23."):
        return
    for item in items:
        if reason := DEVIATIONS.get(item.name):
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True))


def pytest_report_header() -> str:
    """Say which core the run is on."""
    return f"worker: {worker.__file__}, {worker.core_info()}"
