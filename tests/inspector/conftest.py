"""Restores the changes that a test of the inspector makes to this process."""

from __future__ import annotations

import pytest
from sanic import Sanic


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    # The client of the tests replaces one header, the inspector sets the other.
    monkeypatch.setattr(Sanic, "__call__", Sanic.__call__)
    monkeypatch.setenv("SANIC_IGNORE_PRODUCTION_WARNING", "")
