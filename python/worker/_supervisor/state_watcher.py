"""When the loop has to look at what the processes say of themselves, and at which of them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, MutableMapping
from typing import Any

from worker._state.entry import known
from worker._state.foreign import snapshot
from worker._state.shared import SharedState
from worker.place import Place

__all__ = ["News"]

# How often another mapping than ours is looked at while something is awaited of it, seconds.
POLL = 0.005
# How long changes wait to be heard of after the last ones: workers that count their requests in the state do
# not keep main busy, seconds.
REST = 0.005


class News:
    """What has changed in the state of the processes, as far as something is awaited of it.

    A :class:`~worker.state.SharedState` rings a bell and says which entries have changed. Any other mapping
    has to be looked at.

    Args:
        state (MutableMapping[str, Any]): The state of all processes.
    """

    def __init__(self, state: MutableMapping[str, Any]) -> None:
        self._state = state if isinstance(state, SharedState) else None
        self._mapping = state
        self._entries: Mapping[str, Any] = {}
        self._heard = -math.inf
        self._armed = False

    @property
    def bell(self) -> int | None:
        """What ends a wait when there is news, if it is not to be looked for."""
        return None if self._state is None else self._state.bell

    def take(self, now: float, everything: bool = False) -> Collection[str]:
        """Return whose entries may have changed since the last time.

        Args:
            now (float): The time, on the monotonic clock.
            everything (bool): Whether a process has died, perhaps between a change and its
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
            self._heard = now
        return names

    def said(self, process: Place) -> Mapping[str, Any]:
        """Return what a process had said of itself when the news was taken, or later."""
        return process.said() if self._state is not None else known(self._entries.get(process.name, {}))

    def expect(self, now: float) -> float:
        """Something is awaited: return when to look for it, ``inf`` where the bell will tell."""
        if self._state is None:
            return now + POLL
        if now < self._heard + REST:
            self.ignore()
            return self._heard + REST
        self._armed = True
        return now if self._state.arm() else math.inf

    def ignore(self) -> None:
        """Nothing is awaited."""
        if self._armed and self._state is not None:
            self._state.disarm()
        self._armed = False

    def has_come(self) -> bool:
        """Whether there is some since the bell was armed."""
        return self._armed and self._state is not None and self._state.arm()
