"""Other code collects the children: no exit is lost, and only the exit status is unknown."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from threading import Event, Thread

import pytest
from support.running import House, errors, logged, until

ONE, TWO, THREE = (f"Sanic-Server-{number}-0" for number in range(3))

pytestmark = [pytest.mark.usefixtures("main_is_heard"), pytest.mark.slow]


@contextmanager
def ignores() -> Iterator[None]:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


@contextmanager
def waits_for_any() -> Iterator[None]:
    over = Event()

    def collect() -> None:
        while not over.wait(0.001):
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                pass

    thread = Thread(target=collect)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize(
    ("collected_elsewhere", "method"),
    [(ignores, "fork"), (ignores, "spawn"), (ignores, "forkserver"), (waits_for_any, "fork")],
)
def test_restart_replacement_scaling_and_stop_with_collected_children(
    collected_elsewhere: Callable[[], AbstractContextManager[None]],
    method: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    house = House(tmp_path, number=2, method=method, restart_policy="on-failure", graceful_timeout=60)

    def act() -> None:
        house.said("ready", 2)
        house.all_acked()
        house.send("__ALL_PROCESSES__:")
        new = {said.name: said.pid for said in house.said("ready", 4)[2:]}
        for name, pid in new.items():
            house.until(name, pid=pid, state="ACKED", serving=True)
        house.all_acked()
        os.kill(new[ONE], signal.SIGKILL)
        house.until(ONE, pid=house.said("ready", 5)[4].pid, state="ACKED", serving=True)
        house.send("__SCALE__:3")
        house.until(THREE, pid=house.said("ready", 6)[5].pid, state="ACKED", serving=True)
        house.send("__SCALE__:1")
        until(lambda: house.entry(TWO) == house.entry(THREE) == {}, "two to be gone")

    with collected_elsewhere():
        house.run(act)
    # Each restarted or scaled-away server was stopped once and has exited; the last one with the main
    # process.
    assert len([said for said in house.heard if said.what in ("SIGINT", "SIGTERM")]) == 5
    assert all("was killed by SIGKILL" in line or "an unknown code" in line for line in errors(caplog))


def test_an_unknown_exit_status_counts_as_a_failure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = {"restart_policy": "on-failure", "backoff_initial": 0.01, "max_consecutive_failures": 1000}
    house = House(tmp_path, "acks_and_exits 0", **settings)

    def act() -> None:
        house.said("acked")
        house.all_acked()
        # The next process is gone before it is looked at.
        house.plan("exits 0")
        house.open_gate()
        logged(caplog, "(failure 2 of 1000 in a row)")
        house.plan("serves")
        house.said("ready")

    with ignores():
        house.run(act)
    assert all("an unknown code" in line for line in errors(caplog))
