"""``Table``: several processes and threads, some of which are killed."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import ModuleType
from typing import Any

import pytest
from support.processes import LONG, Children
from support.tables import MEBIBYTE, SCHEMA, Memory, fill

pytestmark = [pytest.mark.native, pytest.mark.slow]

ROUNDS = 1000


def lives(pid: int) -> bool:
    """Whether a child has not exited yet."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def both(number: int, size: int) -> dict[str, bytes]:
    """Return two keys with the same value, which repeats the number."""
    value = number.to_bytes(4, "big") * size
    return {"a": value, "b": value}


def is_whole(entry: dict[str, Any]) -> bool:
    """Whether an entry is whole: as one of the processes has written it."""
    return entry["a"] == entry["b"] == entry["a"][:4] * (len(entry["a"]) // 4)


def write(table: Any, own: str, sizes: list[int], rounds: int = ROUNDS) -> None:
    """Change the common key, and count the changes in a key of the process's own."""
    for number in range(1, rounds + 1):
        table.update("shared", both(number, sizes[number % len(sizes)]) | {own: number})
        table.update("counts", {own: number})
        assert table.value("shared", own) == number


def in_threads(*functions: Callable[[], Any]) -> int:
    """Call each function in a thread of its own; return the number of failures."""
    failed: list[threading.ExceptHookArgs] = []
    threading.excepthook = failed.append
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(failed)


def shared(table: Any) -> None:
    """Make the entries that :func:`write` changes."""
    table.put("shared", both(0, 1))
    table.put("counts", {})


@pytest.mark.parametrize("sizes", [[1], [1, 500, 3, 20_000]])
@pytest.mark.parametrize("anew", [False, True], ids=["inherited", "anew"])
def test_concurrent_changes_are_all_kept(
    memory: Memory, children: Children, sizes: list[int], anew: bool
) -> None:
    table = memory.table()
    shared(table)

    def child(*names: str) -> int:
        own = memory.table() if anew else table
        return in_threads(*(partial(write, own, name, sizes, ROUNDS // 2) for name in names))

    pids = [children.fork(child, "p0", "p1"), children.fork(child, "q0", "q1")]
    reader = memory.table()
    is_over = False
    while not is_over:
        is_over = not any(lives(pid) for pid in pids)
        entry, counts = reader.entry("shared"), reader.entry("counts")
        assert is_whole(entry)
        # The count is written after the change.
        assert all(reader.value("shared", name) >= counts[name] for name in counts)
        table.update("shared", {"main": entry.get("main", 0) + 1})
    assert [children.reap(pid) for pid in pids] == [0, 0]
    assert table.entry("counts") == dict.fromkeys(("p0", "p1", "q0", "q1"), ROUNDS // 2)
    assert table.value("shared", "main") > 0
    assert reader.entries() == memory.table().entries()


def test_threads_can_share_a_table(memory: Memory) -> None:
    table = memory.table()
    shared(table)
    hook = threading.excepthook
    assert in_threads(*(partial(write, table, f"t{number}", [1, 300]) for number in range(4))) == 0
    threading.excepthook = hook
    assert table.entry("counts") == {f"t{number}": ROUNDS for number in range(4)}


def test_entries_can_be_added_and_removed_concurrently(memory: Memory, children: Children) -> None:
    table = memory.table()

    def child(seed: int) -> None:
        choose = random.Random(seed)
        for number in range(ROUNDS):
            name = f"entry-{choose.randrange(5)}"
            what = choose.choice((table.put, table.put, table.update, lambda name, _: table.remove(name)))
            missing: tuple[Any, ...] = (name,)
            try:
                what(name, both(number, choose.randrange(1, 400)))
            except KeyError as exc:
                missing = exc.args
            assert missing == (name,)

    pids = [children.fork(child, seed) for seed in (1, 2)]
    while any(lives(pid) for pid in pids):
        assert all(is_whole(entry) for entry in table.entries().values())
        assert len(table.names()) <= 5
    assert [children.reap(pid) for pid in pids] == [0, 0]


def kill_somewhere(children: Children, pid: int, table: Any, key: str, least: int) -> None:
    """Kill a child that counts in a key, once it has reached this count."""
    while table.entry("counts").get(key, 0) < least:
        assert lives(pid)
    os.kill(pid, signal.SIGKILL)
    assert children.reap(pid) == -signal.SIGKILL


@pytest.mark.parametrize("sizes", [[1, 2], [1, 500, 3, 20_000]])
def test_killed_writers_leave_whole_entries(memory: Memory, children: Children, sizes: list[int]) -> None:
    table = memory.table()
    shared(table)
    choose = random.Random(23)
    steady = children.fork(write, table, "steady", sizes)
    for number in range(40):
        key = f"killed-{number}"
        before = table.entry("counts")
        pid = children.fork(write, table, key, sizes, 10**9)
        kill_somewhere(children, pid, table, key, choose.randrange(1, 60))
        table.reclaim(pid)
        for one in (table, memory.table()):
            counts, entry = one.entry("counts"), one.entry("shared")
            assert is_whole(entry)
            assert entry[key] - counts[key] in (0, 1)
            assert all(counts[name] >= before[name] for name in before)
        table.update("shared", both(number, 7))
        table.discard("shared", key)
        table.discard("counts", key)
    assert children.reap(steady) == 0
    assert table.entry("counts") == {"steady": ROUNDS}
    assert table.entry("shared").keys() == {"a", "b", "steady"}


def test_a_killed_writer_with_a_running_child_blocks_no_writes(
    memory: Memory, children: Children, gate: tuple[int, int]
) -> None:
    table = memory.table()
    shared(table)
    reading, writing = os.pipe()

    def parent(key: str) -> None:
        os.close(writing)
        if os.fork() == 0:
            # The child does not use its inherited table; it ends when the test closes the pipe.
            os.read(reading, 1)
            os._exit(0)
        write(table, key, [1, 20_000], 10**9)

    for number in range(10):
        key = f"killed-{number}"
        kill_somewhere(children, children.fork(parent, key), table, key, 1 + number)
        table.update("counts", {"main": number})
        assert memory.table().value("counts", "main") == number
    os.close(reading)
    os.close(writing)


def test_a_fork_during_writes_of_threads_can_write(memory: Memory, children: Children) -> None:
    table = memory.table()
    shared(table)
    done = threading.Event()

    def busy() -> None:
        while not done.is_set():
            table.update("shared", both(1, 5000))
            table.entries()

    threads = [threading.Thread(target=busy) for _ in range(2)]
    for thread in threads:
        thread.start()

    def child(number: int) -> None:
        table.update("counts", {f"{number}": os.getpid()})
        assert is_whole(table.entry("shared"))
        table.beat(1)

    pids = [children.fork(child, number) for number in range(50)]
    assert [children.reap(pid) for pid in pids] == [0] * 50
    done.set()
    for thread in threads:
        thread.join()
    assert sorted(table.entry("counts").values()) == sorted(pids)


def test_a_signal_handler_may_use_the_table_at_any_time(memory: Memory, children: Children) -> None:
    """Two signals, so that each comes within the handler of the other as well; of each there is one at a
    time.

    Another process sends the signals, so that they come anywhere, and only when it may: a flood of them would
    nest handlers without end.
    """
    table, me = memory.table(), os.getpid()
    shared(table)
    table.put("counts", {"pid": me})
    handled = dict.fromkeys((signal.SIGUSR1, signal.SIGUSR2), 0)
    gates = {number: os.pipe() for number in handled}

    def handle(number: int, frame: Any) -> None:
        key = signal.Signals(number)
        table.update("counts", {key.name: table.entry("counts").get(key.name, 0) + 1})
        table.update("shared", both(handled[key], 3000))
        table.flag(stopping=True)
        handled[key] += 1

    def disturb(number: signal.Signals) -> None:
        while os.read(gates[number][0], 1):
            os.kill(me, number)

    before = {number: signal.signal(number, handle) for number in handled}
    pids = [children.fork(disturb, number) for number in handled]
    number, sent = 0, dict.fromkeys(handled, 0)
    while min(handled.values()) < ROUNDS:
        for key, (_, writing) in gates.items():
            if handled[key] == sent[key]:
                sent[key] += 1
                os.write(writing, b"x")
        number += 1
        table.update("counts", {"main": number})
        table.update("shared", both(number, 500) | {"main": number})
        table.flag(stoppable=True)
        assert is_whole(table.entry("shared"))
        assert table.value("shared", "main") == number
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        children.reap(pid)
    for key, handler in before.items():
        signal.signal(key, handler)
        for descriptor in gates[key]:
            os.close(descriptor)
    for one in (table, memory.table()):
        counts = one.entry("counts")
        assert counts["main"] == number
        assert {key: counts[key.name] for key in handled} == handled
        assert counts["stoppable"] and counts["stopping"]


def test_room_of_killed_processes_is_reclaimed(core: ModuleType, children: Children) -> None:
    with Memory(core, 4 * MEBIBYTE) as memory:
        table = memory.table()
        first = len(fill(table, b"f" * 3000))
        for name in table.names():
            table.remove(name)
        for number in range(3):
            reading, writing = os.pipe()

            def child(writing: int = writing) -> None:
                fill(table, b"g" * 3000)
                os.write(writing, b"x")
                write(table, "never made", [1])

            shared(table)
            pid = children.fork(child)
            assert os.read(reading, 1) == b"x"
            os.kill(pid, signal.SIGKILL)
            children.reap(pid)
            table.reclaim(pid)
            for name in table.names():
                table.remove(name)
            assert len(fill(table, b"h" * 3000)) >= first * 9 // 10, number
            for name in table.names():
                table.remove(name)
            os.close(reading)
            os.close(writing)


def test_a_writer_without_free_descriptors_is_not_reclaimed(core: ModuleType, children: Children) -> None:
    """It has no descriptor left to read the start time with, and writes all the same."""
    with Memory(core, 8 * MEBIBYTE) as memory:
        table = memory.table()
        shared(table)
        told, telling = os.pipe()

        def child() -> None:
            soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 64), min(soft, 64)))
            with suppress(OSError):
                while True:
                    os.dup(0)
            for number in range(10**9):
                table.update("shared", both(number, 300) | {"child": number})
                if number == 0:
                    os.write(telling, b"x")

        pid = children.fork(child)
        assert os.read(told, 1) == b"x"
        for _ in range(3):
            # A process that finds no room claims the units of exited processes.
            for name in fill(table, b"f" * 3000):
                table.remove(name)
            before = table.value("shared", "child")
            while table.value("shared", "child") < before + 100:
                assert is_whole(table.entry("shared"))
        os.kill(pid, signal.SIGKILL)
        children.reap(pid)
        os.close(told)
        os.close(telling)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up privileges")
def test_a_process_that_drops_its_privileges_can_write(memory: Memory, children: Children) -> None:
    table = memory.table()
    shared(table)

    def child() -> None:
        os.setuid(65_534)
        write(table, "child", [1, 500], 10)
        table.beat(1)

    assert children.reap(children.fork(child)) == 0
    assert table.value("counts", "child") == 10


def run(core: ModuleType, memory: Memory, code: str) -> str:
    """Run code in a process of its own that was given the descriptors alone; return what it prints."""
    table = f"core.Table({memory.fd}, {memory.wake}, **{SCHEMA})"
    begin = f"import os, {core.__name__} as core\ntable = {table}\n"
    # It may fork by the hundred, which takes long where each child is measured.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", begin + code],
        pass_fds=(memory.fd, memory.wake),
        env=environment,
        capture_output=True,
        text=True,
        timeout=2 * LONG,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_process_with_inherited_descriptors_can_use_the_table(core: ModuleType, memory: Memory) -> None:
    table = memory.table()
    table.put("a", {"x": [1], 2: None})
    table.arm()
    table.changes()
    printed = run(
        core, memory, "print(table.entry('a'))\ntable.put('b', {'pid': os.getpid()})\ntable.beat(3)\n"
    )
    assert printed == "{'x': [1], 2: None}\n"
    assert table.entry("b")["requests"] == 3
    assert memory.woken()
    assert table.changes() == ["b"]


def test_room_for_numbers_of_exited_processes_is_reused(core: ModuleType, memory: Memory) -> None:
    table = memory.table()
    table.beat(7)
    code = """
for number in range(900):
    pid = os.fork()
    if pid == 0:
        table.beat(number)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
table.put("last", {"pid": pid})
"""
    run(core, memory, code)
    table.put("me", {"pid": os.getpid()})
    assert [entry["requests"] for entry in table.entries().values()] == [899, 7]
