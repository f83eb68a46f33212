"""The same stop, again and again: SOAK_ROUNDS says how often."""

from __future__ import annotations

import os
from pathlib import Path
from signal import SIGINT, SIGTERM, Signals

import pytest

from .harness import Server
from .test_supervision import Run, killed_main, reloads_under_load, two_reloads

ROUNDS = int(os.environ.get("SOAK_ROUNDS", "3"))

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
def test_nobody_outlives_main(run: Run, method: str) -> None:
    for _ in range(ROUNDS):
        killed_main(run, method)


@pytest.mark.timeout(60 + 20 * ROUNDS)
@pytest.mark.parametrize("close", [True, False], ids=["close", "keep-alive"])
@pytest.mark.parametrize("order", ["STARTUP_FIRST", "SHUTDOWN_FIRST"])
def test_no_request_is_lost_by_reloads(run: Run, tmp_path: Path, order: str, close: bool) -> None:
    """Into code whose import takes a processor 1.5 s; no answer takes 50 ms."""
    reloads_under_load(run, tmp_path, order, close, ROUNDS, 1.5, 0.05)


@pytest.mark.timeout(60 + 30 * ROUNDS)
@pytest.mark.parametrize("apart", [0.1, 0.5, 2.0])
def test_two_reloads_close_together(run: Run, apart: float) -> None:
    two_reloads(run, apart, ROUNDS)
