"""Measure a manager at work, in a process of its own (``managed.py``): its throughput and its latency."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from scale import CONTENDERS, Scale

PROGRAM = Path(__file__).with_name("managed.py")
# Much longer than any run, seconds.
PATIENCE = 120.0


@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize("processes", [2, 32])
def bench_flood(benchmark: BenchmarkFixture, scale: Scale, processes: int, contender: str) -> None:
    """Send as many messages as the manager takes, each with a name of its own."""
    benchmark.extra_info.update(run(benchmark, contender, "different", processes, scale.seconds))


@pytest.mark.parametrize("contender", CONTENDERS)
def bench_alike(benchmark: BenchmarkFixture, scale: Scale, contender: str) -> None:
    """Send as many messages as the manager takes, all the same."""
    benchmark.extra_info.update(run(benchmark, contender, "alike", 2, scale.seconds))


@pytest.mark.parametrize("contender", [*CONTENDERS, "limit"])
def bench_one_by_one(benchmark: BenchmarkFixture, scale: Scale, contender: str) -> None:
    """Send one message at a time."""
    benchmark.extra_info.update(run(benchmark, contender, "one-by-one", 2, scale.samples))


@pytest.mark.parametrize("contender", CONTENDERS)
def bench_exits(benchmark: BenchmarkFixture, scale: Scale, contender: str) -> None:
    """Kill one process at a time."""
    benchmark.extra_info.update(run(benchmark, contender, "exits", scale.exits, scale.exits))


@pytest.mark.parametrize("contender", CONTENDERS[:2])
@pytest.mark.parametrize("kind", ["exits", "signals"])
def bench_in_a_flood(benchmark: BenchmarkFixture, scale: Scale, kind: str, contender: str) -> None:
    """Kill one process, or send one signal, at a time, during a flood of messages."""
    processes = scale.exits if kind == "exits" else 2
    benchmark.extra_info.update(run(benchmark, contender, f"{kind}-in-a-flood", processes, scale.exits))


def run(
    benchmark: BenchmarkFixture, contender: str, load: str, processes: int, amount: float
) -> dict[str, Any]:
    """Run the program and return its findings; its duration does not count."""
    command = [sys.executable, str(PROGRAM), contender, load, str(processes), str(amount)]
    result: dict[str, Any] = benchmark.pedantic(output, (command, contender))
    return result


def output(command: list[str], contender: str) -> Any:
    """Return the output of a program that runs on the contender's core."""
    core = {"WORKER_CORE": contender} if contender in ("native", "pure") else {}
    program = subprocess.Popen(
        command,
        env={**os.environ, **core},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, log = program.communicate(timeout=PATIENCE)
    finally:
        # Ends all processes that the program has started, after an error too.
        with suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
        program.wait()
    assert program.returncode == 0, log
    return json.loads(output)
