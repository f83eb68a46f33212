"""How the values of the shared table are kept as bytes, and what becomes of those that cannot be read."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, KeysView, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

__all__ = ["PROTOCOL", "PartialEntry", "UnreadableError", "decode", "encode", "utc_time"]

# Every supported Python has it, and all processes of a server run the same one.
PROTOCOL = 5
# What a time begins with; no pickle begins so.
TIME = b"t"
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


class UnreadableError(ValueError):
    """A value that this process cannot make of its pickle, because it cannot import the class, for one.

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
    """An entry with values that cannot be read: to ask for one of these raises :exc:`UnreadableError`.

    So does to copy it into another mapping, as whoever means to write the entry anew does: what could not be
    read would be lost. ``items()`` and ``values()`` show what can be read.

    Attributes:
        unreadable: The errors, by key.
    """

    def __init__(self, entry: Mapping[Any, Any], unreadable: Mapping[Any, UnreadableError]) -> None:
        super().__init__(entry)
        self.unreadable = dict(unreadable)

    # As `dict` itself is not asked for these when it is copied, it is copied by `keys` and one by one.
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
        """Return the value of ``key``, or ``default`` where the entry has none.

        Raises:
            UnreadableError: It has one that cannot be read here.
        """
        if key in self.unreadable:
            raise self.unreadable[key]
        return super().get(key, default)


def encode(value: Any) -> bytes:
    """A value, or a key, as bytes.

    Raises:
        Exception: It cannot be pickled; whatever :mod:`pickle` raises.
    """
    # As a pickle, a time in UTC takes 7 µs, most of them to look up the name of the time zone's class.
    if type(value) is datetime and value.tzinfo is timezone.utc and not value.fold:
        return TIME + value.isoformat().encode()
    return pickle.dumps(value, PROTOCOL)


def decode(kept: bytes) -> Any:
    """The value that was kept.

    Raises:
        Exception: It cannot be unpickled; whatever the class raises, or its import.
    """
    if kept.startswith(TIME):
        return datetime.fromisoformat(kept[len(TIME) :].decode())
    return pickle.loads(kept)


def utc_time(nanoseconds: int) -> datetime:
    """Return the time that many nanoseconds after 1970, in UTC."""
    return EPOCH + timedelta(microseconds=nanoseconds // 1000)
