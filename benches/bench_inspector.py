"""Measure the inspector (``inspected.py``): an answer, and its rest when no client is connected."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from bench_manager import output
from pytest_benchmark.fixture import BenchmarkFixture
from scale import CONTENDERS, Scale

PROGRAM = Path(__file__).with_name("inspected.py")


@pytest.mark.parametrize("contender", CONTENDERS)
def bench_inspector(benchmark: BenchmarkFixture, scale: Scale, contender: str) -> None:
    """Ask for the state of 8 workers."""
    command = [sys.executable, str(PROGRAM), contender, "8", str(scale.repeats * 10), str(scale.rest)]
    benchmark.extra_info.update(benchmark.pedantic(output, (command, contender)))
