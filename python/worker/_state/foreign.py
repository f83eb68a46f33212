"""A state that is kept elsewhere, a plain ``dict`` or the proxy of a ``SyncManager``, used like our own."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from worker._state import schema
from worker._state.shared import SharedState

__all__ = ["ForeignState", "shared", "snapshot"]


class ForeignState:
    """Any other mapping, a plain ``dict`` or the proxy of a ``SyncManager``, seen as a :class:`SharedState`.

    What such a mapping hands out is a copy, so an entry is read and written anew as a whole: of two writers
    at the same moment one loses. That of :mod:`worker._spawn.state_process` merges in its own process
    instead. None tells who has written what, so nothing is kept apart.

    Args:
        state (MutableMapping[str, Any]): The mapping.
    """

    bell = None

    def __init__(self, state: MutableMapping[str, Any]) -> None:
        self._state = state

    def entry(self, name: str, pid: int = 0) -> Mapping[str, Any]:
        """Return an entry, as the mapping has it."""
        return self._state[name]  # type: ignore[no-any-return]

    def value(self, name: str, key: str, pid: int = 0) -> Any:
        """Return one value of an entry."""
        return self._state[name][key]

    def has_entry(self, name: str) -> bool:
        """Return whether there is an entry."""
        return name in self._state

    def update_entry(self, name: str, changes: Mapping[str, Any], pid: int = 0) -> None:
        """Set some keys of an entry."""
        if self.merges:
            self._state.merge(name, changes)  # type: ignore[attr-defined]
        else:
            self._state[name] = {**self._state[name], **changes}

    def discard_key(self, name: str, key: str, pid: int = 0) -> None:
        """Remove a key of an entry, if it has it."""
        if self.merges:
            self._state.discard(name, key)  # type: ignore[attr-defined]
        else:
            self._state[name] = {one: value for one, value in self._state[name].items() if one != key}

    def some(self, name: str, keys: Sequence[str], pid: int = 0) -> Mapping[str, Any]:
        """Return the whole entry, with all its keys, for any ``pid``."""
        return self.entry(name)

    def hand_over(self, name: str, pid: int, changes: Mapping[str, Any]) -> None:
        """Set these keys, and the pid; what is there already is left alone: its process writes, too."""
        entry, changes = self._state[name], {**changes, schema.OWNER: pid}
        if not changes.items() <= entry.items():
            self.update_entry(name, changes)

    def drop_part(self, name: str, pid: int) -> None:
        """Nothing is kept apart."""

    def numbers(self, pid: int) -> Mapping[str, Any]:
        """Nothing is noted of a process."""
        return {}

    def bury(self, pid: int) -> None:
        """Nothing is kept for a process."""

    @property
    def merges(self) -> bool:
        """Whether the mapping changes single keys by itself: that of :mod:`worker._spawn.state_process`."""
        return hasattr(type(self._state), "merge")


def shared(state: MutableMapping[str, Any]) -> SharedState | ForeignState:
    """The state with all that a :class:`SharedState` can do, as far as it can."""
    return state if isinstance(state, SharedState) else ForeignState(state)


def snapshot(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return all entries of ``state`` as they are at one moment, in a ``dict`` of the caller's own.

    Where the mapping offers ``copy()`` that is one call; a proxy would otherwise be asked once an entry,
    and raise ``KeyError`` for one that is removed in between.
    """
    copy = getattr(state, "copy", None)
    return dict(state if copy is None else copy())
