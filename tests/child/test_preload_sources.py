"""The source code of Sanic's methods that a preload process keeps for its children."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from sanic.touchup.schemes import base
from sanic.touchup.service import TouchUp

from worker._child.preload import sources


class Rewritten:
    """Stands for a class of Sanic."""

    def method(self) -> int:
        """Stand for a method that is rewritten."""
        return 1


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], str]:
    """Keep the sources of a class; return the function by which Sanic reads them from then on."""
    module: Any = base
    monkeypatch.setattr(TouchUp, "_registry", {(Rewritten, "method")})
    monkeypatch.setattr(module, "getsource", module.getsource)
    sources.keep()
    found: Callable[[Any], str] = module.getsource
    return found


def test_children_rewrite_the_code_that_they_were_forked_with(
    read: Callable[[Any], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = inspect.getsource(Rewritten.method)

    def changed(_: object) -> str:
        raise OSError("the file has changed")

    monkeypatch.setattr(inspect, "findsource", changed)
    assert read(Rewritten.method) == expected


def test_the_source_of_any_other_method_is_read(read: Callable[[Any], str]) -> None:
    assert read(test_the_source_of_any_other_method_is_read).startswith("def test_the_source_of_any")
