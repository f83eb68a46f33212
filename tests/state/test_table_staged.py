"""``Table``: staged entries, written apart from an entry that belongs to another process; and numbers."""

from __future__ import annotations

import os
import threading
from datetime import datetime, timezone
from typing import Any

import pytest
from support.processes import Children
from support.tables import Memory

pytestmark = pytest.mark.native

ME = os.getpid()
OLD, NEW = 70_001, 70_002
NUMBERS = ["last_beat", "requests", "stoppable", "stopping"]


@pytest.mark.parametrize("entry", [{}, {"state": "x"}, {"pid": OLD}])
def test_writes_to_an_own_entry_are_not_staged(memory: Memory, entry: dict[str, Any]) -> None:
    table = memory.table()
    table.put("a", entry)
    table.update("a", {"state": "y", "more": 1}, OLD)
    assert table.staged("a", OLD) == {}
    assert (
        table.entry("a")
        == table.entry("a", OLD)
        == table.entry("a", NEW)
        == entry | {"state": "y", "more": 1}
    )
    table.discard("a", "more", OLD)
    assert table.entry("a") == entry | {"state": "y"}


@pytest.mark.parametrize("owner", [OLD, None, 0, "x"])
def test_writes_to_an_entry_of_another_process_are_staged(memory: Memory, owner: Any) -> None:
    table, other = memory.table(), memory.table()
    table.put("a", {"pid": owner, "state": "x", "kept": [1]})
    table.update("a", {"state": "y", "more": 1}, NEW)
    for one in (table, other):
        assert one.entry("a") == one.entries()["a"] == {"pid": owner, "state": "x", "kept": [1]}
        assert one.staged("a", NEW) == {"state": "y", "more": 1}
        assert one.staged("a", NEW + 1) == {}
        assert list(one.entry("a", NEW).items()) == [
            ("pid", owner),
            ("state", "y"),
            ("kept", [1]),
            ("more", 1),
        ]
        assert one.entry("a", NEW + 1) == one.entry("a")
        assert one.value("a", "state") == "x"
        assert one.value("a", "state", NEW) == "y"
        assert one.value("a", "more", NEW) == 1
        assert one.value("a", "kept", NEW) == [1]
        for pid in (0, NEW + 1):
            with pytest.raises(KeyError, match=r"^'more'$"):
                one.value("a", "more", pid)
        assert one.names() == ["a"]


def test_each_process_has_its_own_staged_entry(memory: Memory) -> None:
    table = memory.table()
    table.put("a", {"pid": OLD})
    for pid in (NEW, NEW + 1, 1):
        table.update("a", {"of": pid}, pid)
    assert [table.staged("a", pid) for pid in (NEW, NEW + 1, 1)] == [{"of": NEW}, {"of": NEW + 1}, {"of": 1}]
    assert table.entry("a") == {"pid": OLD}


def test_returned_staged_entries_are_copies(memory: Memory) -> None:
    table = memory.table()
    table.put("a", {"pid": OLD})
    table.update("a", {"list": [1]}, NEW)
    for _ in range(2):
        table.staged("a", NEW)["list"].append(2)
        table.staged("a", NEW).clear()
        table.entry("a", NEW)["list"].append(3)
        table.value("a", "list", NEW).append(4)
    assert table.staged("a", NEW) == {"list": [1]}


def test_a_key_is_discarded_only_from_the_staged_entry(memory: Memory) -> None:
    table = memory.table()
    table.put("a", {"pid": OLD, "state": "x"})
    for _ in range(2):
        with pytest.raises(KeyError, match=r"^'state'$"):
            table.discard("a", "state", NEW)
        table.update("a", {"state": "y", "other": 1}, NEW)
        table.discard("a", "state", NEW)
        assert table.entry("a", NEW) == {"pid": OLD, "state": "x", "other": 1}
        table.discard("a", "other", NEW)
        assert table.staged("a", NEW) == {}
    assert table.entry("a") == {"pid": OLD, "state": "x"}


def test_put_keeps_staged_entries(memory: Memory) -> None:
    table = memory.table()
    table.put("a", {"pid": OLD})
    table.update("a", {"state": "y"}, NEW)
    table.put("a", {"pid": OLD, "state": "z"})
    assert table.entry("a", NEW) == {"pid": OLD, "state": "y"}
    table.put("a", {"pid": NEW, "state": "z"})
    assert table.entry("a", NEW) == {"pid": NEW, "state": "z"}
    assert table.staged("a", NEW) == {"state": "y"}


def test_an_entry_is_removed_with_its_staged_entries(memory: Memory) -> None:
    table = memory.table()
    table.put("a", {"pid": OLD})
    table.update("a", {"state": "y"}, NEW)
    table.remove("a")
    assert table.staged("a", NEW) == {}
    table.put("a", {"pid": OLD})
    assert table.staged("a", NEW) == {}
    assert table.entry("a", NEW) == {"pid": OLD}


def test_a_handover_merges_the_staged_entry(memory: Memory) -> None:
    table, other = memory.table(), memory.table()
    table.put("a", {"pid": OLD, "state": "x", "starts": 1, "old": True})
    table.update("a", {"state": "y", "new": True}, NEW)
    table.update("a", {"third": True}, NEW + 1)
    table.hand_over("a", NEW, {"pid": NEW, "starts": 2, "state": "main"})
    for one in (table, other):
        assert list(one.entry("a").items()) == list(one.entry("a", NEW).items())
        assert one.entry("a") == {"pid": NEW, "state": "y", "starts": 2, "old": True, "new": True}
        assert one.staged("a", NEW) == {}
        assert one.entry("a", NEW + 1) == one.entry("a") | {"third": True}
    table.update("a", {"state": "z"}, NEW)
    table.update("a", {"state": "late"}, OLD)
    assert table.value("a", "state") == "z"
    assert table.staged("a", OLD) == {"state": "late"}


@pytest.mark.parametrize("changes", [{}, {"state": "y"}])
def test_a_handover_without_a_staged_entry(memory: Memory, changes: dict[str, Any]) -> None:
    table = memory.table()
    table.put("a", {"pid": OLD, "state": "x"})
    table.hand_over("a", NEW, changes)
    assert table.entry("a") == {"pid": OLD, "state": "x"} | changes


def test_a_staged_entry_is_dropped(memory: Memory) -> None:
    table = memory.table()
    table.put("a", {"pid": OLD, "state": "x"})
    for pid in (NEW, NEW + 1):
        table.update("a", {"state": pid}, pid)
    table.drop_staged("a", NEW)
    assert table.staged("a", NEW) == {}
    assert table.entry("a", NEW) == {"pid": OLD, "state": "x"}
    assert table.staged("a", NEW + 1) == {"state": NEW + 1}


def test_a_missing_staged_entry_is_no_error(memory: Memory) -> None:
    table = memory.table()
    table.put("a", {"pid": OLD})
    for name in ("a", "b"):
        assert table.staged(name, NEW) == {}
        table.drop_staged(name, NEW)
    assert table.entries() == {"a": {"pid": OLD}}


def test_writes_without_a_pid_are_not_staged(memory: Memory) -> None:
    table = memory.table()
    table.put("a", {"pid": OLD})
    table.update("a", {"state": "x"}, 0)
    assert table.staged("a", 0) == {}
    table.drop_staged("a", 0)
    table.hand_over("a", 0, {"more": 1})
    assert table.entry("a") == {"pid": OLD, "state": "x", "more": 1}


def test_equal_keys_of_entry_and_staged_entry_are_one_key(memory: Memory) -> None:
    table = memory.table()
    table.put("a", {"pid": OLD, 1: "x", (1, "a"): "x"})
    table.update("a", {True: "y", (1, "".join("a")): "y", 2: "z"}, NEW)
    assert table.entry("a", NEW) == {"pid": OLD, 1: "y", (1, "a"): "y", 2: "z"}
    table.hand_over("a", NEW, {2.0: "main"})
    assert table.entry("a") == {"pid": OLD, 1: "y", (1, "a"): "y", 2: "z"}


def test_the_first_beat_adds_all_numbers(memory: Memory) -> None:
    table, other = memory.table(), memory.table()
    table.put("a", {"pid": ME, "state": "x"})
    table.update("a", {"state": "y"}, ME)
    assert table.entry("a") == {"pid": ME, "state": "y"}
    for key in NUMBERS:
        with pytest.raises(KeyError, match=f"^'{key}'$"):
            table.value("a", key)
    before = datetime.now(timezone.utc)
    table.beat()
    after = datetime.now(timezone.utc)
    for one in (table, other):
        for entry in (one.entry("a"), one.entry("a", ME), one.entry("a", NEW), one.entries()["a"]):
            assert list(entry) == ["pid", "state", *NUMBERS]
            # Times are exact to the microsecond.
            assert before <= entry["last_beat"] <= after
            assert entry["last_beat"].tzinfo is timezone.utc
            assert [entry[key] for key in NUMBERS[1:]] == [0, False, False]
            assert [type(entry[key]) for key in NUMBERS[1:]] == [int, bool, bool]
        assert [one.value("a", key) for key in NUMBERS] == [entry[key] for key in NUMBERS]


def test_flags_set_no_beat(memory: Memory) -> None:
    table = memory.table()
    table.put("a", {"pid": ME})
    table.flag(stopping=True)
    assert table.entry("a") == {"pid": ME, "requests": 0, "stoppable": False, "stopping": True}


def test_flags_are_set_cleared_or_kept(memory: Memory) -> None:
    table = memory.table()
    table.put("a", {"pid": ME})
    for flags, wanted in (
        ({}, (False, False)),
        ({"stoppable": True}, (True, False)),
        ({"stopping": True}, (True, True)),
        ({"stoppable": None, "stopping": None}, (True, True)),
        ({"stoppable": False}, (False, True)),
        ({"stoppable": True, "stopping": False}, (True, False)),
    ):
        table.flag(**flags)
        assert (table.value("a", "stoppable"), table.value("a", "stopping")) == wanted


def test_requests_are_counted(memory: Memory) -> None:
    table, other = memory.table(), memory.table()
    table.put("a", {"pid": ME})
    beats = []
    for one, more in ((table, 3), (other, 4), (table, 0), (table, 2**40)):
        one.beat(more)
        beats.append(other.value("a", "last_beat"))
    assert table.value("a", "requests") == 7 + 2**40
    assert beats == sorted(beats)


def test_a_negative_count_is_refused(memory: Memory) -> None:
    table = memory.table()
    with pytest.raises(OverflowError):
        table.beat(-1)


def test_threads_lose_no_requests(memory: Memory) -> None:
    table = memory.table()
    table.put("a", {"pid": ME})
    threads = [threading.Thread(target=lambda: [table.beat(2) for _ in range(500)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert table.value("a", "requests") == 4000


def test_numbers_hide_values_under_their_keys(memory: Memory) -> None:
    table = memory.table()
    table.put("a", {"requests": "kept", "pid": ME})
    assert table.entry("a") == {"requests": "kept", "pid": ME}
    table.beat(5)
    assert table.entry("a")["requests"] == table.value("a", "requests") == 5
    table.update("a", {"pid": NEW})
    assert table.entry("a") == {"requests": "kept", "pid": NEW}


def test_numbers_belong_to_the_process_of_the_entry(memory: Memory, children: Children) -> None:
    table = memory.table()
    table.put("a", {"pid": ME})
    table.beat(1)

    def new() -> None:
        table.update("a", {"pid": os.getpid()}, os.getpid())
        table.beat(2)

    pid = children.fork(new)
    assert children.reap(pid) == 0
    assert table.value("a", "requests") == table.entry("a")["requests"] == 1
    assert table.entry("a", pid)["pid"] == pid
    assert table.entry("a", pid)["requests"] == table.value("a", "requests", pid) == 2


def test_each_process_has_its_own_numbers(memory: Memory, children: Children) -> None:
    table = memory.table()
    table.beat(100)

    def child(number: int) -> None:
        table.beat(number)
        table.flag(stoppable=number % 2 == 0)
        table.beat(number)

    pids = [children.fork(child, number) for number in range(10)]
    for pid in pids:
        assert children.reap(pid) == 0
    for pid in (*pids, ME):
        table.put(f"{pid}", {"pid": pid})
    found = [(entry["requests"], entry["stoppable"]) for entry in memory.table().entries().values()]
    assert found == [*((2 * number, number % 2 == 0) for number in range(10)), (100, False)]


def test_numbers_are_removed_when_the_process_is_reclaimed(memory: Memory, children: Children) -> None:
    table = memory.table()
    pid = children.fork(table.beat, 3)
    assert children.reap(pid) == 0
    table.put("a", {"pid": pid})
    table.beat()
    table.reclaim(NEW)
    assert table.value("a", "requests") == 3
    for _ in range(2):
        table.reclaim(pid)
        assert table.entries() == {"a": {"pid": pid}}
    table.put("me", {"pid": ME})
    # The living process has the pid of the exited one.
    table.reclaim(ME)
    assert table.value("me", "requests") == 0
