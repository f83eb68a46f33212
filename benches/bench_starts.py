"""Measure the starts of servers (``starts.py``), beside other servers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from scale import Scale
from starts import ROWS, Bench, is_installed


@pytest.fixture(scope="session")
def bench() -> Iterator[Bench]:
    """Return a bench whose contenders have cached code."""
    with TemporaryDirectory(prefix="starts-") as folder:
        bench = Bench(Path(folder))
        bench.warm_up()
        yield bench


@pytest.mark.parametrize(("row", "contender"), [(row, one) for row in ROWS for one in ROWS[row].contenders])
def bench_starts(
    benchmark: BenchmarkFixture, scale: Scale, bench: Bench, row: str, contender: str, turn: int
) -> None:
    """Measure one row with one contender."""
    if turn >= scale.reloads:
        pytest.skip("enough of it")
    if not is_installed(contender):
        pytest.skip(f"{contender} is not installed")
    figures = benchmark.pedantic(ROWS[row].measure, (bench, contender))
    benchmark.extra_info["figures"] = figures
