"""The key of the inspector is the text that the operator has set; Sanic converts it."""

from __future__ import annotations

from typing import Any

import pytest
from sanic.config import Config
from support.inspecting import ask, make


@pytest.mark.parametrize("key", ["secret", "0123456", "12e4567", "1.50", "off", "no", "yes", "0", "1_000"])
def test_a_key_in_the_environment_is_not_changed(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANIC_INSPECTOR_API_KEY", key)
    inspector = make(api_key=Config().INSPECTOR_API_KEY)(run=False)
    assert inspector.api_key == key
    assert ask(inspector, "GET", "/", authorization=f"Bearer {key}").status == 200
    assert ask(inspector, "GET", "/").status == 401


@pytest.mark.parametrize(
    ("given", "key"),
    [("text", "text"), ("", ""), (None, ""), (False, ""), (0, "0"), (12, "12"), (0.0, "0.0")],
)
def test_a_key_of_the_application(given: Any, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SANIC_INSPECTOR_API_KEY", raising=False)
    assert make(api_key=given).api_key == key


@pytest.mark.parametrize("given", ["text", "", None])
def test_a_text_of_the_application_comes_before_the_environment(
    given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANIC_INSPECTOR_API_KEY", "0123")
    assert make(api_key=given).api_key == (given or "")
