"""Scenarios that must never fail, repeated: SOAK_ROUNDS sets the number."""

from __future__ import annotations

import os
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGTERM, SIGTTIN, SIGTTOU, Signals
from statistics import median
from time import monotonic

import pytest

from .harness import Server
from .test_supervision import APP, Run, killed_main, pids, reloads_under_load, two_reloads

ROUNDS = int(os.environ.get("SOAK_ROUNDS", "3"))
# A few rounds on a busy machine do not allow a statement about times.
TIMED = ROUNDS >= 20

pytestmark = pytest.mark.soak


@pytest.mark.timeout(60 + 20 * ROUNDS)
@pytest.mark.parametrize("workers", [2, 8])
@pytest.mark.parametrize("number", [SIGTERM, SIGINT])
def test_every_stop_is_clean(tmp_path: Path, number: Signals, workers: int) -> None:
    for _ in range(ROUNDS):
        with Server.run("apps.cluster:app", workers=workers, cwd=tmp_path) as server:
            server.wait_events("after_server_start", workers, timeout=30)
            assert server.stop(number) == 0
            assert len(server.events("after_server_stop")) == workers
            assert server.log("err") == ""


@pytest.mark.timeout(60 + 20 * ROUNDS)
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_no_process_outlives_the_main_process(run: Run, method: str) -> None:
    times = [killed_main(run, method) for _ in range(ROUNDS)]
    assert (max if TIMED else min)(times) < 1, times


@pytest.mark.timeout(60 + 20 * ROUNDS)
@pytest.mark.parametrize("close", [True, False], ids=["close", "keep-alive"])
@pytest.mark.parametrize("order", ["STARTUP_FIRST", "SHUTDOWN_FIRST"])
def test_no_request_is_lost_by_reloads(run: Run, tmp_path: Path, order: str, close: bool) -> None:
    """The import of the new code takes a processor 1.5 s; no answer takes 50 ms."""
    reloads_under_load(run, tmp_path, order, close, ROUNDS, 1.5, 0.05 if TIMED else None)


@pytest.mark.timeout(60 + 30 * ROUNDS)
@pytest.mark.parametrize("apart", [0.1, 0.5, 2.0])
def test_two_reloads_close_together_leave_one_process_per_slot(run: Run, apart: float) -> None:
    two_reloads(run, apart, ROUNDS)


@pytest.mark.timeout(60 + 20 * ROUNDS)
def test_a_replacement_is_as_quick_as_a_start(run: Run) -> None:
    """The time from the exit of a worker to its successor's readiness, beside a start of one more."""
    server = run(APP, "--min-uptime=0").wait_ready()
    before = pids(server, 2)
    replaced, started = [], []
    for _ in range(max(5, ROUNDS)):
        mark, began = server.mark(), monotonic()
        os.kill(before["Sanic-Server-0-0"], SIGKILL)
        replaced.append(server.wait_line("Worker ready", since=mark).at - began)
        before = pids(server, 2)
        mark, began = server.mark(), monotonic()
        server.signal(SIGTTIN)
        started.append(server.wait_line("Worker ready", since=mark).at - began)
        pids(server, 3)
        server.signal(SIGTTOU)
        before = pids(server, 2)
    ratio = median(replaced) / median(started)
    print(f"replaced in {median(replaced):.3f} s, started in {median(started):.3f} s: {ratio:.2f}")
    assert not TIMED or ratio < 1.15
    assert server.stop() == 0
