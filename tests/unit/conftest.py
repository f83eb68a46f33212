"""Each test finds Sanic as it is after the import: no applications, no names of processes."""

from __future__ import annotations

import pytest
from sanic import Sanic


@pytest.fixture(autouse=True)
def _fresh_sanic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sanic, "_app_registry", {})
    monkeypatch.setattr(Sanic, "test_mode", True)
    monkeypatch.delenv("SANIC_WORKER_NAME", raising=False)
