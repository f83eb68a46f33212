"""Measure the metrics for one request of a monitoring system (``exposed.py``)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from bench_manager import output
from pytest_benchmark.fixture import BenchmarkFixture
from scale import CONTENDERS, Scale

PROGRAM = Path(__file__).with_name("exposed.py")


@pytest.mark.parametrize("contender", CONTENDERS[:1])
@pytest.mark.parametrize("kind", ["text", "openmetrics"])
@pytest.mark.parametrize("workers", [2, 64])
def bench_metrics(benchmark: BenchmarkFixture, scale: Scale, workers: int, kind: str, contender: str) -> None:
    """Make the metrics again and again; stock has none."""
    command = [sys.executable, str(PROGRAM), kind, str(workers), str(scale.repeats * 10)]
    benchmark.extra_info.update(benchmark.pedantic(output, (command, contender)))
