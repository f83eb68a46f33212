"""Real children for the tests: each does one thing, and is gone with the test."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any

# Longer than any step on a slow machine; reaching it is a failure.
LONG = 20.0


class Children:
    """Fork children that call a function and exit with its result as their status."""

    def __init__(self) -> None:
        self._pids: set[int] = set()

    def __enter__(self) -> Children:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pid in list(self._pids):
            os.kill(pid, signal.SIGKILL)
            self.reap(pid)

    def fork(self, function: Callable[..., int | None], *args: Any) -> int:
        """Call ``function`` in a child; return the child's pid."""
        pid = os.fork()
        if pid == 0:
            status = 99
            try:
                status = function(*args) or 0
            finally:
                os._exit(status)
        self._pids.add(pid)
        return pid

    def settle(self, *pids: int) -> None:
        """Wait until children have exited, and leave them to be collected."""
        for pid in pids:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

    def reap(self, pid: int) -> int:
        """Wait for a child; return its exit code as multiprocessing reports it."""
        self._pids.discard(pid)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die() -> None:
    """Be killed."""
    os.kill(os.getpid(), signal.SIGKILL)


def is_stopped(pid: int) -> bool:
    """Return whether all threads of a process are stopped: each stops by itself."""
    with suppress(OSError):
        stats = [(task / "stat").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
        return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)
    return False


def until(monitor: Any, count: int) -> list[Any]:
    """Wait for at least ``count`` events."""
    events: list[Any] = []
    deadline = monotonic() + LONG
    while len(events) < count:
        assert monotonic() < deadline, f"{count} events were expected, there are {events}"
        events += monitor.wait(deadline - monotonic())
    return events


def frame(payload: bytes) -> bytes:
    """Return a payload as it is sent."""
    return len(payload).to_bytes(4, "big") + payload
