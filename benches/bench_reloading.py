"""Measure a reloader at work (``reloading.py``), and a server whose code is edited (``saved.py``)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from bench_manager import output
from pytest_benchmark.fixture import BenchmarkFixture
from scale import CONTENDERS, Scale
from trees import EACH, Trees

HERE = Path(__file__).parent
# The number of files scanned where there are no events.
SCANNED = 10_000


@pytest.fixture(autouse=True)
def _rounds(scale: Scale, turn: int) -> None:
    if turn >= scale.reloads:
        pytest.skip("enough of it")


@pytest.mark.parametrize("contender", [*CONTENDERS, "limit"])
def bench_edits(benchmark: BenchmarkFixture, scale: Scale, trees: Trees, files: int, contender: str) -> None:
    """Edit one file of a tree again and again; the limit is ``watchfiles`` alone."""
    benchmark.extra_info.update(run(benchmark, scale, trees.root(files, EACH), contender))


@pytest.mark.parametrize("contender", CONTENDERS)
def bench_scanning(
    benchmark: BenchmarkFixture, scale: Scale, trees: Trees, contender: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Do the same where there are no events."""
    monkeypatch.setenv("WATCHFILES_FORCE_POLLING", "1")
    benchmark.extra_info.update(run(benchmark, scale, trees.root(SCANNED, EACH), contender))


@pytest.mark.parametrize("contender", CONTENDERS)
def bench_saved(benchmark: BenchmarkFixture, scale: Scale, contender: str) -> None:
    """Edit the code of a server again and again."""
    command = [sys.executable, str(HERE / "saved.py"), contender, str(scale.edits)]
    benchmark.extra_info.update(benchmark.pedantic(output, (command, contender)))


def run(benchmark: BenchmarkFixture, scale: Scale, root: Path, contender: str) -> dict[str, object]:
    """Run the program; return its findings."""
    amounts = [str(scale.edits), str(scale.rest)]
    command = [sys.executable, str(HERE / "reloading.py"), contender, str(root), *amounts]
    result: dict[str, object] = benchmark.pedantic(output, (command, contender))
    return result
