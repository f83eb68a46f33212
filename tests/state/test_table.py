"""``Table``: entries, their keys and their values."""

from __future__ import annotations

import os
import pickle
from collections import ChainMap, OrderedDict
from collections.abc import Callable, Mapping
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import pytest
from support.tables import MEBIBYTE, SCHEMA, Memory

pytestmark = pytest.mark.native

NAMES = [
    "",
    "Sanic-Server-0-0",
    "\u00fc\U0001f600",
    "\udcff\ud800",
    "a\0b",
    "e\u0301",
    "\u00e9",
    "n" * 10_000,
]

# Operations on a name; each of these needs the entry.
WANTING: dict[str, Callable[[Any, str], Any]] = {
    "entry": lambda table, name: table.entry(name),
    "entry of a process": lambda table, name: table.entry(name, 7),
    "value": lambda table, name: table.value(name, "a"),
    "update": lambda table, name: table.update(name, {"a": 1}),
    "update nothing": lambda table, name: table.update(name, {}),
    "update of a process": lambda table, name: table.update(name, {"a": 1}, 7),
    "discard": lambda table, name: table.discard(name, "a"),
    "remove": lambda table, name: table.remove(name),
    "hand_over": lambda table, name: table.hand_over(name, 7, {"a": 1}),
}


class Colour(str, Enum):
    RED = "red"


class Text(str):
    __slots__ = ()


def test_a_new_table_is_empty(memory: Memory) -> None:
    table = memory.table()
    assert table.names() == []
    assert table.entries() == {}


def test_entries_are_visible_to_every_table_of_the_file(memory: Memory) -> None:
    table = memory.table()
    other = memory.table()
    table.put("a", {"x": 1, "y": [2]})
    for one in (table, other, memory.table()):
        assert one.entry("a") == {"x": 1, "y": [2]}
        assert one.value("a", "y") == [2]
        assert one.entries() == {"a": {"x": 1, "y": [2]}}
        assert one.names() == ["a"]
        assert type(one.entry("a")) is dict
    other.update("a", {"x": 3})
    assert table.value("a", "x") == 3


def test_put_replaces_all_keys_and_update_only_some(memory: Memory) -> None:
    table = memory.table()
    table.put("a", {"x": 1, "y": 2})
    table.update("a", {"y": 3, "z": 4})
    assert table.entry("a") == {"x": 1, "y": 3, "z": 4}
    table.put("a", {"z": 5})
    assert table.entry("a") == {"z": 5}
    table.put("a", {})
    assert table.entry("a") == {}
    assert table.names() == ["a"]


def test_discard_deletes_a_key_and_remove_an_entry(memory: Memory) -> None:
    table = memory.table()
    table.put("a", {"x": 1, "y": 2})
    table.discard("a", "x")
    assert table.entry("a") == {"y": 2}
    table.remove("a")
    assert table.names() == []


@pytest.mark.parametrize("act", WANTING.values(), ids=WANTING)
@pytest.mark.parametrize("name", ["a", ""])
def test_operations_on_a_missing_entry_raise_a_key_error(
    memory: Memory, act: Callable[[Any, str], Any], name: str
) -> None:
    table = memory.table()
    table.put("other", {"a": 1})
    table.put("gone", {"a": 1})
    table.remove("gone")
    for missing in (name, "gone"):
        with pytest.raises(KeyError) as raised:
            act(table, missing)
        assert raised.value.args == (missing,)
    assert table.entries() == {"other": {"a": 1}}


def test_operations_on_a_missing_key_raise_a_key_error(memory: Memory) -> None:
    table = memory.table()
    table.put("a", {"x": 1})
    for key in ("y", "", 1, None, b"x", ("x",)):
        for act in (table.value, table.discard):
            with pytest.raises(KeyError) as raised:
                act("a", key)
            assert raised.value.args == (key,)
    assert table.entry("a") == {"x": 1}


def test_names_are_in_the_order_of_their_creation(memory: Memory) -> None:
    table = memory.table()
    names = [f"name-{number * 7 % 50}" for number in range(50)]
    for name in names:
        table.put(name, {})
    assert table.names() == list(table.entries()) == memory.table().names() == names
    table.put(names[3], {"again": True})
    table.update(names[4], {"again": True})
    assert table.names() == names
    table.remove(names[3])
    table.put(names[3], {})
    assert table.names() == list(table.entries()) == names[:3] + names[4:] + names[3:4]


def test_keys_are_in_the_order_of_a_dict(memory: Memory) -> None:
    table = memory.table()
    wanted: dict[Any, int] = {}
    table.put("a", {})
    for key in ("z", "a", 5, "m", b"b", "z", 5):
        wanted[key] = len(wanted)
        table.update("a", {key: wanted[key]})
    assert list(table.entry("a").items()) == list(wanted.items())
    table.discard("a", "a")
    table.update("a", {"a": 9, "m": 10})
    assert list(table.entry("a").items()) == [("z", 5), (5, 5), ("m", 10), (b"b", 4), ("a", 9)]
    table.put("a", {"m": 1, "z": 2})
    assert list(table.entry("a")) == ["m", "z"]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_name_may_be_any_text(memory: Memory, name: str) -> None:
    table = memory.table()
    for other in NAMES:
        table.put(other, {})
    table.put(name, {"mine": name})
    assert table.names() == memory.table().names() == NAMES
    assert table.entry(name) == {"mine": name}
    table.remove(name)
    assert table.names() == [other for other in NAMES if other != name]


def test_a_name_of_a_str_subclass_equals_its_text(memory: Memory) -> None:
    table = memory.table()
    table.put(Text("a"), {"x": 1})
    assert table.entry("a") == table.entry(Text("a")) == {"x": 1}
    table.put(Colour.RED, {})
    assert table.names() == ["a", "red"]


@pytest.mark.parametrize("name", [None, 1, b"a", ("a",)])
def test_a_name_that_is_no_text_is_refused(memory: Memory, name: Any) -> None:
    table = memory.table()
    others = {
        "put": lambda: table.put(name, {}),
        "staged": lambda: table.staged(name, 7),
        "drop_staged": lambda: table.drop_staged(name, 7),
    }
    for act in (*others.values(), *(lambda act=act: act(table, name) for act in WANTING.values())):
        with pytest.raises(TypeError):
            act()
    assert table.names() == []


@pytest.mark.parametrize("pairs", [None, 1, "ab", [("a", 1)], {"a"}])
def test_keys_in_no_mapping_are_refused(memory: Memory, pairs: Any) -> None:
    table = memory.table()
    table.put("a", {"x": 1})
    acts = (table.put, table.update, lambda name, pairs: table.hand_over(name, 7, pairs))
    for act in acts:
        with pytest.raises(TypeError):
            act("a", pairs)
    assert table.entries() == {"a": {"x": 1}}


@pytest.mark.parametrize("kind", [dict, OrderedDict, MappingProxyType, ChainMap])
def test_keys_in_any_mapping_are_accepted(
    memory: Memory, kind: Callable[[dict[str, int]], Mapping[str, int]]
) -> None:
    table = memory.table()
    table.put("a", kind({"x": 1, "y": 2}))
    table.update("a", kind({"y": 3}))
    table.hand_over("a", 7, kind({"z": 4}))
    assert table.entry("a") == {"x": 1, "y": 3, "z": 4}
    assert type(table.entry("a")) is dict


KEYS = [
    "",
    "\u00fc",
    "\udcff",
    Text("t"),
    0,
    2**70,
    -1,
    1.5,
    b"x",
    None,
    (1, ("a", None)),
    frozenset({1, 2}),
    date(2024, 2, 29),
]


@pytest.mark.parametrize("key", KEYS, ids=repr)
def test_a_key_may_be_any_hashable_value(memory: Memory, key: Any) -> None:
    table = memory.table()
    everything = dict.fromkeys(KEYS, "other")
    table.put("a", everything)
    table.update("a", {key: "mine"})
    assert memory.table().value("a", key) == table.value("a", key) == "mine"
    assert list(memory.table().entry("a").items()) == list((everything | {key: "mine"}).items())
    assert {type(one) for one in table.entry("a")} == {type(one) for one in KEYS} - {Text}
    table.discard("a", key)
    with pytest.raises(KeyError):
        table.value("a", key)
    del everything[key]
    assert table.entry("a") == everything


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (1, True),
        (True, 1.0),
        (2, Decimal(2)),
        ("red", Colour.RED),
        (Colour.RED, "red"),
        (Text("x"), "x"),
        (("ab", "a" + "bc"[:1]), ("ab",) * 2),
    ],
    ids=repr,
)
def test_equal_keys_are_one_key(memory: Memory, first: Any, second: Any) -> None:
    table = memory.table()
    table.put("a", {"other": 0, first: 1, None: 2})
    for one in (table, memory.table()):
        one.update("a", {second: one.value("a", second) + 1})
        assert one.value("a", first) == one.value("a", second)
    (_, kept, _) = table.entry("a")
    assert table.entry("a") == {"other": 0, first: 3, None: 2}
    assert type(kept) is (str if isinstance(first, str) else type(first))
    table.discard("a", second)
    assert table.entry("a") == {"other": 0, None: 2}


def test_put_replaces_equal_keys(memory: Memory) -> None:
    table = memory.table()
    table.put("a", {1: "x"})
    table.put("a", {True: "y"})
    assert repr(table.entry("a")) == "{True: 'y'}"


VALUES = [
    *(None, True, 0, -1, 2**64, -(2**200), 0.0, -0.0, 1e308, float("inf"), 1 + 2j),
    *("", "\u00fc\0\U0001f600", "\udcff", b"", b"\0\xff", bytearray(b"x"), range(3)),
    *((), (1, (2, [3])), [], [[1], {}], {}, {"a": {1: None}}, {1, 2}, frozenset({"x"})),
    *(datetime(2024, 2, 29, 1, 2, 3, 4), datetime(2024, 10, 27, 2, tzinfo=timezone.utc)),  # noqa: DTZ001
    *(datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=5), "x")), date.max, timedelta(1, 2, 3)),
    *(Colour.RED, Path("/a"), Decimal("1.50"), "x" * MEBIBYTE, b"y" * MEBIBYTE, ["z" * 100] * 10_000),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:30])
def test_values_are_returned_unchanged(memory: Memory, value: Any) -> None:
    table = memory.table()
    table.put("a", {"value": value, "other": 1})
    other = memory.table()
    for _ in range(2):
        for found in (table.value("a", "value"), other.entry("a")["value"], other.entries()["a"]["value"]):
            assert type(found) is type(value)
            assert repr(found) == repr(value)
    table.update("a", {"value": None})
    assert other.entry("a") == {"value": None, "other": 1}


def test_returned_entries_are_copies(memory: Memory) -> None:
    table = memory.table()
    given = {"list": [1], "text": "x"}
    table.put("a", given)
    given["list"].append(2)
    table.update("a", {"more": given})
    given.clear()
    for _ in range(2):
        table.entry("a").clear()
        table.entry("a")["list"].append(3)
        table.value("a", "list").append(4)
        table.entries()["a"]["more"].clear()
        table.names().clear()
    assert table.entry("a") == {"list": [1], "text": "x", "more": {"list": [1, 2], "text": "x"}}


class Refusing:
    def __reduce__(self) -> Any:
        raise LookupError("not this one")


def test_values_that_cannot_be_pickled_change_nothing(memory: Memory) -> None:
    table = memory.table()
    table.put("a", {"x": 1})
    for value, error in ((lambda: 0, (AttributeError, pickle.PicklingError)), (Refusing(), LookupError)):
        for act in (table.put, table.update, lambda name, pairs: table.hand_over(name, 7, pairs)):
            with pytest.raises(error):
                act("a", {"x": 2, "y": value})
        with pytest.raises(error):
            table.put("b", {"y": value})
    assert table.entries() == {"a": {"x": 1}}


@pytest.mark.parametrize("size", [0, 8, 4096])
def test_a_file_that_is_too_small_is_refused(core: ModuleType, size: int) -> None:
    with Memory(core, size) as memory:
        for _ in range(2):
            with pytest.raises(ValueError):
                memory.table()
            assert not any(os.pread(memory.fd, size, 0))


@pytest.mark.parametrize("content", [b"x" * 4096, b"\0" * 4095 + b"x", b"sanicwk", b"sanicwkx" * 512])
def test_a_file_with_other_content_is_refused(memory: Memory, content: bytes) -> None:
    os.pwrite(memory.fd, content, 0)
    for _ in range(2):
        with pytest.raises(ValueError):
            memory.table()
        assert os.pread(memory.fd, 4096, 0).startswith(content)


def test_invalid_descriptors_are_refused(core: ModuleType, memory: Memory) -> None:
    reading = os.open(f"/proc/self/fd/{memory.fd}", os.O_RDONLY)
    closed = os.dup(memory.fd)
    os.close(closed)
    for fd, wake in ((closed, memory.wake), (memory.fd, closed), (-1, memory.wake), (reading, memory.wake)):
        with pytest.raises(OSError):
            core.Table(fd, wake, **SCHEMA)
    os.close(reading)


def test_the_caller_may_close_the_descriptors(core: ModuleType, memory: Memory) -> None:
    fd, wake = os.dup(memory.fd), os.dup(memory.wake)
    table = core.Table(fd, wake, **SCHEMA)
    os.close(fd)
    os.close(wake)
    table.put("a", {})
    table.arm()
    table.put("b", {})
    assert memory.woken()
    del table
    assert memory.table().names() == ["a", "b"]


def test_a_table_works_in_a_regular_file(core: ModuleType, memory: Memory, tmp_path: Path) -> None:
    path = tmp_path / "table"
    with path.open("w+b") as file:
        path.unlink()
        file.truncate(4 * MEBIBYTE)
        first, second = (core.Table(file.fileno(), memory.wake, **SCHEMA) for _ in range(2))
        first.put("a", {"x": 1})
        assert second.entries() == {"a": {"x": 1}}
