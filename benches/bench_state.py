"""Measure the shared state (``stated.py``), the cost of an idle manager, and the time to the first answer."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from time import monotonic, sleep

import pytest
from bench_manager import output, run
from pytest_benchmark.fixture import BenchmarkFixture
from scale import CONTENDERS, Scale
from servers import answer, free_port, running

FOLDER = Path(__file__).parent
# Stock takes a hundred times as long for each.
FEWER = 20


@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize(
    ("what", "entries"),
    [("read", 2), ("write", 2), ("all", 8), ("all", 64), ("all-at-once", 64), ("lost", 2)],
    ids=str,
)
def bench_state(benchmark: BenchmarkFixture, scale: Scale, what: str, entries: int, contender: str) -> None:
    """Measure one use of the state."""
    amount = {"all": 10, "all-at-once": 10}.get(what, 1)
    amount = scale.changes // (amount * (FEWER if contender == "stock" else 1))
    command = [sys.executable, str(FOLDER / "stated.py"), contender, what, str(entries), str(amount)]
    benchmark.extra_info["rows"] = benchmark.pedantic(output, (command, contender))


@pytest.mark.parametrize("contender", CONTENDERS[:1])
def bench_beat(benchmark: BenchmarkFixture, scale: Scale, contender: str) -> None:
    """Measure a heartbeat, which stock does not have."""
    command = [sys.executable, str(FOLDER / "stated.py"), contender, "beat", "2", str(scale.changes)]
    benchmark.extra_info.update(benchmark.pedantic(output, (command, contender)))


@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize("processes", [2, 64])
def bench_idle(benchmark: BenchmarkFixture, scale: Scale, processes: int, contender: str) -> None:
    """Measure a manager without work."""
    benchmark.extra_info.update(run(benchmark, contender, "idle", processes, scale.idle))


@pytest.mark.parametrize("contender", CONTENDERS)
def bench_start(benchmark: BenchmarkFixture, contender: str) -> None:
    """Measure the time from the command to the first answer."""
    benchmark.extra_info["seconds"] = benchmark.pedantic(start, (contender,))


def start(contender: str) -> float:
    """Start a server, ask until it answers, stop it; return the time to the answer, seconds."""
    port = free_port()
    variables = {"SERVING": os.devnull}
    if contender != "stock":
        variables.update(INSTALL="1", WORKER_CORE=contender)
    command = [sys.executable, str(FOLDER / "apps" / "sanic_app.py"), str(port), "1"]
    began = monotonic()
    with running(command, env={**os.environ, **variables}) as server:
        while answer(port, timeout=30) != b"served":
            assert server.poll() is None, "the server has ended"
            sleep(0.002)
        return monotonic() - began
