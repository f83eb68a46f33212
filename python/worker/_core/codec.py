"""Converts the values of the shared table to bytes and back, and represents values that cannot be read."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, KeysView, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

__all__ = ["PROTOCOL", "PartialEntry", "UnreadableError", "decode", "encode", "utc_time"]

# Every supported Python has it, and all processes of a server run the same one.
PROTOCOL = 5
# The first byte of a time. No pickle begins with it.
TIME = b"t"
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


class UnreadableError(ValueError):
    """A value that this process cannot unpickle, for example because it cannot import the class.

    Attributes:
        name: The entry.
        key: The key of the value.
    """

    def __init__(self, name: str, key: Any, why: BaseException) -> None:
        super().__init__(name, key, why)
        self.name = name
        self.key = key
        self.why = why

    def __str__(self) -> str:
        why = f"{type(self.why).__name__}: {self.why}"
        return f"the value of {self.key!r} in the entry {self.name!r} cannot be read here ({why})"


class PartialEntry(dict[Any, Any]):
    """An entry with values that cannot be read: a read of one of them raises :exc:`UnreadableError`.

    Copying the entry into another mapping raises it, too: the next write of that copy would lose these
    values. ``items()`` and ``values()`` show only readable values.

    Attributes:
        unreadable: The errors, by key.
    """

    def __init__(self, entry: Mapping[Any, Any], unreadable: Mapping[Any, UnreadableError]) -> None:
        super().__init__(entry)
        self.unreadable = dict(unreadable)

    # A copy of a dict subclass bypasses its methods, unless it overrides `__iter__`. Then the copy is made
    # with `keys`, one key after the other.
    def __iter__(self) -> Iterator[Any]:
        yield from super().__iter__()
        yield from self.unreadable

    def __len__(self) -> int:
        return super().__len__() + len(self.unreadable)

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or key in self.unreadable

    def keys(self) -> KeysView[Any]:  # type: ignore[override]
        """Return all keys, also those of values that cannot be read."""
        return KeysView(self)

    def __missing__(self, key: Any) -> Any:
        raise self.unreadable.get(key) or KeyError(key)

    def get(self, key: Any, default: Any = None) -> Any:
        """Return the value of ``key``, or ``default`` if the entry has none.

        Raises:
            UnreadableError: The value cannot be read here.
        """
        if key in self.unreadable:
            raise self.unreadable[key]
        return super().get(key, default)


def encode(value: Any) -> bytes:
    """Return a value, or a key, as bytes.

    Raises:
        Exception: It cannot be pickled; any error of :mod:`pickle`.
    """
    # Pickling a time in UTC takes 7 µs, mostly to look up the name of the time zone's class.
    if type(value) is datetime and value.tzinfo is timezone.utc and not value.fold:
        return TIME + value.isoformat().encode()
    return pickle.dumps(value, PROTOCOL)


def decode(kept: bytes) -> Any:
    """Return the value that was kept as bytes.

    Raises:
        Exception: It cannot be unpickled; any error of the class, or of its import.
    """
    if kept.startswith(TIME):
        return datetime.fromisoformat(kept[len(TIME) :].decode())
    return pickle.loads(kept)


def utc_time(nanoseconds: int) -> datetime:
    """Return the time that many nanoseconds after 1970, in UTC."""
    return EPOCH + timedelta(microseconds=nanoseconds // 1000)
