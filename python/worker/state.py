"""The access of a process to its entry in the shared state."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, Mapping, MutableMapping, ValuesView
from typing import Any

from worker._state import identity, schema
from worker._state.foreign import adapted, snapshot
from worker._state.shared import SharedState

__all__ = ["SharedState", "WorkerState"]


class WorkerState(Mapping[str, Any]):
    """One process's own entry in the state of all, as a mapping.

    Any key can be read. The keys in :attr:`RESTRICTED`, and a few that Sanic does not have, belong to the
    manager. Any other key may be set, updated and deleted, and every process sees the change. Values must be
    picklable. A process that the worker has forked reads and writes the entry of the worker.

    Args:
        state (MutableMapping[str, Any]): The state of all processes, name to entry.
        current (str): The name of the process whose entry this is.

    Raises:
        KeyError: On use, while the process has no entry.
    """

    RESTRICTED = schema.RESTRICTED

    def __init__(self, state: MutableMapping[str, Any], current: str) -> None:
        self._name = current
        self._state = state

    def __getitem__(self, key: str) -> Any:
        return adapted(self._state).value(self._name, key, identity.worker_pid())

    def __setitem__(self, key: str, value: Any) -> None:
        self.update({key: value})

    def __delitem__(self, key: str) -> None:
        self._refuse_restricted((key,))
        try:
            adapted(self._state).discard_key(self._name, key, identity.worker_pid())
        except KeyError:
            # A missing key is as good as deleted; a missing entry is an error.
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

    __hash__ = None  # type: ignore[assignment]  # equality depends on the content, which changes

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of ``key``, or ``default`` if the entry has none."""
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
        adapted(self._state).update_entry(self._name, mapping, identity.worker_pid())

    def pop(self) -> None:
        """Refuse: use ``del`` for a key of your own.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError

    def full(self) -> dict[str, Any]:
        """Return the state of all processes, name to entry, in a new ``dict``."""
        return snapshot(self._state)

    @property
    def _entry(self) -> Mapping[str, Any]:
        return adapted(self._state).entry(self._name, identity.worker_pid())

    def _refuse_restricted(self, keys: Mapping[str, Any] | tuple[str, ...]) -> None:
        restricted = [key for key in keys if key in self.RESTRICTED or key in schema.REFUSED]
        if restricted:
            plural = "s" if len(restricted) > 1 else ""
            names = ", ".join(restricted)
            raise LookupError(f"Cannot set restricted key{plural} on WorkerState: {names}")
