"""The same stop, again and again: SOAK_ROUNDS says how often."""

from __future__ import annotations

import os
from pathlib import Path
from signal import SIGINT, SIGTERM, Signals

import pytest

from .harness import Server

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
