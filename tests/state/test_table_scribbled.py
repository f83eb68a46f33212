"""``Table``: foreign writes to its memory cause an error on a read, and never end a process."""

from __future__ import annotations

import errno
import mmap
import os
import random
import resource
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.processes import Children
from support.tables import MEBIBYTE, Memory

from worker._state.shared import SharedState

SEED = 20
# The errors that any operation on such a table may raise.
ALLOWED = (RuntimeError, KeyError, MemoryError)
ENTRIES: dict[str, dict[Any, Any]] = {
    "small": {"pid": 5, "state": "ACKED", "serving": True},
    "large": {"x": "x" * 70_000, "y": b"y" * 3_000},
    "many": {f"key {number}": number for number in range(200)},
    "odd": {1: "one", (1, "x"): None, "": [1, {"a": 2}]},
}

pytestmark = [pytest.mark.native, pytest.mark.slow]


def scribble(memory: Memory, choose: random.Random, count: int) -> None:
    """Overwrite this many words, most of them in use."""
    with mmap.mmap(memory.fd, memory.size) as mapped, memoryview(mapped).cast("Q") as words:
        used = [at for at, word in enumerate(words.tolist()) if word]
        for _ in range(count):
            at = choose.choice(used) if choose.random() < 0.9 else choose.randrange(len(words))
            words[at] = choose.choice(
                (
                    choose.getrandbits(64),
                    0,
                    2**64 - 1,
                    choose.randrange(1000),
                    1 << choose.randrange(64),
                    words[choose.choice(used)],
                )
            )


def use(table: Any, choose: random.Random) -> None:
    """Call all operations of a table, in any order."""
    names = [*ENTRIES, "new", "\ud800"]
    acts = [
        table.entries,
        table.names,
        table.changes,
        lambda: table.changes(True),
        table.arm,
        table.disarm,
        lambda: table.beat(1),
        lambda: table.beat(1, os.getppid()),
        lambda: table.flag(stopping=True),
        lambda: table.reclaim(choose.randrange(1, 2**22)),
        *(lambda pid=pid: table.numbers(pid) for pid in (5, os.getpid())),
    ]
    for name in names:
        acts += [
            *(lambda name=name, pid=pid: table.entry(name, pid) for pid in (0, 5, 6)),
            *(lambda name=name, key=key: table.value(name, key) for key in ("x", "pid", 1, "requests")),
            lambda name=name: table.some(name, ("state", "x"), choose.randrange(9)),
            lambda name=name: table.staged(name, 5),
            lambda name=name: table.check(name),
            lambda name=name: table.put(name, ENTRIES["small"]),
            lambda name=name: table.update(name, {"x": b"z" * choose.randrange(5_000)}, choose.randrange(9)),
            lambda name=name: table.discard(name, "x"),
            lambda name=name: table.hand_over(name, 6, {"pid": 6}),
            lambda name=name: table.drop_staged(name, 6),
            lambda name=name: table.remove(name),
        ]
    choose.shuffle(acts)
    for act in acts:
        with suppress(*ALLOWED):
            act()


def in_a_child(children: Children, act: Any, *args: Any) -> None:
    """Call a function in a child with little memory and little time; it exits in order."""

    def child() -> None:
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        room = taken + 256 * MEBIBYTE
        resource.setrlimit(resource.RLIMIT_AS, (room, room))
        resource.setrlimit(resource.RLIMIT_CPU, (30, 30))
        act(*args)

    assert children.reap(children.fork(child)) == 0


@pytest.mark.parametrize("count", [1, 5, 200])
def test_overwritten_words_end_no_process(core: ModuleType, children: Children, count: int) -> None:
    def rounds() -> None:
        choose = random.Random(SEED + count)
        for _ in range(30):
            with Memory(core, 4 * MEBIBYTE) as memory:
                known, writer, fresh = memory.table(), memory.table(), memory.table()
                for name, entry in ENTRIES.items():
                    writer.put(name, entry)
                writer.update("small", {"x": 1}, 6)
                known.entries()
                scribble(memory, choose, count)
                reads_rightly(fresh)
                for table in (fresh, known, writer):
                    use(table, choose)
                with suppress(ValueError):
                    use(memory.table(), choose)

    in_a_child(children, rounds)


def reads_rightly(table: Any) -> None:
    """A read returns a written value, or an error; an entry may be gone."""
    for name, entry in ENTRIES.items():
        with suppress(*ALLOWED):
            read = table.entry(name)
            # The numbers of processes are not in blocks.
            assert {key: read[key] for key in entry} == entry


@pytest.mark.parametrize("has_magic", [True, False])
def test_random_bytes_end_no_process(core: ModuleType, children: Children, has_magic: bool) -> None:
    def rounds() -> None:
        choose = random.Random(SEED)
        with Memory(core, 4 * MEBIBYTE) as memory:
            magic = b""
            if has_magic:
                memory.table()
                magic = os.pread(memory.fd, 8, 0)
            for number in range(6):
                noise = choose.randbytes(memory.size // 8)
                spread = noise * 8 if number % 2 else noise + bytes(memory.size - len(noise))
                os.pwrite(memory.fd, magic + spread[len(magic) :], 0)
                try:
                    table = memory.table()
                except ValueError:
                    assert not has_magic
                    continue
                use(table, choose)

    in_a_child(children, rounds)


@pytest.mark.parametrize("name", ENTRIES)
def test_damage_is_an_error_on_a_read_of_its_entry(memory: Memory, name: str) -> None:
    table, other = memory.table(), memory.table()
    for one, entry in ENTRIES.items():
        table.put(one, entry)
    whole = os.pread(memory.fd, memory.size, 0)
    at = whole.index(name.encode())
    os.pwrite(memory.fd, b"?", at)
    for act in (
        lambda: other.entry(name),
        lambda: other.value(name, "x"),
        lambda: other.some(name, ("x",)),
        lambda: other.staged(name, 1),
        # It has read the entry before, and keeps its copy.
        lambda: table.check(name),
        lambda: other.update(name, {"x": 1}),
        other.entries,
        other.names,
    ):
        with pytest.raises(RuntimeError, match="something else has written to the memory of the table"):
            act()
    rest = {one: entry for one, entry in ENTRIES.items() if one != name}
    assert {one: other.entry(one) for one in rest} == rest
    assert set(other.changes(True)) >= set(rest)
    for one in rest:
        other.update(one, {"new": b"n" * 2_000})
        assert table.value(one, "new") == b"n" * 2_000
    os.pwrite(memory.fd, whole[at : at + 1], at)
    assert memory.table().entry(name) == ENTRIES[name]
    os.pwrite(memory.fd, b"?", at)
    table.put(name, {"made": "anew"})
    assert other.entry(name) == {"made": "anew"}
    assert (other.check(name), other.check("none")) == (True, False)
    assert set(other.entries()) == set(ENTRIES)


def test_the_memory_cannot_be_resized() -> None:
    state = SharedState()
    memory: int = state._memory
    for size in (0, 4096, 2 << 30):
        with pytest.raises(PermissionError) as caught:
            os.ftruncate(memory, size)
        assert caught.value.errno == errno.EPERM
    state["a"] = {"x": 1}
    assert state.copy() == {"a": {"x": 1}}
    state.close()
