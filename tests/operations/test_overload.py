"""An overloaded machine is no hang: busy servers are kept, however long they wait for a CPU."""

from __future__ import annotations

import os
import threading
from http.client import HTTPException
from pathlib import Path
from time import monotonic

import pytest
from integration.harness import Server

from worker._system import proc

pytestmark = [pytest.mark.soak, pytest.mark.native]

ROUNDS = int(os.environ.get("SOAK_ROUNDS", "3"))
# 30 rounds are ten minutes.
SECONDS = 20.0 * ROUNDS
LIMIT = 2.0
# Several for each core that the servers are pinned to.
WORKERS, CORES = 8, 2
# All clients together ask one server for less than the limit.
BURN = 0.8 * LIMIT / WORKERS


@pytest.mark.timeout(120 + 2 * SECONDS)
def test_no_busy_server_is_replaced(tmp_path: Path) -> None:
    cores = sorted(os.sched_getaffinity(0))[:CORES]
    with Server.run("apps.hanging:app", f"--hang-timeout={LIMIT:g}", cwd=tmp_path, workers=WORKERS) as server:
        server.wait_ready(timeout=60)
        before = {name: entry["pid"] for name, entry in server.settled(WORKERS).items()}
        for pid in before.values():
            for thread in os.listdir(f"/proc/{pid}/task"):
                os.sched_setaffinity(int(thread), cores)
        waited = {pid: proc.run_delay(pid) for pid in before.values()}
        until, failures, answers = monotonic() + SECONDS, [], []

        def client() -> None:
            while monotonic() < until:
                try:
                    answers.append(server.request("GET", f"/burn/{BURN}", timeout=60).status)
                except (OSError, HTTPException) as error:
                    failures.append(repr(error))

        clients = [threading.Thread(target=client, name="load") for _ in range(WORKERS)]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join()
        assert not failures
        assert {*answers} == {200}
        assert "hangs" not in server.log()
        assert {name: entry["pid"] for name, entry in server.settled(WORKERS).items()} == before
        delays = [proc.run_delay(pid) - waited[pid] for pid in waited]
        print(f"{len(answers)} requests; the servers waited for a CPU for {sum(delays):.0f} s")
        # It was overloaded, indeed.
        assert sum(delays) > SECONDS * len(cores)
