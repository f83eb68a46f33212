"""A process whose exit the supervisor waits for."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from worker._core.messages import Recycle
from worker._spawn import liveness
from worker._spawn.processes import ManagedProcess
from worker._supervisor.oom import OomKills
from worker._supervisor.restart_policy import Exit
from worker.constants import NAME_LIMIT, ProcessState, excerpt
from worker.process import WorkerProcess

__all__ = ["ChildProcess"]


@dataclass(eq=False)
class ChildProcess:
    """One process, running or just exited. A slot may have several for a while.

    Attributes:
        slot: The slot that it fills, or has filled.
        base: The process object.
        started_at: The time of its start; this and the other times on the monotonic clock.
        ready_by: The time by which it has to be ready.
        start_limit: How long its start may take, seconds.
        serves: Whether it has written that it serves.
        ready_at: When it was ready; ``inf`` before.
        stop_sent_at: When its stop signal was sent, or its stop first noticed; ``None`` before.
        resend: The stop signal that may be lost; 0 if there is none.
        error: Why its start failed, as far as it is known.
        grace: How long it may take to stop, seconds, if that is less than ``graceful_timeout``.
        oom_kills: Tells whether the kernel has killed it for want of memory; ``None`` if that is not known.
        was_killed: Whether the manager has killed it.
        recycle: The limit that it has reached; ``None`` before.
        recycle_asked_at: When it has said so; ``inf`` before.
        is_busy: Whether it has reported that it became busy, since the main process last looked.
        is_stuck: Whether it hangs so that a stop signal has no effect.
    """

    slot: WorkerProcess
    base: Any
    started_at: float
    ready_by: float
    start_limit: float = math.inf
    serves: bool = False
    ready_at: float = math.inf
    stop_sent_at: float | None = None
    resend: int = 0
    error: str = ""
    grace: float = math.inf
    oom_kills: OomKills | None = None
    was_killed: bool = False
    recycle: Recycle | None = None
    recycle_asked_at: float = math.inf
    is_busy: bool = False
    is_stuck: bool = False

    @property
    def is_current(self) -> bool:
        """Whether it is the current process of its slot."""
        return self.base is self.slot.current

    @property
    def is_ready(self) -> bool:
        """Whether it has been ready."""
        return self.ready_at < math.inf

    def is_stopping(self, slot_drains: bool) -> bool:
        """Return whether it was stopped by the manager.

        Args:
            slot_drains (bool): Whether the phase of its slot is DRAINING.
        """
        if self.is_current:
            return self.slot.state is ProcessState.TERMINATED or slot_drains
        return self.base is not self.slot.previous

    def exit(self, code: int | None, now: float, others_left: bool) -> Exit:
        """Return the description of its exit."""
        ready_for = now - self.ready_at if self.is_ready else None
        was_killed = code == -signal.SIGKILL and not self.was_killed
        oom = self.oom_kills is not None and self.oom_kills.explains(self.base.pid, was_killed=was_killed)
        return Exit(
            self.slot.name,
            self.base.pid,
            code,
            self.started_at,
            now - self.started_at,
            ready_for,
            self.error,
            others_left,
            oom=oom,
        )

    def note_stop(self, now: float) -> None:
        """Take note of the stop signal that was sent to it, once."""
        if self.stop_sent_at is None:
            sent = self.slot.stop_sent(self.base)
            self.stop_sent_at = now if sent is None else sent.at
            self.resend = sent.signum if sent is not None and sent.may_be_lost else 0

    def resend_stop(self, flags: Mapping[str, Any]) -> None:
        """Send a stop signal that may be lost once more, as soon as it cannot be lost.

        Args:
            flags (Mapping[str, Any]): Those of the process in the shared state.
        """
        if flags.get("stopping"):
            self.resend = 0
        elif flags.get("stoppable"):
            self.signal(self.resend)
            self.resend = 0

    def stop_limit(self, graceful_timeout: float) -> float:
        """Return how long it may take to stop, seconds."""
        return 0.0 if self.is_stuck else min(graceful_timeout, self.grace)

    def kill_at(self, grace: float) -> float:
        """Return when it has taken longer than ``grace`` seconds to stop; ``inf`` after it was killed."""
        assert self.stop_sent_at is not None
        return self.stop_sent_at + grace

    def escalate_stop(self) -> None:
        """Kill it, because it has taken too long to stop."""
        self.stop_sent_at = math.inf
        self.kill()

    def signal(self, signum: int) -> None:
        """Send it a signal, unless it has exited."""
        with suppress(ProcessLookupError):
            os.kill(self.base.pid, signum)

    def kill(self) -> None:
        """Kill it, and its children with it if it leads a group of its own."""
        self.was_killed = True
        if liveness.leads_session(self.base):
            self.kill_group()
        else:
            self.signal(signal.SIGKILL)

    def kill_group(self) -> None:
        """Kill the remaining processes of the group that it leads, or has led."""
        if isinstance(self.base, ManagedProcess) and self.base.pid is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.base.pid, signal.SIGKILL)

    def __str__(self) -> str:
        return f"{excerpt(self.slot.name, NAME_LIMIT)} [{self.base.pid}]"
