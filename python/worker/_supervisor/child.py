"""A process whose end the loop waits for."""

from __future__ import annotations

import math
import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from worker._spawn import liveness, processes
from worker._supervisor.restart_policy import Death
from worker.constants import Phase, ProcessState
from worker.process import WorkerProcess

__all__ = ["Watched"]


@dataclass(eq=False)
class Watched:
    """One process, running or just gone; a place in the table may have several for a while.

    Attributes:
        place: The place in the table that it fills, or has filled.
        base: The process itself.
        started: When it was started; this and the other times on the monotonic clock.
        ready_by: Until when it has to be ready.
        limit: How long its start may take, seconds.
        serves: Whether it has said that it serves.
        ready: When it was seen to be ready; ``inf`` before.
        told: When it was told to leave, or first seen to leave; ``None`` before.
        lost: The signal that told it, as long as that may be lost; 0 if it is not.
        error: Why its start failed, as far as it is known.
    """

    place: WorkerProcess
    base: Any
    started: float
    ready_by: float
    limit: float = math.inf
    serves: bool = False
    ready: float = math.inf
    told: float | None = None
    lost: int = 0
    error: str = ""

    @property
    def current(self) -> bool:
        """Whether it is the one that fills its place in the table."""
        return self.base is self.place._current_process

    @property
    def leaving(self) -> bool:
        """Whether it is on its way out."""
        if self.current:
            return self.place.state is ProcessState.TERMINATED or self.place.life.phase is Phase.DRAINING
        return self.base is not self.place.predecessor

    def death(self, code: int | None, now: float, others: bool) -> Death:
        """Its end: with which exit code, when, and whether others are still in its place."""
        served = None if self.ready == math.inf else now - self.ready
        return Death(str(self), code, self.started, now - self.started, served, self.error, others)

    def signal(self, signum: int) -> None:
        """Send it a signal; where it is gone already, nothing happens."""
        with suppress(ProcessLookupError):
            os.kill(self.base.pid, signum)

    def kill(self) -> None:
        """End it at once, and its children with it if it leads a group of its own."""
        if liveness.leads_session(self.base):
            self.end_group()
        else:
            self.signal(signal.SIGKILL)

    def end_group(self) -> None:
        """End all that is left in the group that it leads, or has led."""
        if isinstance(self.base, processes.ManagedProcess) and self.base.pid is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.base.pid, signal.SIGKILL)

    def __str__(self) -> str:
        return f"{self.place.name} [{self.base.pid}]"
