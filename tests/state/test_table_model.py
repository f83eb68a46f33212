"""``Table``: after any operations, it equals a ``dict`` of ``dict``."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.tables import MEBIBYTE, Memory

pytestmark = pytest.mark.native

pids = st.sampled_from([0, 7, 8])
keys = st.sampled_from(["a", "b", "pid", 1, True, 1.0, (1, "x"), None])
pairs = st.dictionaries(keys, st.sampled_from([7, 8, None, "x", [1]]), max_size=4)
operations = st.tuples(
    st.sampled_from(["put", "update", "update", "discard", "remove", "hand_over", "drop_staged", "changes"]),
    st.sampled_from(["one", "two", "\ud800"]),
    pids,
    keys,
    pairs,
)


class Model:
    """The content of a table, as plain dictionaries."""

    def __init__(self) -> None:
        self.parts: dict[str, dict[int, dict[Any, Any]]] = {}

    def act(self, what: str, name: str, pid: int, key: Any, pairs: dict[Any, Any]) -> None:
        if what == "put":
            self.parts.setdefault(name, {})[0] = dict(pairs)
        elif what == "drop_staged":
            self.parts.get(name, {}).pop(pid or -1, None)
        elif what == "remove":
            del self.parts[name]
        else:
            parts = self.parts[name]
            whose = pid if pid and parts[0].get("pid", pid) != pid else 0
            if what == "update":
                parts.setdefault(whose, {}).update(pairs)
            elif what == "discard":
                del parts.get(whose, {})[key]
            else:
                parts[0] |= pairs | parts.pop(pid or -1, {})

    def seen(self, name: str, pid: int) -> dict[Any, Any]:
        parts = self.parts[name]
        apart = parts.get(pid, {}) if parts[0].get("pid", pid) != pid else {}
        return parts[0] | apart


def call(table: Any, what: str, name: str, pid: int, key: Any, pairs: dict[Any, Any]) -> None:
    """Apply the model's operations to a table."""
    arguments = {
        "put": (pairs,),
        "update": (pairs, pid),
        "discard": (key, pid),
        "remove": (),
        "hand_over": (pid, pairs),
        "drop_staged": (pid,),
    }
    getattr(table, what)(name, *arguments[what])


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.integers(0, 1), operations), max_size=30))
def test_the_table_equals_a_dict_of_dicts(core: ModuleType, steps: list[tuple[int, tuple[Any, ...]]]) -> None:
    with Memory(core, 4 * MEBIBYTE) as memory:
        tables, main, model = [memory.table(), memory.table()], memory.table(), Model()
        touched: set[str] = set()
        for number, step in steps:
            what, name, *_ = step
            if what == "changes":
                assert set(main.changes()) <= touched
                touched.clear()
                continue
            touched.add(name)
            errors = []
            for act in (model.act, lambda *step, number=number: call(tables[number], *step)):
                try:
                    act(*step)
                except KeyError as exc:
                    errors.append(exc.args)
            assert not errors or errors[0] == errors[1]
            for one in tables:
                assert one.names() == list(model.parts)
                for name, parts in model.parts.items():
                    for pid in (0, 7, 8):
                        assert list(one.entry(name, pid).items()) == list(model.seen(name, pid).items())
                        assert one.staged(name, pid) == (parts.get(pid, {}) if pid else {})
