"""``Table``: values and keys whose classes are missing, or broken."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import pytest
from support.tables import Memory

from worker._core.codec import PartialEntry, UnreadableError

pytestmark = pytest.mark.native


def fail() -> None:
    """Act as a broken class does."""
    raise RuntimeError("as it likes")


# The actions of the values below while they are pickled or unpickled.
acts: dict[str, Any] = {}


class Acting:
    """A value with an action when it is pickled, and another when it is unpickled."""

    def __getstate__(self) -> dict[str, int]:
        acts.get("pickled", int)()
        return {"state": 1}

    def __setstate__(self, state: dict[str, int]) -> None:
        acts.get("unpickled", int)()
        self.__dict__.update(state)


class Key(Acting):
    """A key of that kind: all are equal, with any other attributes, and act when compared as well."""

    def __hash__(self) -> int:
        acts.get("hashed", int)()
        return 7

    def __eq__(self, other: object) -> bool:
        acts.get("compared", int)()
        return isinstance(other, Key)


@pytest.fixture(autouse=True)
def _acts() -> Iterator[None]:
    yield
    acts.clear()


@contextmanager
def at_hand() -> Iterator[Any]:
    """Make a module with a class; after the test, values and keys of it cannot be unpickled."""
    module = ModuleType("not_always_there")
    exec(
        "class Thing:\n    def __eq__(self, other): return True\n    __hash__ = lambda self: 1", vars(module)
    )
    sys.modules[module.__name__] = module
    try:
        yield module.Thing()
    finally:
        del sys.modules[module.__name__]


def with_unreadable(memory: Memory) -> Any:
    """Make a table with a value that cannot be read in this process."""
    table = memory.table()
    with at_hand() as thing:
        table.put("a", {"before": 1, "thing": thing, "after": [2]})
        assert type(table.entry("a")) is dict
        assert table.entry("a")["thing"] == thing
    return table


def is_of(error: UnreadableError, name: str, key: Any) -> bool:
    return (error.name, error.key) == (name, key) and "not_always_there" in str(error)


def test_only_unreadable_values_are_missing(memory: Memory) -> None:
    for table in (with_unreadable(memory), memory.table()):
        for entry in (table.entry("a"), table.entries()["a"], table.entry("a", 7)):
            assert type(entry) is PartialEntry
            assert list(entry.items()) == [("before", 1), ("after", [2])]
            assert list(entry.unreadable) == ["thing"]
            assert is_of(entry.unreadable["thing"], "a", "thing")
            for ask in (entry.__getitem__, entry.get, partial(table.value, "a")):
                with pytest.raises(UnreadableError) as raised:
                    ask("thing")
                assert is_of(raised.value, "a", "thing")
            with pytest.raises(KeyError):
                entry["missing"]
        assert table.value("a", "before") == 1
        assert table.names() == ["a"]


def test_a_value_can_be_read_if_its_class_exists(memory: Memory) -> None:
    table = with_unreadable(memory)
    assert type(table.entry("a")) is PartialEntry
    with at_hand() as thing:
        for one in (table, memory.table()):
            assert type(one.entry("a")) is dict
            assert type(one.value("a", "thing")) is type(thing)


def test_an_unreadable_value_can_be_replaced(memory: Memory) -> None:
    table = with_unreadable(memory)
    table.update("a", {"after": 3})
    assert dict(table.entry("a").items()) == {"before": 1, "after": 3}
    table.update("a", {"thing": 4})
    assert type(table.entry("a")) is dict
    assert list(table.entry("a").items()) == [("before", 1), ("thing", 4), ("after", 3)]


def test_an_unreadable_value_can_be_removed(memory: Memory) -> None:
    table = with_unreadable(memory)
    table.discard("a", "thing")
    assert table.entry("a") == {"before": 1, "after": [2]}
    table = with_unreadable(memory)
    table.remove("a")
    assert table.names() == []


def test_a_staged_value_hides_an_unreadable_one(memory: Memory) -> None:
    table = with_unreadable(memory)
    table.update("a", {"pid": 6})
    table.update("a", {"thing": 5}, 7)
    assert type(table.entry("a", 7)) is dict
    assert table.entry("a", 7)["thing"] == table.value("a", "thing", 7) == 5
    assert type(table.entry("a")) is PartialEntry


def test_an_unreadable_staged_value_hides_that_of_the_entry(memory: Memory) -> None:
    table = memory.table()
    table.put("a", {"pid": 6, "thing": 1})
    with at_hand() as thing:
        table.update("a", {"thing": thing}, 7)
    assert table.entry("a") == {"pid": 6, "thing": 1}
    assert dict(table.entry("a", 7).items()) == {"pid": 6}
    assert list(table.entry("a", 7).unreadable) == ["thing"]
    assert dict(table.staged("a", 7).items()) == {}
    with pytest.raises(UnreadableError):
        table.staged("a", 7)["thing"]
    with pytest.raises(UnreadableError):
        table.value("a", "thing", 7)


def test_an_unreadable_value_is_handed_over(memory: Memory) -> None:
    table = memory.table()
    table.put("a", {"pid": 6, "thing": 1})
    with at_hand() as thing:
        table.update("a", {"thing": thing}, 7)
    table.hand_over("a", 7, {"pid": 7})
    assert list(table.entry("a").unreadable) == ["thing"]
    with at_hand():
        assert table.entry("a").keys() == {"pid", "thing"}


def test_an_unreadable_owner_counts_as_another_process(memory: Memory) -> None:
    table = memory.table()
    with at_hand() as thing:
        table.put("a", {"pid": thing})
    table.update("a", {"x": 1}, 7)
    assert table.staged("a", 7) == {"x": 1}
    assert list(table.entry("a").unreadable) == ["pid"]
    assert dict(table.entry("a", 7).items()) == {"x": 1}


def test_an_unreadable_key_is_kept(memory: Memory) -> None:
    table = memory.table()
    with at_hand() as thing:
        table.put("a", {"x": 1, thing: 2})
    for one in (table, memory.table()):
        one.update("a", {"x": 3, 5: 4})
        assert dict(one.entry("a").items()) == {"x": 3, 5: 4}
        assert len(one.entry("a").unreadable) == 1
    with at_hand() as thing:
        assert table.value("a", thing) == 2
        assert table.entry("a").keys() == {"x", thing, 5}


@pytest.mark.parametrize("error", [KeyboardInterrupt, GeneratorExit])
def test_interrupts_during_unpickling_are_raised(memory: Memory, error: type[BaseException]) -> None:
    def fail() -> None:
        raise error

    table = memory.table()
    table.put("a", {"acting": Acting(), "x": 1})
    acts["unpickled"] = fail
    for read in (lambda: table.entry("a"), lambda: table.value("a", "acting"), table.entries):
        with pytest.raises(error):
            read()
    acts.clear()
    table.update("a", {"x": 2})
    assert table.value("a", "x") == 2


@pytest.mark.parametrize(
    "error", [KeyError, RecursionError, MemoryError, StopIteration, AttributeError, SystemExit]
)
def test_any_exception_makes_a_value_unreadable(memory: Memory, error: type[BaseException]) -> None:
    def fail() -> None:
        raise error("as it likes")

    table = memory.table()
    table.put("a", {"acting": Acting(), "x": 1})
    acts["unpickled"] = fail
    assert dict(table.entry("a").items()) == {"x": 1}
    assert type(table.entry("a").unreadable["acting"].why) is error
    with pytest.raises(UnreadableError, match="as it likes"):
        table.value("a", "acting")


@pytest.mark.parametrize("moment", ["pickled", "unpickled", "compared"])
def test_foreign_code_may_use_the_table(memory: Memory, moment: str) -> None:
    table = memory.table()
    table.put("a", {"acting": Acting(), Key(): 1})
    table.put("count", {"acted": 0})

    def act() -> None:
        behaviour = acts.pop(moment)
        table.update("count", {"acted": table.value("count", "acted") + 1})
        table.entries()
        table.update("a", {"while": "acting"})
        memory.table().entries()
        acts[moment] = behaviour

    acts[moment] = act
    for number in range(3):
        table.update("a", {"acting": Acting(), Key(): number})
        assert table.value("a", Key()) == number
        assert table.entry("a").keys() == {"acting", "while", Key()}
    acts.clear()
    assert table.value("count", "acted") >= 3
    assert memory.table().entry("a").keys() == {"acting", "while", Key()}


def test_only_requested_keys_are_unpickled(memory: Memory) -> None:
    table = memory.table()
    table.put("a", {"acting": Acting(), "x": 1, "pid": 6})
    acts["unpickled"] = lambda: pytest.fail("it was unpickled")
    assert table.value("a", "x") == 1
    assert table.value("a", "x", 7) == 1
    table.update("a", {"x": 2})
    table.update("a", {"x": 3}, 7)
    assert table.some("a", ("x", "pid")) == {"x": 2, "pid": 6}
    assert table.some("a", ("x", "pid"), 7) == {"x": 3}
    table.update("a", {"pid": os.getpid()})
    table.beat(3)
    assert table.value("a", "requests") == 3
    table.hand_over("a", 7, {})
    table.discard("a", "x")
    assert table.names() == table.changes() == ["a"]


def test_some_returns_the_requested_keys(memory: Memory) -> None:
    table = with_unreadable(memory)
    table.update("a", {"x": 1, "pid": 6})
    table.update("a", {"mine": 2}, 7)
    for one in (table, memory.table()):
        assert one.some("a", ("x", "thing", "missing", "before")) == {"x": 1, "before": 1}
        assert one.some("a", ("x", "mine"), 7) == {"mine": 2}
        assert one.some("a", ("x",), 8) == {}
        with pytest.raises(KeyError, match=r"^'b'$"):
            one.some("b", ("x",))


@pytest.mark.parametrize("moment", ["hashed", "compared"])
def test_a_key_that_raises_does_not_hide_other_keys(memory: Memory, moment: str) -> None:
    table = memory.table()
    table.put("a", {Key(): 1, "x": 2})
    table.put("b", {7: 3, Key(): 4, "x": 5})
    acts[moment] = fail
    for one in (table, memory.table()):
        assert one.value("a", "x") == 2
        entries = one.entries()
        assert entries["a"]["x"] == 2
        # It has the hash of 7, with which it is compared.
        assert dict(entries["b"].items()) == {7: 3, "x": 5}
    acts.clear()
    assert table.entries() == {"a": {Key(): 1, "x": 2}, "b": {7: 3, Key(): 4, "x": 5}}


def test_an_unreadable_value_prevents_a_copy_of_the_entry(memory: Memory) -> None:
    table = with_unreadable(memory)
    entry = table.entry("a")
    assert set(entry) == {"before", "thing", "after"}
    assert len(entry) == 3
    assert "thing" in entry
    for anew in (lambda: {**entry, "before": 2}, lambda: dict(entry), lambda: entry | {}):
        with pytest.raises(UnreadableError, match="'thing' in the entry 'a'"):
            anew()
    with pytest.raises(UnreadableError, match="'thing' in the entry 'a'"):
        table.put("a", entry)
    assert type(memory.table().entry("a")) is PartialEntry
