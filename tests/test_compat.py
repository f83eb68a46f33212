from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from worker._compat import accept_newer_keywords, setup_logging


class Table:
    @accept_newer_keywords
    def manage(self, ident: str, func: Any = None, *, label: str = "") -> dict[str, Any]:
        """Words."""
        return {"ident": ident, "func": func, "label": label}

    @accept_newer_keywords
    def shutdown_server(self, ident: str | None = None) -> Any:
        return ident


@pytest.mark.parametrize(
    ("args", "kwargs", "ident", "label"),
    [
        (("A", 1), {}, "A", ""),
        ((), {"ident": "A", "func": 1}, "A", ""),
        ((), {"name": "A", "func": 1}, "A", ""),
        ((), {"name": "A", "func": 1, "ident": "a"}, "A", "a"),
        (("A", 1), {"ident": "a"}, "A", "a"),
        (("A", 1), {"label": "a"}, "A", "a"),
        (("A",), {"func": 1, "ident": ""}, "A", ""),
    ],
)
def test_workers_accept_the_names_of_both_releases(
    args: tuple[Any, ...], kwargs: dict[str, Any], ident: str, label: str
) -> None:
    assert Table().manage(*args, **kwargs) == {"ident": ident, "func": 1, "label": label}


@pytest.mark.parametrize(("args", "kwargs"), [((), {}), (("A",), {"name": "A"}), ((), {"func": 1})])
def test_wrong_arguments_raise_a_type_error(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="argument"):
        Table().manage(*args, **kwargs)


def test_a_renamed_keyword_is_accepted() -> None:
    table = Table()
    assert table.shutdown_server() is None
    assert (
        table.shutdown_server("a")
        == table.shutdown_server(ident="a")
        == table.shutdown_server(name="a")
        == "a"
    )  # type: ignore[call-arg]


def test_the_wrapper_keeps_name_and_docstring() -> None:
    assert (Table.manage.__name__, Table.manage.__doc__) == ("manage", "Words.")


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
