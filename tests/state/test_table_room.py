"""``Table``: its capacity, and the reuse of freed room."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest
from support.tables import MEBIBYTE, Memory, fill

pytestmark = pytest.mark.native


def test_holds_thousands_of_entries(memory: Memory) -> None:
    table = memory.table()
    wanted = {f"entry-{number}": {"number": number, "text": "x" * (number % 50)} for number in range(4096)}
    for name, entry in wanted.items():
        table.put(name, entry)
    other = memory.table()
    assert list(other.entries().items()) == list(wanted.items())
    assert other.names() == list(wanted)
    assert other.entry("entry-4095") == wanted["entry-4095"]
    for name in list(wanted)[::2]:
        table.remove(name)
    assert other.names() == list(wanted)[1::2]


def test_holds_thousands_of_keys(memory: Memory) -> None:
    table = memory.table()
    wanted = {f"key-{number}": number for number in range(2000)}
    table.put("a", wanted)
    table.update("a", {"key-7": "x"})
    assert list(memory.table().entry("a").items()) == list((wanted | {"key-7": "x"}).items())


@pytest.fixture
def small(core: ModuleType) -> Iterator[Memory]:
    """A file that is soon full."""
    with Memory(core, 4 * MEBIBYTE) as made:
        yield made


@pytest.mark.parametrize("size", [1000, 20_000, 200_000])
def test_a_change_without_room_raises_and_changes_nothing(small: Memory, size: int) -> None:
    table = small.table()
    table.put("first", {"x": 1, 2: 3})
    names = fill(table, b"f" * size)
    assert len(names) * size > small.size // 16
    before = table.entries()
    large = {"x": b"l" * small.size}
    acts = (table.put, table.update, lambda name, pairs: table.hand_over(name, 7, pairs))
    for act in acts:
        with pytest.raises(MemoryError) as raised:
            act("first", large)
        assert "'first'" in str(raised.value)
        assert str(small.size) in str(raised.value)
    for one in (table, small.table()):
        assert one.entries() == before
        assert one.entry("first") == {"x": 1, 2: 3}


def test_a_process_can_start_in_a_full_table(small: Memory) -> None:
    table, newcomer = small.table(), small.table()
    fill(table, b"f" * 1000)
    newcomer.put("new", {"server": True})
    newcomer.update("new", {"state": "ACKED", "serving": True})
    newcomer.hand_over("new", 7, {"pid": 7})
    with pytest.raises(MemoryError):
        newcomer.update("new", {"mine": b"m" * 100_000})
    assert table.entry("new") == {"server": True, "state": "ACKED", "serving": True, "pid": 7}


@pytest.mark.parametrize("size", [1000, 20_000, 200_000])
def test_room_of_removed_entries_is_reused(small: Memory, size: int) -> None:
    table, other = small.table(), small.table()
    first = fill(table, b"f" * size)
    for _ in range(3):
        for name in first:
            other.remove(name)
        assert table.names() == []
        assert len(fill(table, b"g" * size)) >= len(first) * 9 // 10
        assert all(entry == {"value": b"g" * size} for entry in other.entries().values())
        first = other.names()
    for name in first[1:]:
        table.put(name, {})
    table.update(first[0], {"more": b"h" * size})
    assert other.entry(first[0]) == {"value": b"g" * size, "more": b"h" * size}


def test_room_of_replaced_values_is_reused(small: Memory) -> None:
    table = small.table()
    table.put("a", {"kept": b"k" * 100_000})
    for number in range(5000):
        table.update("a", {"x": number, "y": b"%d" % number * 1000})
    for number in range(500):
        table.put("b", {"x": bytes(number * 100)})
        table.remove("b")
    assert small.table().entries() == {"a": {"kept": b"k" * 100_000, "x": 4999, "y": b"4999" * 1000}}
