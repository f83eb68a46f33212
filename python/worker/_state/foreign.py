"""Gives other mappings, a plain ``dict`` or the proxy of a ``SyncManager``, the interface of our state."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from worker._state import schema
from worker._state.shared import SharedState

__all__ = ["ForeignState", "adapted", "snapshot"]


class ForeignState:
    """Any other mapping, with the interface of a :class:`SharedState`.

    Such a mapping returns copies, so an entry is read and written as a whole: of two concurrent writes, one
    is lost. The mapping of :mod:`worker._spawn.state_process` merges them in its own process instead. No
    mapping knows which process writes, so nothing is staged.

    Args:
        state (MutableMapping[str, Any]): The mapping.
    """

    notify_fd = None

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
        """Remove a key of an entry, if it exists."""
        if self.merges:
            self._state.discard(name, key)  # type: ignore[attr-defined]
        else:
            self._state[name] = {one: value for one, value in self._state[name].items() if one != key}

    def read_keys(self, name: str, keys: Sequence[str], pid: int = 0) -> Mapping[str, Any]:
        """Return the whole entry, with all its keys, for any ``pid``."""
        return self.entry(name)

    def hand_over(self, name: str, pid: int, changes: Mapping[str, Any]) -> None:
        """Set these keys, and the pid; nothing if they are set already: the worker may write meanwhile."""
        entry, changes = self._state[name], {**changes, schema.OWNER: pid}
        if not changes.items() <= entry.items():
            self.update_entry(name, changes)

    def drop_staged(self, name: str, pid: int) -> None:
        """Do nothing: no entry is staged."""

    def numbers(self, pid: int) -> Mapping[str, Any]:
        """Return no values: processes write no numbers here."""
        return {}

    def beat(self, requests: int = 0, **numbers: float | None) -> None:
        """Do nothing: the mapping keeps no numbers."""

    def last_beat(self, pid: int) -> float | None:
        """Return ``None``: processes write no beats here."""
        return None

    def write_cell(self, sheet: str, index: int, data: bytes) -> None:
        """Write a cell of a sheet, if the mapping has sheets: that of :mod:`worker._spawn.state_process`."""
        if self.merges:
            self._state.write_cell(sheet, index, data)  # type: ignore[attr-defined]

    def cells(self, sheet: str) -> list[bytes | None]:
        """Return the content of all cells of a sheet; nothing if the mapping has no sheets."""
        return self._state.cells(sheet) if self.merges else []  # type: ignore[attr-defined]

    def usage(self) -> tuple[int, int]:
        """Return 0 and 0: the memory of the mapping is not measured."""
        return 0, 0

    def reclaim(self, pid: int) -> None:
        """Do nothing: a process has no space of its own."""

    @property
    def merges(self) -> bool:
        """Whether the mapping changes single keys by itself: that of :mod:`worker._spawn.state_process`."""
        return hasattr(type(self._state), "merge")


def adapted(state: MutableMapping[str, Any]) -> SharedState | ForeignState:
    """Return a state with the interface of a :class:`SharedState`."""
    return state if isinstance(state, SharedState) else ForeignState(state)


def snapshot(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return all entries of ``state`` in a new ``dict``.

    ``copy()``, where the mapping has it, is one call. Otherwise a proxy takes one call an entry, and raises
    ``KeyError`` for an entry that is removed in between.
    """
    copy = getattr(state, "copy", None)
    return dict(state if copy is None else copy())
