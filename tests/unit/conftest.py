"""Each test finds Sanic as it is after the import: no applications, no names of processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sanic import Sanic

from .running import listening


@pytest.fixture(autouse=True)
def _fresh_sanic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sanic, "_app_registry", {})
    monkeypatch.setattr(Sanic, "test_mode", True)
    monkeypatch.delenv("SANIC_WORKER_NAME", raising=False)


@pytest.fixture
def main_is_heard(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What the manager logs is kept for the test, and what it holds let go after it."""
    with listening(caplog):
        yield
