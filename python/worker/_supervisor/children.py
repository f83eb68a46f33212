"""The processes whose exits the supervisor waits for."""

from __future__ import annotations

import time
from collections.abc import Iterator

from worker._supervisor.child import ChildProcess
from worker._supervisor.model import ServerPhase
from worker._supervisor.oom import OomKills
from worker.constants import ProcessState
from worker.process import WorkerProcess

__all__ = ["Children"]

# How long to wait for the exit of killed processes, seconds: only a hung kernel takes longer.
KILL_TIMEOUT = 5.0


class Children:
    """The processes that run, or have not been collected, each by the key of its watch.

    Attributes:
        was_overdue: Whether a process was killed because it took too long for the stop of the server.
    """

    def __init__(self) -> None:
        self.was_overdue = False
        self._by_key: dict[str, ChildProcess] = {}
        self._oom_kills = OomKills()

    def __iter__(self) -> Iterator[ChildProcess]:
        return iter([*self._by_key.values()])

    def __bool__(self) -> bool:
        return bool(self._by_key)

    def __getitem__(self, key: str) -> ChildProcess:
        return self._by_key[key]

    def add(self, child: ChildProcess) -> str:
        """Add a process; return its key."""
        key = str(child)
        self._by_key[key] = child
        child.oom_kills = self._oom_kills
        self._oom_kills.note_start(child.base.pid)
        return key

    def remove(self, key: str) -> None:
        """Remove a process that was collected."""
        del self._by_key[key]

    def by_pid(self, pid: int | None) -> ChildProcess | None:
        """Return the process of this pid; ``None`` if there is none."""
        return next((child for child in self if child.base.pid == pid), None)

    def of(self, slot: WorkerProcess) -> list[ChildProcess]:
        """Return the processes of a slot."""
        return [child for child in self if child.slot is slot]

    @property
    def may_resend(self) -> bool:
        """Whether a stop signal may be lost, and is to be sent again."""
        return any(child.resend for child in self)

    def escalate_stop(self, child: ChildProcess, phase: ServerPhase) -> None:
        """Kill a process that has taken too long to stop."""
        # An inspector and its like have nothing of the application's to lose.
        self.was_overdue = self.was_overdue or (phase.is_over and not child.slot.absence)
        child.escalate_stop()

    def kill(self) -> None:
        """Kill every process with its children, also those whose slots have left the table."""
        for child in self:
            child.kill()

    def close(self) -> None:
        """Wait for the exit of killed processes, and forget them. Every state is final then."""
        deadline = time.monotonic() + KILL_TIMEOUT
        for child in self:
            child.base.join(max(0.0, deadline - time.monotonic()))
            if child.is_current and child.slot.state < ProcessState.TERMINATED:
                child.slot.set_state(ProcessState.FAILED, force=True)
        self._by_key.clear()
