"""A process forked by a worker writes to the state as the worker."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest

from worker._spawn.processes import factory
from worker._state import identity
from worker._state.shared import SharedState
from worker.multiplexer import WorkerMultiplexer
from worker.state import WorkerState

NAME = "Sanic-Server-0-0"
METHODS = ["spawn", "fork", "forkserver"]

pytestmark = [pytest.mark.native, pytest.mark.slow]


@pytest.fixture
def state() -> Iterator[SharedState]:
    state = SharedState()
    yield state
    state.close()


def run(
    state: SharedState,
    target: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    method: str = "fork",
    *args: Any,
) -> int:
    """Run a target as a worker of that name; return its pid when it has exited in order."""
    monkeypatch.setenv("SANIC_WORKER_NAME", NAME)
    make = factory(get_context(method))
    worker = make(name=NAME, target=target, kwargs={"state": state, "args": args}, daemon=False)
    worker.start()
    worker.join()
    assert worker.exitcode == 0
    pid: int = worker.pid
    return pid


def forked(act: Callable[[], Any]) -> int:
    """Call a function in a fork of this process; return its pid when it has exited."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            act()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    return pid


def parts(state: SharedState, pids: list[int]) -> dict[int, Any]:
    """Return the values that processes have written apart from the entry."""
    return {pid: part for pid in pids if (part := state._table.staged(NAME, pid))}


def writes(state: SharedState, key: str) -> int:
    """Set a key; return the pid of the writer."""
    WorkerState(state, NAME)[key] = os.getpid()
    return os.getpid()


_state: SharedState | None = None


def writes_what_was_inherited(key: str) -> int:
    """As in an executor, whose processes are forked: the state is not in the arguments."""
    assert _state is not None
    return writes(_state, key)


def forks_in_every_way(state: SharedState, args: tuple[bool]) -> None:
    """As a worker: each fork writes a key of its own, then the worker reports their pids."""
    global _state
    _state = state
    me, (owns_the_entry,) = os.getpid(), args
    if owns_the_entry:
        state.update_entry(NAME, {"pid": me})
    multiplexer = WorkerMultiplexer(None, state)  # type: ignore[arg-type]
    fork = get_context("fork")
    pids = [
        forked(lambda: writes(state, "by_fork")),
        forked(lambda: forked(lambda: multiplexer.state.update({"by_fork_of_fork": True}))),
        forked(multiplexer.ack),
        forked(lambda: multiplexer.set_serving(True)),
    ]
    process = fork.Process(target=writes, args=(state, "by_process"))
    process.start()
    process.join()
    with ProcessPoolExecutor(1, mp_context=fork) as executor:
        pids += [process.pid, executor.submit(writes_what_was_inherited, "by_executor").result()]

    def reads() -> None:
        mine = WorkerState(state, NAME)
        assert mine["by_fork"] == pids[0]
        assert mine["by_process"] == process.pid
        del mine["by_process"]

    pids.append(forked(reads))
    assert identity.worker_pid() == me
    multiplexer.state["forks"] = pids


@pytest.mark.parametrize("method", METHODS)
def test_a_fork_writes_to_the_entry_of_its_worker(
    method: str, state: SharedState, monkeypatch: pytest.MonkeyPatch
) -> None:
    state[NAME] = {"pid": 1}
    pid = run(state, forks_in_every_way, monkeypatch, method, True)
    entry = state[NAME]
    by_fork, *_, executor, _ = entry["forks"]
    assert entry.pop("ready_at", None) is not None
    assert entry == {
        "pid": pid,
        "by_fork": by_fork,
        "by_fork_of_fork": True,
        "by_executor": executor,
        "state": "ACKED",
        "serving": True,
        "forks": entry["forks"],
    }
    assert parts(state, entry["forks"]) == {}


def test_a_fork_of_a_starting_worker_writes_to_the_staged_entry(
    state: SharedState, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {"pid": os.getpid(), "state": "ACKED", "serving": False}
    state[NAME] = before
    pid = run(state, forks_in_every_way, monkeypatch, "fork", False)
    assert state[NAME] == before
    part = state._table.staged(NAME, pid)
    assert (part["state"], part["serving"], part["by_fork_of_fork"]) == ("ACKED", True, True)
    assert parts(state, part["forks"]) == {}
    state.hand_over(NAME, pid, {"starts": 2})
    assert state[NAME] == {**before, **part, "pid": pid, "starts": 2}


def counts(state: SharedState, args: tuple[Any, ...]) -> None:
    """As a worker: its forks count, before and after it has counted itself."""
    state.update_entry(NAME, {"pid": os.getpid()})
    forked(lambda: state.beat(3))
    state.beat(4)
    forked(lambda: (state.beat(5), state.flag(stoppable=True)))
    forked(lambda: state.flag(stopping=True))
    state.flag(stoppable=False)
    state.update_entry(NAME, {"seen": {**state.numbers(os.getpid()), "last_beat": None}})


def test_requests_of_a_fork_count_for_its_worker(state: SharedState, monkeypatch: pytest.MonkeyPatch) -> None:
    state[NAME] = {}
    run(state, counts, monkeypatch)
    seen = {"last_beat": None, "requests": 12, "stoppable": False, "stopping": True}
    assert state[NAME]["seen"] == seen


def spawns(state: SharedState, args: tuple[Any, ...]) -> None:
    """As a worker: start a Python that has the state as well."""
    state.update_entry(NAME, {"pid": os.getpid()})
    process = get_context("spawn").Process(target=writes, args=(state, "by_spawned"))
    process.start()
    process.join()
    state.update_entry(NAME, {"spawned": process.pid})


def test_a_spawned_program_writes_as_itself(state: SharedState, monkeypatch: pytest.MonkeyPatch) -> None:
    state[NAME] = {}
    pid = run(state, spawns, monkeypatch)
    spawned = state[NAME]["spawned"]
    assert state[NAME] == {"pid": pid, "spawned": spawned}
    assert parts(state, [spawned]) == {spawned: {"by_spawned": spawned}}


def leaves_a_fork(state: SharedState, args: tuple[int, int]) -> None:
    """As a worker: fork a process that outlives it and writes then."""
    reading, writing = args
    state.update_entry(NAME, {"pid": os.getpid()})
    if os.fork() == 0:
        os.setsid()
        try:
            os.read(reading, 1)
            writes(state, "late")
            state.beat(1)
        finally:
            os.write(writing, b"x")
            os._exit(0)


def test_a_fork_that_outlives_its_worker_writes_to_no_entry(
    state: SharedState, monkeypatch: pytest.MonkeyPatch
) -> None:
    (held, let), (told, telling) = os.pipe(), os.pipe()
    state[NAME] = {}
    pid = run(state, leaves_a_fork, monkeypatch, "fork", held, telling)
    state.hand_over(NAME, os.getpid(), {})
    os.write(let, b"x")
    assert os.read(told, 1) == b"x"
    assert state[NAME] == {"pid": os.getpid()}
    assert state.numbers(pid) == {}
    state.drop_staged(NAME, pid)
    assert parts(state, [pid]) == {}
    for end in (held, let, told, telling):
        os.close(end)


def test_a_process_that_is_no_worker_writes_as_itself() -> None:
    assert identity.worker_pid() == os.getpid()

    def child() -> None:
        assert identity.worker_pid() == os.getpid()
        os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if pid == 0:
        try:
            child()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
