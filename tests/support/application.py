"""Fixtures of tests that use Sanic: each test finds it without applications, as after its import."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sanic import Sanic

from .running import listening
from .serving import NAME, Server


@pytest.fixture(autouse=True)
def _fresh_sanic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sanic, "_app_registry", {})
    monkeypatch.setattr(Sanic, "test_mode", True)
    monkeypatch.delenv("SANIC_WORKER_NAME", raising=False)


@pytest.fixture
def main_is_heard(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Keep the manager's log for the test, and release the objects that it holds afterwards."""
    with listening(caplog):
        yield


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    """Start a server process; end it after the test."""
    servers: list[Server] = []
    monkeypatch.setenv("SANIC_WORKER_NAME", NAME)
    monkeypatch.setenv("SANIC_WORKER_IDENTIFIER", "Srv 0")

    def start(build: Callable[[Any], None] = lambda app: None, **options: Any) -> Server:
        servers.append(Server(build, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def watched(tmp_path: Path) -> Path:
    """Make a directory with two files and one below."""
    (tmp_path / "below").mkdir()
    for name in ("a.txt", "b.txt", "below/c.txt"):
        edit(tmp_path / name, 1000)
    return tmp_path


def edit(path: Path, mtime: float) -> None:
    path.touch()
    os.utime(path, (mtime, mtime))
