"""A process whose end the loop waits for."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from worker import launch
from worker.constants import ProcessState
from worker.process import WorkerProcess

__all__ = ["Watched", "how_it_ended"]

SIGKILL = getattr(signal, "SIGKILL", signal.SIGTERM)


@dataclass(eq=False)
class Watched:
    """One process, running or just gone; a place in the table may have several for a while.

    Attributes:
        process: The place in the table that it fills, or has filled.
        base: The process itself.
        ready_by: Until when its ack is waited for, on the monotonic clock.
        told: When it was first seen to have been told to leave; ``None`` before.
        again: When it is to be told once more.
    """

    process: WorkerProcess
    base: Any
    ready_by: float
    told: float | None = None
    again: float = 0.0

    @property
    def current(self) -> bool:
        """Whether it is the one that fills its place in the table."""
        return self.base is self.process._current_process

    @property
    def leaving(self) -> bool:
        """Whether it is on its way out."""
        if self.current:
            return self.process.state is ProcessState.TERMINATED
        return self.base is not self.process.predecessor

    @property
    def hears_repeats(self) -> bool:
        """Whether it may be told to leave more than once."""
        return getattr(self.base, "stops_once", False) is True

    def signal(self, signum: int) -> None:
        """Send it a signal; where it is gone already, nothing happens."""
        with suppress(ProcessLookupError):
            os.kill(self.base.pid, signum)

    def kill(self) -> None:
        """End it at once, and its children with it if it leads a group of its own."""
        if not launch.has_begun(self.base):
            self.signal(SIGKILL)
            return
        with suppress(ProcessLookupError):
            os.killpg(self.base.pid, SIGKILL)

    def __str__(self) -> str:
        return f"{self.process.name} [{self.base.pid}]"


def how_it_ended(code: int | None) -> str:
    """An exit code (as ``Process.exitcode`` has it) in words that follow a name."""
    if code is None:
        return "ended with an unknown exit code"
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
