"""The environment under test, and small helpers around it."""

from __future__ import annotations

import importlib.util
import itertools
import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from signal import SIGSTOP
from time import monotonic
from typing import TypeVar

from support import modes
from support.processes import is_stopped

STOCK = os.environ.get("WORKER_UNDER_TEST") == "stock"
MODULE = "sanic" if STOCK else "worker"
HERE = Path(__file__).parent
# Longer than any step on a slow machine; reaching it is a failure.
TIMEOUT = 30.0

T = TypeVar("T")

_steps = itertools.count(random.randrange(2_000))


def wait_until(predicate: Callable[[], T], what: str, timeout: float = TIMEOUT) -> T:
    """Return the result of `predicate` as soon as it is true; AssertionError after `timeout` seconds."""
    pause = threading.Event()
    deadline = monotonic() + timeout
    while not (value := predicate()):
        if monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what}; last seen: {value!r}")
        pause.wait(0.02)
    return value


def free_port() -> int:
    """Return a free port below the range from which the kernel serves outgoing connections.

    Processes of pytest that run side by side choose from ranges of their own. No port is returned again soon:
    a test may ask for another one before it uses the first.
    """
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = 12_000 + 2_000 * (number % 9)
    return next(port for step in _steps if port_is_free(port := first + step % 2_000))


def port_is_free(port: int) -> bool:
    """Whether both a TCP and a UDP socket can be bound to `port`."""
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as probe:
            if kind == socket.SOCK_STREAM:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return False
    return True


def status(pid: int) -> list[str]:
    """Return the kernel's report of a process, from its state on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def suspend(pid: int) -> None:
    """Stop a process by SIGSTOP, and wait until it is stopped."""
    os.kill(pid, SIGSTOP)
    wait_until(lambda: is_stopped(pid), f"the stop of {pid}")


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a process under test: the tests' own, with its paths and nothing of Sanic."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("SANIC_")}
    paths = [str(HERE)]
    if not STOCK:
        spec = importlib.util.find_spec("worker")
        assert spec is not None and spec.origin is not None, "the package `worker` cannot be imported"
        paths.append(str(Path(spec.origin).parent.parent))
    env["PYTHONPATH"] = os.pathsep.join(paths)
    env["SANIC_NO_COLOR"] = "true"
    # An application enables Sanic Extensions itself, where they are installed.
    env["SANIC_AUTO_EXTEND"] = "false"
    env["PYTHONDONTWRITEBYTECODE"] = "1"
    # A line that is printed in two pieces would mix with others.
    env.pop("PYTHONUNBUFFERED", None)
    modes.choose(env)
    env.update(extra or {})
    return env


def run_python(
    *args: str, cwd: Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run this interpreter to its end, e.g. `run_python("-m", "sanic", "inspect", cwd=...)`."""
    command = [sys.executable, *args]
    return subprocess.run(
        command, cwd=cwd, env=environment(env), capture_output=True, text=True, timeout=50, check=False
    )
