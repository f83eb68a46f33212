"""Fixtures of tests that run on both cores; ``WORKER_CORE=native`` or ``pure`` restricts it to one.

One that is marked ``native`` is about what the native core alone has.
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
    """One core; that the native one is missing is a failure, unless the pure one alone is asked for."""
    return import_module(MODULES[request.param])


@pytest.fixture(scope="package", autouse=True)
def _collections_are_quick() -> Iterator[None]:
    """What the tests themselves are made of is passed over: each of many collections would take 60 ms."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def children() -> Iterator[Children]:
    """Forks children, and ends those that are left."""
    with Children() as made:
        yield made


@pytest.fixture
def ends() -> Iterator[tuple[Connection, Connection]]:
    """The pipe of the manager: where is written, where is read."""
    publisher, subscriber = Pipe(True)
    with publisher, subscriber:
        yield publisher, subscriber


@pytest.fixture
def publisher(ends: tuple[Connection, Connection]) -> Connection:
    """Where is written."""
    return ends[0]


@pytest.fixture
def monitor(core: ModuleType, ends: tuple[Connection, Connection]) -> Iterator[Any]:
    """A monitor of the manager's pipe."""
    made = core.Monitor(ends[1].fileno())
    yield made
    made.close()


@pytest.fixture
def memory(core: ModuleType) -> Iterator[Memory]:
    """A file for tables. They are gone with the test that makes them, as they have no other end."""
    with Memory(core) as made:
        yield made


@pytest.fixture
def gate() -> Iterator[tuple[int, int]]:
    """What a child waits at: the descriptor that it reads from, and the one that lets it through."""
    reading, writing = os.pipe()
    yield reading, writing
    os.close(reading)
    os.close(writing)
