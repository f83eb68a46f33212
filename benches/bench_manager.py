"""A manager at work, in a process of its own (``managed.py``): how much it takes, and how soon it acts."""

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
# Much longer than any of it takes, seconds.
PATIENCE = 120.0


@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize("processes", [2, 32])
def bench_flood(benchmark: BenchmarkFixture, scale: Scale, processes: int, contender: str) -> None:
    """As many messages as it takes, each of a name of its own."""
    benchmark.extra_info.update(run(benchmark, contender, "different", processes, scale.seconds))


@pytest.mark.parametrize("contender", CONTENDERS)
def bench_alike(benchmark: BenchmarkFixture, scale: Scale, contender: str) -> None:
    """As many messages as it takes, all the same."""
    benchmark.extra_info.update(run(benchmark, contender, "alike", 2, scale.seconds))


@pytest.mark.parametrize("contender", [*CONTENDERS, "limit"])
def bench_one_by_one(benchmark: BenchmarkFixture, scale: Scale, contender: str) -> None:
    """One message at a time."""
    benchmark.extra_info.update(run(benchmark, contender, "one-by-one", 2, scale.samples))


@pytest.mark.parametrize("contender", CONTENDERS)
def bench_deaths(benchmark: BenchmarkFixture, scale: Scale, contender: str) -> None:
    """One process killed at a time."""
    benchmark.extra_info.update(run(benchmark, contender, "deaths", scale.deaths, scale.deaths))


@pytest.mark.parametrize("contender", CONTENDERS[:2])
@pytest.mark.parametrize("what", ["deaths", "signals"])
def bench_in_a_flood(benchmark: BenchmarkFixture, scale: Scale, what: str, contender: str) -> None:
    """One process killed, or one signal sent, at a time, while as many messages come as it takes."""
    processes = scale.deaths if what == "deaths" else 2
    benchmark.extra_info.update(run(benchmark, contender, f"{what}-in-a-flood", processes, scale.deaths))


def run(
    benchmark: BenchmarkFixture, contender: str, load: str, processes: int, amount: float
) -> dict[str, Any]:
    """Run the program, of which it is not the duration that counts; return what it has found out."""
    command = [sys.executable, str(PROGRAM), contender, load, str(processes), str(amount)]
    result: dict[str, Any] = benchmark.pedantic(output, (command, contender))
    return result


def output(command: list[str], contender: str) -> Any:
    """What a program prints, on the core of the contender."""
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
        # Whatever went wrong with it, all that it has started goes with it.
        with suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
        program.wait()
    assert program.returncode == 0, log
    return json.loads(output)
