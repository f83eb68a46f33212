"""Names that all releases of Sanic share, and one that differs."""

from __future__ import annotations

import subprocess
import sys
from multiprocessing import get_context

import pytest
from support.targets import nothing

from worker.process import Worker
from worker.serve import _is_server_process


def test_the_prefix_is_that_of_the_installed_release() -> None:
    stock = "from sanic.worker.process import Worker; print(Worker.WORKER_PREFIX)"
    ended = subprocess.run([sys.executable, "-c", stock], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == Worker.WORKER_PREFIX


@pytest.mark.parametrize("prefix", ["Sanic-", "Sanic"])
def test_processes_are_called_alike(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Worker, "WORKER_PREFIX", prefix)
    worker = Worker("Server-0", nothing, {}, get_context("fork"), {}, num=2)
    assert {process.name for process in worker.processes} == {"Sanic-Server-0-0", "Sanic-Server-0-1"}
    for name, is_server in (("Sanic-Server-0-1", True), ("Sanic-MyServer-0", False), ("", False)):
        monkeypatch.setenv("SANIC_WORKER_NAME", name)
        assert _is_server_process() is is_server
