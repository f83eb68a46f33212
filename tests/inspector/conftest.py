"""Restores the changes that a test of the inspector makes to this process, and makes a shared state."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sanic import Sanic
from support.inspecting import Shared, shared_state


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    # The client of the tests replaces one header, the inspector sets the other.
    monkeypatch.setattr(Sanic, "__call__", Sanic.__call__)
    monkeypatch.setenv("SANIC_IGNORE_PRODUCTION_WARNING", "")


@pytest.fixture
def shared() -> Iterator[Shared]:
    with shared_state() as shared:
        yield shared
