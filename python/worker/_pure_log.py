"""What is in the table, as a log of changes in a file that several processes share.

The file is a head of words, then two halves. One half has the log; when that is too long, what is alive goes
to the other one, and the log goes on there. A single word says which half it is and how far it is written:
storing it is what makes a change, so that nothing has happened if its writer is killed before.
"""

from __future__ import annotations

import fcntl
import marshal
import mmap
import os
import select
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, NamedTuple

from worker.values import loads

__all__ = ["Deltas", "Entries", "Key", "Log", "Pairs", "Part", "Parts", "State"]

_MAGIC = b"sanicwkp"
_SMALLEST = 64 * 1024
_HEAD = 32 * 1024
# The log is begun anew when it has this much more than three times what was alive when it was begun.
_SLACK = 128 * 1024
# The commit: where in the file the log ends and, above that, how many logs there were before.
_SPAN, _LOGS = 1 << 40, 1 << 24
# The words that the head begins with. The rest of them is free for whoever has the log.
_COMMIT, _ALIVE, _ARMED, _OWN = range(1, 5)

_SIMPLE = frozenset({type(None), bool, int, float, str, bytes})
_UNREAD = object()


@dataclass(slots=True)
class _Value:
    """A value as it is kept. What nobody can change is unpickled once, and given to all who ask."""

    raw: bytes
    simple: Any = field(default=_UNREAD, compare=False)

    def read(self) -> Any:
        if self.simple is not _UNREAD:
            return self.simple
        value = loads(self.raw)
        kind = type(value)
        if kind in _SIMPLE or (kind is datetime and type(value.tzinfo) in (type(None), timezone)):
            self.simple = value
        return value


Key = str | bytes
"""A key of an entry: a ``str`` as it is, any other pickled."""
Part = dict[Key, _Value]
Parts = dict[int, Part]
"""What is kept under a name, by the pid of who has written it; 0 is what everybody sees."""
Entries = dict[str, Parts]
Pairs = dict[Key, bytes | None]
Deltas = list[tuple[int, Pairs | None]]
"""What becomes of which part: it gets these values, loses the keys that have none here, or is gone."""


class State(NamedTuple):
    """What one process knows of the table, up to a commit. It is replaced, and nothing in it ever changed."""

    commit: int
    entries: Entries


class Log:
    """The file, and what this process knows of it.

    :exc:`OSError` if it cannot be mapped, :exc:`ValueError` if it is too small or holds something else.
    """

    _lock: int | None = None  # until it is needed
    _held = False

    def __init__(self, memory: int, wake: int) -> None:
        self._files: list[int] = []
        self._begin()
        self.size = os.fstat(memory).st_size
        if self.size < _SMALLEST:
            raise ValueError(f"a table takes a file of at least {_SMALLEST} bytes, this one has {self.size}")
        self._half = (min(self.size, _SPAN) - _HEAD) // 2
        for fd in (wake, memory):
            self._files.append(os.dup(fd))
        self._wake, self._memory = self._files
        self._bytes = memoryview(mmap.mmap(memory, self.size))
        self._words = self._bytes[:_HEAD].cast("Q")
        self.words = self._words[_OWN:]
        self._state = State(_HEAD, {})
        with self.alone():
            self._recognise()
        _logs.add(self)

    def __del__(self) -> None:
        self._begin()
        while self._files:
            os.close(self._files.pop())

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody changes anything meanwhile, except for a signal handler in this very thread."""
        with self.turn:
            if self._lock is None:
                self._lock = _open_lock(self._memory)
            outermost = not self._held
            try:
                self._held = True
                _flock(self._lock, fcntl.LOCK_EX)
                yield
            finally:
                if outermost:
                    self._held = False
                    _flock(self._lock, fcntl.LOCK_UN)

    def look(self) -> Entries:
        """Return what is there now."""
        if self._words[_COMMIT] == self._state.commit:
            return self._state.entries
        with self.alone():
            return self.catch_up().entries

    def catch_up(self) -> State:
        """Read what is new. Only for who is alone."""
        before, commit = self._state, self._words[_COMMIT]
        (log, end), (known, at) = divmod(commit, _SPAN), divmod(before.commit, _SPAN)
        entries = dict(before.entries)
        if log != known:
            entries, at = {}, self._start(log)
        while at < end:
            size = int.from_bytes(self._bytes[at : at + 8], sys.byteorder)
            _apply(entries, *marshal.loads(self._bytes[at + 8 : at + 8 + size]))
            at += 8 + size
        if log != known:
            # Written anew is not changed.
            for name in entries.keys() & before.entries.keys():
                if _listed(entries[name]) == _listed(before.entries[name]):
                    entries[name] = before.entries[name]
        self._state = State(commit, entries)
        return self._state

    def commit(self, state: State, name: str, deltas: Deltas) -> bool:
        """Change what was in this state; ``False`` if a signal handler has done so. Only for who is alone.

        :exc:`MemoryError` if there is no room.
        """
        entries = dict(state.entries)
        _apply(entries, name, deltas)
        record = _packed(name, deltas)
        no_room = (
            f"no room for a change of the entry {name!r} by {len(record)} bytes: the table may have "
            f"{self.size} bytes; `state_ceiling` sets how many"
        )
        log, at = divmod(state.commit, _SPAN)
        if at + len(record) - self._start(log) > min(self._half, 3 * self._words[_ALIVE] + _SLACK):
            record = b"".join(_packed(name, _whole(parts)) for name, parts in entries.items())
            if len(record) > self._half:
                raise MemoryError(no_room)
            log = (log + 1) % _LOGS
            at = self._start(log)
            self._words[_ALIVE] = len(record)
        commit = log * _SPAN + at + len(record)
        # A handler comes after a call, or at a jump back: what an `if` finds here holds for what follows it.
        if self._words[_COMMIT] == state.commit:
            try:
                # Not by the mapping, where a full disk is a signal that kills.
                written = os.pwrite(self._memory, record, at)
            except OSError as exc:
                raise MemoryError(no_room) from exc
            if written < len(record):
                raise MemoryError(no_room)
        if self._words[_COMMIT] == state.commit:
            self._words[_COMMIT] = commit
        else:
            return False
        self._state = State(commit, entries)
        if self._words[_ARMED]:
            self._write_wake()
        return True

    def arm(self, armed: bool) -> None:
        """Have changes wake, or no more."""
        self._words[_ARMED] = armed

    def _begin(self) -> None:
        """Let go of what only one process can have."""
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)
        self.turn = threading.RLock()
        self._held = False

    def _recognise(self) -> None:
        if bytes(self._bytes[: len(_MAGIC)]) == _MAGIC:
            return
        if any(self._words):
            raise ValueError("the file holds something else than a table of the pure core")
        os.pwrite(self._memory, bytes(_HEAD), 0)
        # So small a write is made whole or not at all.
        os.pwrite(self._memory, _MAGIC + _HEAD.to_bytes(8, sys.byteorder), 0)

    def _start(self, log: int) -> int:
        return _HEAD + log % 2 * self._half

    def _write_wake(self) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLOUT)
        # One that has no room is full of wakes.
        with suppress(OSError):
            if poll.poll(0):
                os.write(self._wake, (1).to_bytes(8, sys.byteorder))


_logs: weakref.WeakSet[Log] = weakref.WeakSet()


def _begin_child() -> None:
    # What a child inherits is the same lock: while it had that, the death of its parent would not release it.
    for log in list(_logs):
        log._begin()
        # Now, as a child that gives up its privileges may not open it any more.
        with suppress(OSError):
            log._lock = _open_lock(log._memory)


os.register_at_fork(after_in_child=_begin_child)

# A lock belongs to one opening of the file, so each log opens it anew. Where it cannot, the lock belongs to
# the process.
_HAS_PROC = os.path.isdir("/proc/self/fd")
_flock = fcntl.flock if _HAS_PROC else fcntl.lockf


def _open_lock(memory: int) -> int:
    return os.open(f"/proc/self/fd/{memory}", os.O_RDWR | os.O_CLOEXEC) if _HAS_PROC else os.dup(memory)


def _packed(name: str, deltas: Deltas) -> bytes:
    record = marshal.dumps((name, deltas))
    return len(record).to_bytes(8, sys.byteorder) + record


def _whole(parts: Parts) -> Deltas:
    return [(pid, {key: value.raw for key, value in part.items()}) for pid, part in parts.items()]


def _listed(parts: Parts) -> list[tuple[int, list[tuple[Key, _Value]]]]:
    """The parts as something that is equal only in the same order."""
    return [(pid, list(part.items())) for pid, part in parts.items()]


def _apply(entries: Entries, name: str, deltas: Deltas) -> None:
    parts = dict(entries.get(name, {}))
    for pid, pairs in deltas:
        if pairs is None:
            parts.pop(pid, None)
            continue
        part = parts[pid] = dict(parts.get(pid, {}))
        for key, raw in pairs.items():
            if raw is None:
                part.pop(key, None)
            else:
                part[key] = _Value(raw)
    if 0 in parts:
        entries[name] = parts
    else:
        entries.pop(name, None)
