"""The log of a child is set up as the installed Sanic does it."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from worker._child.logs import setup_logging


class TestLogging:
    app = SimpleNamespace(
        state=SimpleNamespace(is_debug=True), config=SimpleNamespace(NO_COLOR=False, LOG_EXTRA="extra")
    )

    def test_is_set_up_by_sanic_if_available(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[tuple[Any, ...]] = []
        package, module = ModuleType("sanic.logging"), ModuleType("sanic.logging.setup")
        module.setup_logging = lambda *args: calls.append(args)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "sanic.logging", package)
        monkeypatch.setitem(sys.modules, "sanic.logging.setup", module)
        setup_logging(self.app)
        assert calls == [(True, False, "extra")]

    def test_a_missing_setup_is_no_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Missing:
            def find_spec(self, name: str, *args: Any) -> None:
                if name.startswith("sanic.logging"):
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        for name in ("sanic.logging", "sanic.logging.setup"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
        setup_logging(self.app)
