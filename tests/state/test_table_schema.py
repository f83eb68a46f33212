"""The keys with a meaning come from the schema that a table was opened with."""

from __future__ import annotations

import os
from datetime import datetime, timezone
from time import monotonic
from types import ModuleType
from typing import Any

import pytest
from support.tables import SCHEMA, Memory, fill

from worker._state import schema

pytestmark = pytest.mark.native
ME = os.getpid()
NEXT = 4_000_000


def opened(core: ModuleType, memory: Memory, **names: Any) -> Any:
    return core.Table(memory.fd, memory.wake, **{**SCHEMA, **names})


def test_any_key_can_hold_the_owner(core: ModuleType, memory: Memory) -> None:
    table = opened(core, memory, owner="holder")
    table.put("a", {"holder": ME, "pid": NEXT, "x": 1})
    table.update("a", {"x": 2}, NEXT)
    assert table.entry("a") == {"holder": ME, "pid": NEXT, "x": 1}
    assert table.entry("a", NEXT)["x"] == table.value("a", "x", NEXT) == 2
    table.hand_over("a", NEXT, {"holder": NEXT})
    assert table.entry("a") == {"holder": NEXT, "pid": NEXT, "x": 2}


def test_any_keys_can_show_the_numbers(core: ModuleType, memory: Memory) -> None:
    table = opened(core, memory, beat="seen", count="jobs", flags=["idle", "full", "\udc80"])
    table.put("a", {"pid": ME, "requests": "mine"})
    before = datetime.now(tz=timezone.utc)
    table.beat(3)
    table.flag(full=True, idle=None)
    entry = table.entry("a")
    assert before <= entry["seen"] <= datetime.now(tz=timezone.utc)
    expected = {"pid": ME, "requests": "mine", "seen": entry["seen"], "jobs": 3}
    assert entry == {**expected, "idle": False, "full": True, "\udc80": False}
    assert table.entries() == {"a": entry}
    assert [table.value("a", key) for key in entry] == list(entry.values())
    table.flag(full=False, **{"\udc80": True})
    assert (table.value("a", "full"), table.value("a", "\udc80")) == (False, True)


def test_the_time_of_the_last_beat_is_that_of_the_monotonic_clock(core: ModuleType, memory: Memory) -> None:
    table = opened(core, memory)
    assert table.last_beat(ME) is None
    table.flag(**{SCHEMA["flags"][0]: True})
    assert table.last_beat(ME) is None
    before = monotonic()
    table.beat()
    assert before <= table.last_beat(ME) <= monotonic()
    assert table.last_beat(NEXT) is None


def test_any_keys_can_show_the_gauges(core: ModuleType, memory: Memory) -> None:
    table = opened(core, memory, gauges=["waiting"], seconds=["delay", "age"])
    table.put("a", {"pid": ME})
    table.beat(1, ME, (0, 0.25))
    shown = {"waiting": 0, "delay": 0.25}
    assert shown.items() <= table.numbers(ME).items()
    assert shown.items() <= table.entry("a").items()
    assert table.entries() == {"a": table.entry("a")}
    assert [table.value("a", key) for key in shown] == [0, 0.25]
    # A gauge that was never written is absent, and None leaves one as it is.
    assert "age" not in table.entry("a")
    with pytest.raises(KeyError, match="age"):
        table.value("a", "age")
    table.beat(1, ME, (None, 1e-9, 3600))
    assert table.numbers(ME)["waiting"] == 0
    assert (table.numbers(ME)["delay"], table.numbers(ME)["age"]) == (1e-9, 3600.0)
    assert isinstance(table.numbers(ME)["age"], float)


def test_a_key_of_the_application_hides_a_gauge_of_its_name(core: ModuleType, memory: Memory) -> None:
    table = opened(core, memory, gauges=["waiting"], seconds=[])
    table.put("a", {"pid": ME, "waiting": "mine"})
    table.beat(0, ME, (3,))
    assert table.entry("a")["waiting"] == table.value("a", "waiting") == "mine"
    assert table.entries()["a"]["waiting"] == "mine"
    assert table.numbers(ME)["waiting"] == 3
    table.discard("a", "waiting")
    assert table.entry("a")["waiting"] == table.value("a", "waiting") == 3


def test_gauges_have_extremes(core: ModuleType, memory: Memory) -> None:
    table = opened(core, memory, gauges=["waiting"], seconds=["delay"])
    table.beat(0, ME, (2**64 - 1, 1e12))
    # The largest word stands for the largest value but one.
    assert table.numbers(ME)["waiting"] == 2**64 - 2
    assert table.numbers(ME)["delay"] == pytest.approx(2**64 / 1e9)
    for wrong, error in (
        ((-1,), OverflowError),
        ((1.5,), TypeError),
        ((None, -0.1), ValueError),
        ((None, float("nan")), ValueError),
        ((None, "1"), TypeError),
        ((1, 1.0, 1), ValueError),
        ([1], TypeError),
    ):
        with pytest.raises(error):
            table.beat(7, ME, wrong)
    assert table.numbers(ME)["requests"] == 0


def test_essential_keys_find_space_in_a_full_table(core: ModuleType, memory: Memory) -> None:
    table = opened(core, memory, essential=["role"])
    fill(table, b"x" * 100_000)
    fill(table, b"", "small")
    with pytest.raises(MemoryError):
        table.put("next", {"role": 1, "server": True})
    table.put("next", {"role": 1})
    assert table.entry("next") == {"role": 1}


def test_an_unknown_flag_is_refused(core: ModuleType, memory: Memory) -> None:
    table = opened(core, memory)
    with pytest.raises(TypeError, match="no flag 'idle'"):
        table.flag(stoppable=True, idle=True)
    assert table.numbers(ME) == {}
    with pytest.raises(TypeError):
        table.flag(stoppable=1)


def test_the_number_of_flags_is_limited(core: ModuleType, memory: Memory) -> None:
    names = [f"flag-{number}" for number in range(64)]
    with pytest.raises(ValueError, match="64 flags, 63 are allowed"):
        opened(core, memory, flags=names)
    table = opened(core, memory, flags=names[:63])
    table.put("a", {"pid": ME})
    table.flag(**{names[62]: True})
    assert [name for name, is_set in table.entry("a").items() if is_set is True] == [names[62]]


def test_the_number_of_gauges_is_limited(core: ModuleType, memory: Memory) -> None:
    with pytest.raises(ValueError, match="6 gauges, 5 are allowed"):
        opened(core, memory, gauges=["a", "b", "c"], seconds=["d", "e", "f"])


def test_each_part_of_the_schema_is_required(core: ModuleType, memory: Memory) -> None:
    for part in SCHEMA:
        with pytest.raises(TypeError, match=part):
            core.Table(memory.fd, memory.wake, **{name: SCHEMA[name] for name in SCHEMA if name != part})


def test_the_lists_of_keys_match_the_schema() -> None:
    names = [key.name for key in schema.SCHEMA]
    assert len(set(names)) == len(names)
    assert set(schema.NUMBERS) == {
        schema.LAST_BEAT,
        schema.REQUESTS,
        *schema.FLAGS,
    }
    # Of the keys without which no process starts, a worker may set one.
    unrestricted = {key.name for key in schema.SCHEMA if not key.restricted and key.essential}
    assert unrestricted == {"serving"}
