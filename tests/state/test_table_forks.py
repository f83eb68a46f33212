"""``Table``: leftovers of forks, and pids that are used again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.processes import Children
from support.tables import Memory

NEXT_PID = Path("/proc/sys/kernel/ns_last_pid")
TRIES = 50
# The exit status of a child that did not get the requested pid.
OTHER = 77
FORKS = 150
# From this many parts on, the parts of exited processes are dropped.
MANY = 8

pytestmark = [pytest.mark.native, pytest.mark.slow]


@pytest.fixture
def answer() -> Iterator[tuple[int, int]]:
    """A pipe from a child to the test."""
    reading, writing = os.pipe()
    yield reading, writing
    os.close(reading)
    os.close(writing)


@pytest.fixture
def reused() -> Iterator[int]:
    """Request this pid for the next two children, as far as the system allows it."""
    if not os.access(NEXT_PID, os.W_OK):
        pytest.skip("only root can say which pid is the next")
    before = NEXT_PID.read_text()
    first = int(before) // 2 + 300
    yield next(pid for pid in range(first, first + 10_000) if not is_taken(pid))
    NEXT_PID.write_text(before)


def fork_as(pid: int, act: Callable[[], object]) -> None:
    """Call a function in a child that has this pid; skip where other processes always get it first."""
    for _ in range(TRIES):
        NEXT_PID.write_text(str(pid - 1))
        child = os.fork()
        if child == 0:
            status = OTHER if os.getpid() != pid else 1
            try:
                if status != OTHER:
                    act()
                    status = 0
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status != OTHER:
            assert status == 0
            return
    pytest.skip(f"{pid} is somebody's")


def test_staged_entries_of_exited_processes_are_dropped(memory: Memory, children: Children) -> None:
    table = memory.table()
    table.put("a", {"pid": os.getpid()})

    def child() -> None:
        for key in ("x", "y"):
            table.update("a", {key: os.getpid()}, os.getpid())
        assert table.staged("a", os.getpid()) == {"x": os.getpid(), "y": os.getpid()}

    pids = [children.fork(child) for _ in range(FORKS)]
    assert [children.reap(pid) for pid in pids] == [0] * FORKS
    before = len([pid for pid in pids if table.staged("a", pid)])
    assert children.reap(children.fork(child)) == 0
    assert len([pid for pid in pids if table.staged("a", pid)]) < MANY or before < MANY
    assert table.entry("a") == {"pid": os.getpid()}


def test_staged_entries_of_running_processes_are_kept(
    memory: Memory, children: Children, gate: tuple[int, int]
) -> None:
    table = memory.table()
    table.put("a", {"pid": os.getpid()})
    done, doing = os.pipe()

    def child() -> None:
        table.update("a", {"x": os.getpid()}, os.getpid())
        os.write(doing, b"x")
        os.read(gate[0], 1)

    pids = [children.fork(child) for _ in range(3 * MANY)]
    for _ in pids:
        assert os.read(done, 1) == b"x"
    assert [table.staged("a", pid) for pid in pids] == [{"x": pid} for pid in pids]
    os.write(gate[1], b"x" * len(pids))
    assert [children.reap(pid) for pid in pids] == [0] * len(pids)
    os.close(done)
    os.close(doing)


def test_a_staged_entry_is_not_reused_by_a_process_with_the_same_pid(memory: Memory, reused: int) -> None:
    table = memory.table()
    table.put("a", {"pid": os.getpid(), "x": "visible"})
    fork_as(reused, lambda: table.update("a", {"x": "old", "old": True}, reused))
    assert table.some("a", ("x", "old"), reused) == {"x": "old", "old": True}

    def next_one() -> None:
        assert table.entry("a", reused) == {"pid": os.getppid(), "x": "visible"}
        assert table.value("a", "x", reused) == "visible"
        assert table.staged("a", reused) == table.some("a", ("x", "old"), reused) == {}
        table.update("a", {"new": True}, reused)
        assert table.staged("a", reused) == {"new": True}

    # The start times of the two must differ.
    until_the_clock_ticks()
    fork_as(reused, next_one)
    assert table.staged("a", reused) == {"new": True}
    table.hand_over("a", reused, {"pid": reused})
    assert table.entry("a") == {"pid": reused, "x": "visible", "new": True}


def is_taken(pid: int) -> bool:
    """Whether a process has this pid, zombies included."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def until_the_clock_ticks() -> None:
    """Wait until the kernel's clock of start times moves on."""

    def uptime() -> float:
        return float(Path("/proc/uptime").read_text().split()[0])

    begun = uptime()
    while uptime() < begun + 0.03:
        pass


def test_a_fork_with_the_pid_of_an_ancestor_has_its_own_writer(
    memory: Memory, reused: int, gate: tuple[int, int], answer: tuple[int, int]
) -> None:
    """Otherwise it would fill blocks that belong to another process by now."""
    table = memory.table()
    told, telling = answer

    def grandchild() -> None:
        os.write(telling, b"x")
        os.read(gate[0], 1)
        for number in range(100):
            table.put("b", {"x": number})
        os.write(telling, b"x")

    def ancestor() -> None:
        table.put("b", {"x": 0})
        if os.fork() == 0:
            # It outlives the process that forked it, and does not write itself.
            while is_taken(reused):
                pass
            try:
                fork_as(reused, grandchild)
            finally:
                os.write(telling, b"-")
                os._exit(0)

    fork_as(reused, ancestor)
    if os.read(told, 1) != b"x":
        pytest.skip(f"{reused} is somebody's")
    table.reclaim(reused)
    heir = memory.table()
    for number in range(100):
        heir.put(f"{number}", {"x": number})
    os.write(gate[1], b"x")
    assert os.read(told, 1) == b"x"
    assert os.read(told, 1) == b"-"
    assert table.entries() == {"b": {"x": 99}, **{f"{number}": {"x": number} for number in range(100)}}
