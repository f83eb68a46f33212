"""``Table``: each change is reported to the main process."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from types import ModuleType
from typing import Any

import pytest
from support.processes import Children
from support.tables import SCHEMA, Memory

pytestmark = pytest.mark.native

PID = 70_001


def test_the_first_changes_are_all_entries(memory: Memory) -> None:
    table = memory.table()
    assert table.changes() == []
    for name in ("b", "\udcff", "a", "\u00fc", ""):
        table.put(name, {})
    for one in (table, memory.table()):
        assert one.changes() == ["", "a", "b", "\u00fc", "\udcff"]
        assert one.changes() == one.changes(True) == []


CHANGES: dict[str, Callable[[Any], Any]] = {
    "put": lambda table: table.put("a", {"x": 2}),
    "update": lambda table: table.update("a", {"x": 2}),
    "update of a part": lambda table: table.update("a", {"x": 2}, PID),
    "discard": lambda table: table.discard("a", "x"),
    "remove": lambda table: table.remove("a"),
    "hand_over": lambda table: table.hand_over("a", 7, {}),
    "drop_staged": lambda table: table.drop_staged("a", 7),
    "again": lambda table: (table.remove("a"), table.put("a", {"pid": 6, "x": 1})),
}

NOTHING: dict[str, Callable[[Any], Any]] = {
    "read": lambda table: (table.entry("a"), table.entries(), table.names(), table.value("a", "x")),
    "beat": lambda table: table.beat(5),
    "reclaim": lambda table: table.reclaim(PID),
    "drop nothing": lambda table: table.drop_staged("a", PID),
    "no such key": lambda table: refused(table.discard, "a", "y"),
    "no such entry": lambda table: refused(table.update, "b", {"x": 1}),
}


def refused(act: Callable[..., Any], *arguments: Any) -> None:
    """Read a missing entry."""
    with pytest.raises(KeyError):
        act(*arguments)


def two_tables(memory: Memory) -> tuple[Any, Any]:
    """A table of the main process, up to date, and one of another process."""
    table, main = memory.table(), memory.table()
    table.put("other", {})
    table.put("a", {"pid": 6, "x": 1})
    table.update("a", {"x": 2}, 7)
    main.changes()
    return table, main


@pytest.mark.parametrize("act", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("everything", [False, True])
def test_each_change_is_reported_once(memory: Memory, act: Callable[[Any], Any], everything: bool) -> None:
    table, main = two_tables(memory)
    assert not main.arm()
    act(table)
    assert memory.woken()
    assert main.arm()
    # Reading an entry does not hide its change.
    main.entries()
    assert main.changes(everything) == ["a"]
    assert main.changes(everything) == []
    assert not main.arm()
    main.put("a", {})
    assert main.changes(everything) == ["a"]


@pytest.mark.parametrize("act", NOTHING.values(), ids=NOTHING)
def test_operations_that_change_no_entry_do_not_wake(memory: Memory, act: Callable[[Any], Any]) -> None:
    table, main = two_tables(memory)
    assert not main.arm()
    act(table)
    assert not memory.woken()
    assert not main.arm()
    assert main.changes() == main.changes(True) == []


def test_a_flag_wakes_and_changes_no_entry(memory: Memory) -> None:
    table, main = two_tables(memory)
    if type(table).__module__ != "worker._native":
        pytest.skip("the pure core wakes for changes of entries only")
    assert not main.arm()
    table.flag(stoppable=True)
    assert memory.woken()
    assert main.arm()
    assert main.changes() == []
    assert not main.arm()
    main.disarm()
    table.flag(stopping=True)
    assert not memory.woken()


def test_a_failed_change_is_not_reported(memory: Memory) -> None:
    table, main = two_tables(memory)
    main.arm()
    with pytest.raises(MemoryError):
        table.update("a", {"x": b"l" * memory.size})
    assert not memory.woken()
    assert main.changes() == []


def test_several_changes_cause_one_wakeup(memory: Memory) -> None:
    table, main = two_tables(memory)
    names = [f"{number}" for number in range(100)]
    main.arm()
    for name in names:
        table.put(name, {"x": 1})
        table.update(name, {"x": 2})
    table.remove("50")
    assert memory.woken()
    assert not memory.woken()
    changed = main.changes()
    assert changed == sorted(set(changed))
    # It came and went unseen.
    assert {*changed, "50"} == {*names}


def test_many_writes_to_one_entry_report_only_this_entry(memory: Memory) -> None:
    table, main = two_tables(memory)
    for number in range(200):
        table.update("other", {"x": b"%d" % number * 10_000})
    assert main.changes() == ["other"]
    assert not main.arm()


def test_only_an_armed_table_is_woken(memory: Memory) -> None:
    table, main = two_tables(memory)
    for _ in range(3):
        table.update("a", {"x": 1})
        assert not memory.woken()
        assert main.arm()
        assert main.arm()
        assert not memory.woken()
        table.update("a", {"x": 2})
        assert memory.woken()
        main.disarm()
        main.disarm()
        table.update("a", {"x": 3})
        assert not memory.woken()
        assert main.changes() == ["a"]


def test_changes_of_any_process_wake_an_armed_table(memory: Memory, children: Children) -> None:
    table, main = two_tables(memory)
    main.arm()
    assert children.reap(children.fork(table.update, "a", {"x": 3})) == 0
    assert memory.woken()
    assert main.changes() == ["a"]
    assert children.reap(children.fork(lambda: memory.table().put("b", {}))) == 0
    assert memory.woken()
    assert main.changes() == ["b"]
    assert children.reap(children.fork(main.disarm)) == 0
    table.put("c", {})
    assert not memory.woken()


def test_no_change_is_missed_between_read_and_wait(memory: Memory, children: Children) -> None:
    table, main = memory.table(), memory.table()
    table.put("a", {"count": 0})

    def count() -> None:
        for number in range(1, 1001):
            table.update("a", {"count": number})

    pid = children.fork(count)
    seen = 0
    os.set_blocking(memory.wake, True)
    while seen < 1000:
        main.disarm()
        main.changes()
        seen = main.value("a", "count")
        if seen < 1000 and not main.arm():
            os.eventfd_read(memory.wake)
    assert children.reap(pid) == 0


@pytest.mark.parametrize("blocking", [False, True])
def test_a_wakeup_does_not_block_on_a_full_pipe(core: ModuleType, memory: Memory, blocking: bool) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, bytes(4096))
    os.set_blocking(writing, blocking)
    table = core.Table(memory.fd, writing, **SCHEMA)
    table.arm()
    table.put("a", {})
    os.close(reading)
    table.put("b", {})
    os.close(writing)
    assert table.names() == ["a", "b"]


def test_a_pipe_is_woken_by_eight_bytes(core: ModuleType, memory: Memory) -> None:
    reading, writing = os.pipe()
    table = core.Table(memory.fd, writing, **SCHEMA)
    table.arm()
    table.put("a", {})
    assert len(os.read(reading, 100)) == 8
    os.close(reading)
    os.close(writing)
