"""What the processes tell each other about themselves: one entry a process, by its name."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, Mapping, MutableMapping, Sequence, ValuesView
from typing import Any

from worker import identity
from worker.shared import SharedState
from worker.values import NUMBERS

__all__ = ["ForeignState", "SharedState", "WorkerState", "shared", "snapshot"]


class ForeignState:
    """Any other mapping, a plain ``dict`` or the proxy of a ``SyncManager``, seen as a :class:`SharedState`.

    What such a mapping hands out is a copy, so an entry is read and written anew as a whole: of two writers
    at the same moment one loses. That of :mod:`worker.state_process` merges in its own process instead. None
    tells who has written what, so nothing is kept apart.

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
        """Return the entry: whoever has written it, and with all its keys."""
        return self.entry(name)

    def hand_over(self, name: str, pid: int, changes: Mapping[str, Any]) -> None:
        """Set these keys, and the pid; what is there already is left alone: its process writes, too."""
        entry, changes = self._state[name], {**changes, "pid": pid}
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
        """Whether the mapping changes single keys by itself: that of :mod:`worker.state_process`."""
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


class WorkerState(Mapping[str, Any]):
    """One process's own entry in the state of all, as a mapping.

    Reading is free. The keys in :attr:`RESTRICTED` belong to the manager; any other may be set, updated and
    deleted, and what is set is seen by every process. Values must be picklable. A process that the worker has
    forked reads and writes as the worker.

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
        return shared(self._state).value(self._name, key, identity.worker_pid())

    def __setitem__(self, key: str, value: Any) -> None:
        self.update({key: value})

    def __delitem__(self, key: str) -> None:
        self._refuse_restricted((key,))
        try:
            shared(self._state).discard_key(self._name, key, identity.worker_pid())
        except KeyError:
            # Without the key it is as it was to be; without the entry it is not.
            if self._name not in self._state:
                raise

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
        try:
            return self[key]
        except KeyError:
            if self._name not in self._state:
                raise
            return default

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
        shared(self._state).update_entry(self._name, mapping, identity.worker_pid())

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
    def _entry(self) -> Mapping[str, Any]:
        return shared(self._state).entry(self._name, identity.worker_pid())

    def _refuse_restricted(self, keys: Mapping[str, Any] | tuple[str, ...]) -> None:
        restricted = [key for key in keys if key in self.RESTRICTED or key in NUMBERS]
        if restricted:
            plural = "s" if len(restricted) > 1 else ""
            names = ", ".join(restricted)
            raise LookupError(f"Cannot set restricted key{plural} on WorkerState: {names}")
