from __future__ import annotations

from typing import Any

import pytest

from worker.constants import accept_newer_keywords


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
