"""Checks of every test: it leaves no process, file descriptor or thread of the test process behind."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing import forkserver, resource_tracker
from time import monotonic
from typing import Any

import hypothesis
import pytest
from support import modes

from worker._spawn.preload.preloads import preloads

pytest_plugins = ["support.application", "support.cores"]

# Longer than any end on a slow machine, seconds; reaching it is a failure.
GRACE = 15.0

# How long an example takes says nothing on a machine that does other work, too.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")

# A manager in the process of the tests has no preload process, unless a test gives it one.
os.environ["SANIC_WORKER_PRELOAD"] = "off"

# A run in the background, or under `nohup`, may have inherited ignored signals. Processes under test must
# have the usual handlers.
signal.signal(signal.SIGINT, signal.default_int_handler)
for _signum in (signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR1):
    signal.signal(_signum, signal.SIG_DFL)


def _children() -> set[int]:
    """Return the live children of this process, zombies included."""
    found: set[int] = set()
    for thread in _threads():
        with suppress(OSError), open(f"/proc/self/task/{thread}/children", encoding="ascii") as children:
            found.update(map(int, children.read().split()))
    return found


def _descriptors() -> set[tuple[int, str]]:
    """Return each open descriptor with its target, so that a number used again does not hide a leak."""
    found = set()
    for entry in os.listdir("/proc/self/fd"):
        try:
            found.add((int(entry), os.readlink(f"/proc/self/fd/{entry}")))
        except OSError:
            continue
    return found


def _threads() -> set[int]:
    """Return the kernel threads of this process: those of the native core count too."""
    return {int(entry) for entry in os.listdir("/proc/self/task")}


def _inventory() -> dict[str, set[Any]]:
    return {"process": _children(), "descriptor": _descriptors(), "thread": _threads()}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "integration" in item.path.parts:
            item.add_marker(pytest.mark.slow)
    modes.skip_others(items)
    modes.deselect_others(config, items)
    if os.environ.get("WORKER_CORE") == "pure":
        for item in items:
            if item.get_closest_marker("native"):
                item.add_marker(pytest.mark.skip(reason="the native core alone has it"))


@pytest.fixture(scope="session", autouse=True)
def _long_lived_helpers() -> None:
    # The resource tracker of multiprocessing starts with the first process and lives as long as the
    # interpreter.
    resource_tracker.ensure_running()


@pytest.fixture(autouse=True)
def _signals_as_before() -> Iterator[None]:
    """Restore the signal handlers: those of a test would take the signals of the next one."""
    before = {signum: signal.getsignal(signum) for signum in signal.valid_signals()}
    yield
    for signum, handler in before.items():
        if handler is not None and signal.getsignal(signum) != handler:
            signal.signal(signum, handler)


@pytest.fixture(autouse=True)
def _nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    if not os.path.isdir("/proc/self/fd"):
        yield
        return
    before = _inventory()
    yield
    preloads.reset()
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    pause = threading.Event()
    deadline = monotonic() + GRACE
    while left := {kind: new for kind, found in _inventory().items() if (new := found - before[kind])}:
        if monotonic() > deadline:
            pytest.fail(f"{request.node.nodeid} left behind: {left}")
        pause.wait(0.01)
