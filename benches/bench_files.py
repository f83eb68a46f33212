"""Scan the files of a tree for changes, and find the files that modules come from."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from _limit import Files
from pytest_benchmark.fixture import BenchmarkFixture
from sanic.worker.reloader import Reloader
from scale import CONTENDERS, Scale, core
from trees import EACH, Trees

# Modules, and modules in one package.
MODULES = 1_500
PACKAGE = 10
# The native core takes one more thread for each of this many entries, and this many threads at most.
SHARED = 1_000
THREADS = 4

Look = Callable[[], object]


@pytest.mark.parametrize("contender", [*CONTENDERS, "limit"])
def bench_first_sweep(
    benchmark: BenchmarkFixture, scale: Scale, trees: Trees, files: int, contender: str
) -> None:
    """Scan a tree that is new to the scanner; the limit is ``find``."""
    root = trees.root(files, EACH)

    def setup() -> tuple[tuple[Look], dict[str, Any]]:
        return (_finding(root) if contender == "limit" else sweeping(contender, root),), {}

    benchmark.pedantic(_look, setup=setup, rounds=_repeats(scale, files), warmup_rounds=1)


@pytest.mark.parametrize("contender", [*CONTENDERS, "limit"])
def bench_later_sweep(
    benchmark: BenchmarkFixture, scale: Scale, trees: Trees, files: int, contender: str
) -> None:
    """Scan a known tree that has not changed; the limit is to look at each file, and no more."""
    if contender == "limit":
        look = _looking_at(trees.paths(files, EACH), _threads(files))
    else:
        look = sweeping(contender, trees.root(files, EACH))
    benchmark.pedantic(look, rounds=_repeats(scale, files), warmup_rounds=2)


@pytest.fixture
def modules(trees: Trees) -> Iterator[Collection[ModuleType]]:
    """Add this many modules with files to ``sys.modules``; yield all that are there."""
    made = {}
    for number, path in enumerate(trees.paths(MODULES, PACKAGE)):
        module = made[f"bench_module_{number}"] = ModuleType(f"bench_module_{number}")
        module.__file__ = str(path)
    sys.modules.update(made)
    yield sys.modules.values()
    for name in made:
        del sys.modules[name]


@pytest.mark.parametrize("contender", [*CONTENDERS, "limit"])
def bench_first_modules(
    benchmark: BenchmarkFixture,
    scale: Scale,
    modules: Collection[ModuleType],
    contender: str,
) -> None:
    """Find the files of modules for the first time; the limit is to look at each of them, and no more."""

    def setup() -> tuple[tuple[Look], dict[str, Any]]:
        return (_naming(contender, modules),), {}

    benchmark.pedantic(_look, setup=setup, rounds=scale.repeats, warmup_rounds=1)
    benchmark.extra_info["modules"] = len(modules)


@pytest.mark.parametrize("contender", CONTENDERS)
def bench_later_modules(
    benchmark: BenchmarkFixture,
    scale: Scale,
    modules: Collection[ModuleType],
    contender: str,
) -> None:
    """Find the files of modules again."""
    benchmark.pedantic(_naming(contender, modules), rounds=scale.repeats, warmup_rounds=2)
    benchmark.extra_info["modules"] = len(modules)


def sweeping(contender: str, root: Path) -> Look:
    """Return a function that scans below ``root``, where all files are new to it."""
    if contender != "stock":
        scan: Look = core(contender).Scanner([root]).scan
        return scan
    reloader: Any = Reloader(None, 1.0, {root}, None)  # type: ignore[arg-type]
    reloader.python_files = lambda: ()
    mtimes: dict[str, float] = {}

    def sweep() -> set[str]:
        return {str(path) for path in reloader.files() if reloader.check_file(path, mtimes)}

    return sweep


def _look(look: Look) -> None:
    look()


def _finding(root: Path) -> Look:
    command = ["find", str(root), "-printf", "%T@ %s %i\\n"]
    return lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _looking_at(paths: list[Path], threads: int) -> Look:
    files = Files([str(path) for path in paths])
    return lambda: files.stat(threads)


def _threads(files: int) -> int:
    entries = files + files // EACH
    return 1 + min(entries // SHARED, min(os.cpu_count() or 1, THREADS) - 1)


def _repeats(scale: Scale, files: int) -> int:
    """Return fewer rounds for a large tree."""
    return max(2, min(scale.repeats, scale.repeats * 1_000 // files))


def _naming(contender: str, modules: Collection[ModuleType]) -> Look:
    if contender == "limit":
        files = [module.__file__ for module in modules if getattr(module, "__file__", None)]
        return _looking_at([Path(file) for file in files if file], 1)
    if contender == "stock":
        reloader: Any = Reloader(None, 1.0, set(), None)  # type: ignore[arg-type]
        return lambda: list(reloader.python_files())
    scanner = core(contender).Scanner([])
    return lambda: scanner.module_files(list(modules))
