"""What the processes tell each other about themselves: one entry a process, by its name."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, Mapping, MutableMapping, ValuesView
from typing import Any

__all__ = ["WorkerState", "snapshot", "update_entry"]


def update_entry(state: MutableMapping[str, Any], name: str, changes: Mapping[str, Any]) -> None:
    """Merge ``changes`` into the entry ``name`` of ``state``. Every write of an entry comes through here.

    A mapping that can merge by itself (it has a method ``update_entry(name, changes)``) is asked to, so that
    no other writer comes between. Of any other, a plain ``dict`` or the proxy of a ``SyncManager``, the entry
    is read and written anew as a whole: what such a mapping hands out is a copy.

    Args:
        state (MutableMapping[str, Any]): The state of all processes, name to entry.
        name (str): The process whose entry it is.
        changes (Mapping[str, Any]): The keys to set; all others stay as they are.

    Raises:
        KeyError: There is no such entry.
    """
    merge = getattr(state, "update_entry", None)
    if merge is not None:
        merge(name, changes)
    else:
        state[name] = {**state[name], **changes}


def snapshot(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return all entries of ``state`` as they are at one moment, in a ``dict`` of the caller's own.

    Where the mapping offers ``copy()`` that is one call; a proxy would otherwise be asked once an entry,
    and raise ``KeyError`` for one that is removed in between.
    """
    copy = getattr(state, "copy", None)
    return dict(state if copy is None else copy())


class WorkerState(Mapping[str, Any]):
    """One process's own entry in the state of all, as a mapping.

    Reading is free. The keys in :attr:`RESTRICTED` belong to the manager; any other may be set, updated and
    deleted, and what is set is seen by every process. Values must be picklable.

    Args:
        state (MutableMapping[str, Any]): The state of all processes, name to entry.
        current (str): The name of the process whose entry this is.

    Raises:
        KeyError: On use, while the process has no entry.
    """

    RESTRICTED = (
        "health",
        "pid",
        "requests",
        "restart_at",
        "server",
        "start_at",
        "starts",
        "state",
    )

    def __init__(self, state: MutableMapping[str, Any], current: str) -> None:
        self._name = current
        self._state = state

    def __getitem__(self, key: str) -> Any:
        return self._entry[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.update({key: value})

    def __delitem__(self, key: str) -> None:
        self._refuse_restricted((key,))
        self._state[self._name] = {k: v for k, v in self._entry.items() if k != key}

    def __iter__(self) -> Iterator[str]:
        return iter(self._entry)

    def __len__(self) -> int:
        return len(self._entry)

    def __repr__(self) -> str:
        return repr(self._entry)

    def __eq__(self, other: object) -> bool:
        return self._entry == other

    __hash__ = None  # type: ignore[assignment]  # it compares by what it holds, and that changes

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of ``key``, or ``default`` where the entry has none."""
        return self._entry.get(key, default)

    def keys(self) -> KeysView[str]:
        """Return the keys of the entry, as they are now."""
        return self._entry.keys()

    def values(self) -> ValuesView[Any]:
        """Return the values of the entry, as they are now."""
        return self._entry.values()

    def items(self) -> ItemsView[str, Any]:
        """Return the pairs of the entry, as they are now."""
        return self._entry.items()

    def update(self, mapping: Mapping[str, Any]) -> None:
        """Set all keys of ``mapping`` in one write.

        Raises:
            LookupError: One of them is restricted; then none is set.
        """
        self._refuse_restricted(mapping)
        update_entry(self._state, self._name, mapping)

    def pop(self) -> None:
        """Refuse: an entry is not taken apart. Use ``del`` for a key of one's own.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError

    def full(self) -> dict[str, Any]:
        """Return the state of all processes, name to entry, in a ``dict`` of the caller's own."""
        return snapshot(self._state)

    @property
    def _entry(self) -> dict[str, Any]:
        entry: dict[str, Any] = self._state[self._name]
        return entry

    def _refuse_restricted(self, keys: Mapping[str, Any] | tuple[str, ...]) -> None:
        restricted = [key for key in keys if key in self.RESTRICTED]
        if restricted:
            plural = "s" if len(restricted) > 1 else ""
            names = ", ".join(restricted)
            raise LookupError(f"Cannot set restricted key{plural} on WorkerState: {names}")
