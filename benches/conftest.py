"""Run the benches round by round, each round with every contender, at one of two scales."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from scale import FULL, QUICK, Scale
from starts import versions
from trees import Trees

SCALE = pytest.StashKey[Scale]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Offer ``--quick``."""
    parser.addoption("--quick", action="store_true", help="fewer rounds, smaller sizes")


def pytest_configure(config: pytest.Config) -> None:
    """Choose the scale, and let servers obey SIGHUP, which `nohup` has them ignore."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    config.stash[SCALE] = QUICK if config.getoption("quick") else FULL


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Record the versions of the other servers that are measured."""
    machine_info["peers"] = versions()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize every bench by the round, and those with trees of files by the size."""
    scale = metafunc.config.stash[SCALE]
    metafunc.fixturenames.append("turn")
    metafunc.parametrize("turn", range(scale.rounds))
    if "files" in metafunc.fixturenames:
        metafunc.parametrize("files", scale.trees)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Go round by round, so that disturbances of the machine affect all contenders alike."""
    items.sort(key=lambda item: item.callspec.params["turn"])  # type: ignore[attr-defined]


@pytest.fixture
def scale(request: pytest.FixtureRequest) -> Scale:
    """Return the scale of this run."""
    return request.config.stash[SCALE]


@pytest.fixture(scope="session")
def trees() -> Iterator[Trees]:
    """Return the trees of files of this run."""
    with TemporaryDirectory(prefix="benches-") as folder:
        yield Trees(Path(folder))
