"""Logs the stacks of servers that are about to be killed, because their start or their stop does not end."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from sanic.log import error_logger

from worker.constants import ProcessState

if TYPE_CHECKING:
    from worker._state.shared import SharedState
    from worker._supervisor.child import ChildProcess
    from worker._supervisor.supervisor import Supervisor
    from worker._system.stacks import Collection
    from worker.settings import Settings

__all__ = ["OverdueServers"]

# How long before its kill a server is looked at, and how often its answer is looked for, seconds.
LEAD, POLL = 2.0, 0.05


class OverdueServers:
    """Looks at the servers whose time for the start, or for the stop, is nearly over.

    Args:
        supervisor (Supervisor): Knows the processes.
        state (SharedState): Has the beats, and the answers of the servers.
        settings (Settings): The limits.
    """

    def __init__(self, supervisor: Supervisor, state: SharedState, settings: Settings) -> None:
        self._supervisor = supervisor
        self._state = state
        self._settings = settings
        # For each server that was looked at, whether it stops, and the collection; none if it makes progress,
        # or is done. A reference to a process that has exited would keep its descriptors open.
        self._looked_at: WeakKeyDictionary[ChildProcess, tuple[bool, Collection | None]] = WeakKeyDictionary()
        self._poll_at = math.inf

    @property
    def due_at(self) -> float:
        """When the next server is to be looked at."""
        children = (child for child in self._supervisor.children if not self._was_looked_at(child))
        return min([self._poll_at, *map(self._look_at, children)])

    def perform(self, now: float) -> None:
        """Ask the servers whose time is nearly over, and log the stacks that have come."""
        self._poll_at = now + POLL
        is_done = True
        for child in self._supervisor.children:
            if not self._was_looked_at(child):
                if now < self._look_at(child):
                    continue
                self._looked_at[child] = _stops(child), self._ask(child, now)
            stops, collection = self._looked_at[child]
            if collection is None:
                continue
            if stacks := collection.step():
                self._looked_at[child] = stops, None
                what = "stop" if stops else "start"
                error_logger.error("%s does not %s. Its stacks:\n%s", child, what, stacks.text.rstrip())
            else:
                is_done = False
        if is_done:
            self._poll_at = math.inf

    def _was_looked_at(self, child: ChildProcess) -> bool:
        """Return whether a server was looked at in its start, or in its stop, of which one is under way."""
        looked_at = self._looked_at.get(child)
        return looked_at is not None and looked_at[0] is _stops(child)

    def _look_at(self, child: ChildProcess) -> float:
        if not child.slot.is_server:
            return math.inf
        if child.stop_sent_at is not None:
            limit = child.stop_limit(self._settings.graceful_timeout)
            kill_at = child.kill_at(limit)
        else:
            # One that has acknowledged its start is not killed for it.
            starts = not child.is_ready and child.is_current and child.slot.state is not ProcessState.ACKED
            limit, kill_at = child.start_limit, child.ready_by if starts else math.inf
        # A shorter time to stop is that of a server whose stacks are in the log already.
        return kill_at - LEAD if limit >= 2 * LEAD else math.inf

    def _ask(self, child: ChildProcess, now: float) -> Collection | None:
        """Ask a server for its stacks, unless it stops and its event loop makes progress."""
        # Imported on use: most servers start and stop.
        from worker._child.heartbeat import longest_pause
        from worker._system.stacks import Collection

        beat = self._state.last_beat(child.base.pid)
        is_alive = beat is not None and now - beat <= longest_pause(self._settings.hang_timeout)
        if is_alive and child.stop_sent_at is not None:
            return None
        return Collection(self._state, child.slot.name, child.base.pid)


def _stops(child: ChildProcess) -> bool:
    return child.stop_sent_at is not None
