"""Tells the supervisor when to read the shared state, and which entries have changed."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, MutableMapping
from typing import Any

from worker._state.entry import observed
from worker._state.foreign import snapshot
from worker._state.shared import SharedState
from worker.process import WorkerProcess

__all__ = ["StateWatcher"]

# How often a mapping that cannot notify is read while a change is awaited, seconds.
POLL = 0.005
# The shortest time between two reads after a change, seconds: workers that count their requests in the state
# must not keep the main process busy.
REST = 0.005


class StateWatcher:
    """Reports changes in the shared state while some are awaited.

    A :class:`~worker._state.shared.SharedState` notifies, and lists the changed entries. Any other mapping
    has to be read.

    Args:
        state (MutableMapping[str, Any]): The state of all processes.
    """

    def __init__(self, state: MutableMapping[str, Any]) -> None:
        self._state = state if isinstance(state, SharedState) else None
        self._mapping = state
        self._entries: Mapping[str, Any] = {}
        self._last_change = -math.inf
        self._armed = False

    @property
    def notify_fd(self) -> int | None:
        """The descriptor that becomes readable at a change; ``None`` if the state has to be read."""
        return None if self._state is None else self._state.notify_fd

    def changed(self, now: float, everything: bool = False) -> Collection[str]:
        """Return the names of the entries that may have changed since the last call.

        Args:
            now (float): The time, on the monotonic clock.
            everything (bool): Whether a process has exited, perhaps between a change and its
                announcement. Defaults to ``False``.
        """
        if self._state is None:
            try:
                self._entries = snapshot(self._mapping)
            except (OSError, EOFError):
                self._entries = {}
            return self._entries.keys()
        names = self._state.changes(everything)
        if names:
            self._last_change = now
        return names

    def read(self, slot: WorkerProcess) -> Mapping[str, Any]:
        """Return the entry of a slot's current process as of the last :meth:`changed`, or later."""
        return slot.read_entry() if self._state is not None else observed(self._entries.get(slot.name, {}))

    def arm(self, now: float) -> float:
        """Await changes; return when to read the state, ``inf`` if a notification comes."""
        if self._state is None:
            return now + POLL
        if now < self._last_change + REST:
            self.disarm()
            return self._last_change + REST
        self._armed = True
        return now if self._state.arm() else math.inf

    def disarm(self) -> None:
        """Stop awaiting changes."""
        if self._armed and self._state is not None:
            self._state.disarm()
        self._armed = False

    def has_changes(self) -> bool:
        """Return whether an entry has changed since changes are awaited."""
        return self._armed and self._state is not None and self._state.arm()
