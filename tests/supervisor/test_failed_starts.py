"""The system refuses a process: no request is forgotten, and the main process stays responsive."""

from __future__ import annotations

import errno
import math
import os
import re
import resource
import signal
from collections.abc import Callable, Iterator
from itertools import islice
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest
from sanic.exceptions import ServerKilled
from support import targets
from support.running import House, errors, lives, logged, until

from worker._spawn import program
from worker.constants import Phase
from worker.process import WorkerProcess

ONE, TWO, THREE, FOUR = (f"Sanic-Server-{number}-0" for number in range(4))
ERRNOS = (errno.EMFILE, errno.EAGAIN, errno.ENOMEM)

pytestmark = [pytest.mark.usefixtures("main_is_heard"), pytest.mark.slow]


class Refusals:
    """Make a system call fail this many times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self.left = 0

    def of(self, call: str, number: int) -> None:
        """Let this call fail with this error number as long as there are refusals left."""
        module, _, name = call.rpartition(".")
        real = getattr(__import__(module, fromlist=[name]), name)

        def refused(*args: Any, **kwargs: Any) -> Any:
            if self.left:
                self.left -= 1
                raise OSError(number, os.strerror(number))
            return real(*args, **kwargs)

        self._patch.setattr(call, refused)


@pytest.fixture
def refusals(monkeypatch: pytest.MonkeyPatch) -> Refusals:
    # The first call probes the system, once; it must not meet a refusal.
    program.held_by_spawn()
    return Refusals(monkeypatch)


@pytest.mark.parametrize(
    ("method", "call", "number"),
    [
        *(("fork", call, number) for call in ("os.fork", "os.pipe") for number in ERRNOS),
        *(("spawn", call, errno.EAGAIN) for call in ("os.posix_spawn", "os.pipe")),
    ],
)
class TestEachCall:
    def test_a_refused_first_start_is_retried(
        self,
        method: str,
        call: str,
        number: int,
        refusals: Refusals,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        house = House(tmp_path, method=method, number=3, backoff_initial=0.01)
        refusals.of(call, number)
        refusals.left = 2

        def act() -> None:
            house.said("ready", 3)
            house.all_acked()

        house.run(act)
        lines = errors(caplog)
        assert len(lines) == 2
        assert all(os.strerror(number) in line and "could not be started" in line for line in lines)

    def test_a_refused_start_while_scaling_is_retried(
        self,
        method: str,
        call: str,
        number: int,
        refusals: Refusals,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        house = House(tmp_path, method=method, number=1, backoff_initial=0.01)
        refusals.of(call, number)

        def act() -> None:
            house.said("ready")
            house.all_acked()
            refusals.left = 2
            house.send("__SCALE__:4")
            house.said("ready", 4)
            house.all_acked()
            assert len([*house.manager.transient_processes]) == 4

        house.run(act)

    def test_a_refused_start_of_a_managed_process_is_retried(
        self,
        method: str,
        call: str,
        number: int,
        refusals: Refusals,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        house = House(tmp_path, method=method, backoff_initial=0.01)
        refusals.of(call, number)

        def act() -> None:
            house.said("ready")
            house.all_acked()
            refusals.left = 1
            house.manager.manage("Errand", targets.errand, house.kwargs)
            errand = house.manager.durable["Errand"]
            house.call(lambda: house.manager._loop.do(lambda: house.manager.start_worker(errand)))
            until(lambda: [said for said in house.said(None, 2) if said.name == "Sanic-Errand-0"], "it runs")
            house.open_gate()

        house.run(act)
        assert len(errors(caplog)) == 1


def test_a_server_starts_without_a_pidfd(refusals: Refusals, tmp_path: Path) -> None:
    """Its sentinel reports its exit."""
    house = House(tmp_path)
    refusals.of("os.pidfd_open", errno.EMFILE)
    refusals.left = 1000

    def act() -> None:
        (first,) = house.said("ready")
        house.all_acked()
        os.kill(first.pid, signal.SIGKILL)
        house.said("ready", 2)
        house.all_acked()

    house.run(act)


def test_the_start_fails_if_every_fork_is_refused(
    refusals: Refusals, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    house = House(tmp_path, "never_acks", number=2, max_consecutive_failures=3, backoff_initial=0.01)
    refusals.of("os.fork", errno.EAGAIN)
    refusals.left = 1000
    with pytest.raises(ServerKilled):
        house.run(stops=False)
    last = errors(caplog)[-1]
    assert last.startswith("Not all workers acknowledged a successful startup. Shutting down.")
    assert re.search(rf"Sanic-Server-[01]-0 could not be started: \[Errno {errno.EAGAIN}\]", last)
    assert "raise the limit of processes (ulimit -u, or pids.max of the cgroup)" in last


def test_a_stop_is_obeyed_while_starts_are_refused(
    refusals: Refusals, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    house = House(tmp_path, backoff_initial=1000, backoff_max=1000)
    refusals.of("os.fork", errno.EAGAIN)

    def act() -> None:
        house.said("ready")
        house.all_acked()
        refusals.left = 1000
        house.send("__SCALE__:3")
        logged(caplog, f"{THREE} could not be started")
        house.until(THREE, phase="backoff", state="FAILED")

    house.run(act)


def test_a_failed_slot_is_not_retried_without_a_request(
    refusals: Refusals, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The main process sleeps, and logs nothing more, until a request comes."""
    house = House(tmp_path, max_consecutive_failures=3, backoff_initial=0.01)
    refusals.of("os.fork", errno.EAGAIN)

    def act() -> None:
        house.said("ready")
        house.all_acked()
        refusals.left = 1000
        house.send("__SCALE__:2")
        logged(caplog, "It is FAILED")
        house.call(lambda: None)
        assert house.manager._supervisor.reconcile_at == math.inf
        refusals.left = 0
        house.send("__SCALE__:2")
        house.said("ready", 2)
        house.all_acked()

    house.run(act)
    assert [line for line in errors(caplog) if "impossible" in line] == []


def test_scaling_down_removes_slots_without_a_process(
    refusals: Refusals, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One of four servers runs: a scaling to two removes two that do not run."""
    house = House(tmp_path, backoff_initial=1000, backoff_max=1000)
    refusals.of("os.fork", errno.EAGAIN)

    def act() -> None:
        (first,) = house.said("ready")
        house.all_acked()
        refusals.left = 1000
        house.send("__SCALE__:4")
        logged(caplog, f"{FOUR} could not be started")
        house.send("__SCALE__:2")
        until(lambda: house.manager.num_server == 2, "two")
        house.call(lambda: None)
        assert lives(first.pid)
        refusals.left = 0
        house.send("__ALL_PROCESSES__:")
        house.said("ready", 3)
        house.all_acked()

    house.run(act)
    assert "Scaling aborted" in "\n".join(errors(caplog))


def test_the_removal_of_the_last_server_ends_the_main_process(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    house = House(tmp_path)

    def act() -> None:
        house.said("ready")
        house.all_acked()
        house.manager.shutdown_server()

    with pytest.raises(ServerKilled):
        house.run(act, stops=False)
    assert errors(caplog) == ["No server can run any more. Shutting down."]


@pytest.fixture
def limit() -> Iterator[Callable[[int], None]]:
    """Leave the main process this many free descriptors; a negative number restores them."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)

    def leave(free: int) -> None:
        used = {int(entry) for entry in os.listdir("/proc/self/fd")}
        unused = (number for number in range(before[0]) if number not in used)
        soft = before[0] if free < 0 else next(islice(unused, free, None))
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))

    yield leave
    leave(-1)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_starts_are_retried_with_few_free_descriptors(
    method: str, limit: Callable[[int], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Any call may find no descriptor: the start is tried again, none is lost, and a stop is obeyed."""
    house = House(
        tmp_path, method=method, backoff_initial=0.01, backoff_max=0.01, max_consecutive_failures=10_000
    )

    def scaled(free: int) -> None:
        limit(free)
        try:
            house.manager.scale(2)
        finally:
            limit(-1)

    def act() -> None:
        house.said("ready")
        house.all_acked()
        # This thread's connection, where a process keeps the state.
        house.entry(ONE)
        before = len(os.listdir("/proc/self/fd"))
        for free in range(8):
            house.call(lambda free=free: house.manager._loop.do(lambda: scaled(free)))  # type: ignore[misc]
            until(lambda: len([*house.manager.transient_processes]) == 2, "two")
            house.all_acked()
            house.send("__SCALE__:1")
            until(lambda: set(house.state.copy()) == {"Sanic-Main", ONE}, "one")
        active_children()
        # The last turn of the loop may still go on.
        until(lambda: len(os.listdir("/proc/self/fd")) <= before, "all descriptors closed")

    house.run(act)
    assert any("could not be started: [Errno 24]" in line for line in errors(caplog))


def test_an_unexpected_error_of_a_start_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error other than a lack of room is raised at once, and started processes are not left behind."""
    house = House(tmp_path, "never_acks", number=2)
    start = WorkerProcess.start

    def fails(process: WorkerProcess) -> None:
        if process.name == TWO:
            house.said("ready")
            raise TypeError("cannot be pickled")
        start(process)

    monkeypatch.setattr(WorkerProcess, "start", fails)
    with pytest.raises(TypeError, match="cannot be pickled"):
        house.run(stops=False)


def test_an_exit_during_a_refused_replacement_is_handled(
    refusals: Refusals, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker exits in the turn in which it is to be replaced, and its successor cannot be started."""
    house = House(tmp_path, backoff_initial=0.01)
    refusals.of("os.fork", errno.EAGAIN)

    def act() -> None:
        (old,) = house.said("ready")
        house.all_acked()

        def at_once() -> None:
            os.kill(old.pid, signal.SIGKILL)
            os.waitid(os.P_PID, old.pid, os.WEXITED | os.WNOWAIT)
            refusals.left = 1
            house.manager.restart()
            house.manager._supervisor.reconcile()

        house.call(lambda: house.manager._loop.do(at_once))
        house.said("ready", 2)
        house.all_acked()
        (place,) = house.manager.transient_processes
        until(lambda: house.manager._supervisor.slot_phase(place) is Phase.READY, "the new one ready")

    house.run(act)
