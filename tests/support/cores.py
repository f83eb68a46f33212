"""Fixtures of tests that run on both cores; ``WORKER_CORE=native`` or ``pure`` restricts them to one.

Tests of features that only the native core has are marked ``native``.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from importlib import import_module
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any

import pytest

from .processes import Children
from .tables import Memory

_WANTED = os.environ.get("WORKER_CORE", "auto")
MODULES = {"native": "worker._native", "pure": "worker._core.pure"}
CORES = ("native", "pure") if _WANTED == "auto" else (_WANTED,)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marks = metafunc.definition.iter_markers("parametrize")
    if "core" in metafunc.fixturenames and not any("core" in mark.args[0] for mark in marks):
        is_native = metafunc.definition.get_closest_marker("native") is not None
        metafunc.parametrize("core", ["native"] if is_native else CORES, indirect=True)


@pytest.fixture
def core(request: pytest.FixtureRequest) -> ModuleType:
    """One core. A missing native core is a failure, unless only the pure one is requested."""
    return import_module(MODULES[request.param])


@pytest.fixture(autouse=True)
def _collections_are_quick() -> None:
    """Freeze all older objects: each of many collections would take 100 ms.

    The garbage among them is collected when a loop that has ended unfreezes them.
    """
    gc.freeze()


@pytest.fixture
def children() -> Iterator[Children]:
    """Fork children, and end those that are left."""
    with Children() as made:
        yield made


@pytest.fixture
def ends() -> Iterator[tuple[Connection, Connection]]:
    """The manager's control channel: the writing end and the reading end."""
    publisher, subscriber = Pipe(True)
    with publisher, subscriber:
        yield publisher, subscriber


@pytest.fixture
def publisher(ends: tuple[Connection, Connection]) -> Connection:
    """The writing end."""
    return ends[0]


@pytest.fixture
def monitor(core: ModuleType, ends: tuple[Connection, Connection]) -> Iterator[Any]:
    """A monitor of the manager's control channel."""
    made = core.Monitor(ends[1].fileno())
    yield made
    made.close()


@pytest.fixture
def memory(core: ModuleType) -> Iterator[Memory]:
    """A file for tables. They end with the test that makes them, as they have no close."""
    with Memory(core) as made:
        yield made


@pytest.fixture
def gate() -> Iterator[tuple[int, int]]:
    """A gate for a child: the descriptor that it reads from, and the one that opens it."""
    reading, writing = os.pipe()
    yield reading, writing
    os.close(reading)
    os.close(writing)
