"""The table that several processes share, in plain Python.

The stub of the native core documents what is offered here; the comments in this file say why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, final

from worker._pure_log import Deltas, Entries, Key, Log, Pairs, Part, Parts
from worker._pure_places import Places
from worker.values import NUMBERS, PartialEntry, UnreadableError, dumps, loads

__all__ = ["Table"]

_Plan = Callable[[Parts, Pairs], Deltas]


@final
class Table:
    """What the native core promises, and this one cannot:

    - A process that is *stopped* (by ``SIGSTOP``, a debugger) within a change holds up all who want to change
      something, or to read what is new. One that is killed does not: the kernel releases its lock.
    - Reading what is new takes that lock, and system calls. Only what is known already is read without.
    - Half of the ceiling is for what is in the table; the other half is for writing that anew.
    """

    def __init__(self, memory: int, wake: int) -> None:
        self._log = Log(memory, wake)
        self._places = Places(self._log)
        self._seen: Entries = {}

    def entry(self, name: str, pid: int = 0) -> dict[Any, Any]:
        return self._with_numbers(_read(name, self._pairs(name, pid)), self._places.by_pid())

    def value(self, name: str, key: Any, pid: int = 0) -> Any:
        pairs, key = self._pairs(name, pid), _plain(key)
        if key in NUMBERS:
            owner: Part = {kept: value for kept, value in pairs.items() if kept == "pid"}
            numbers = self._with_numbers(_read(name, owner), self._places.by_pid())
            if key in numbers:
                return numbers[key]
        kept = key if type(key) is str and key in pairs else _by_key(pairs)[key]
        try:
            return pairs[kept].read()
        except (Exception, SystemExit) as exc:
            raise UnreadableError(name, key, exc) from exc

    def some(self, name: str, keys: Sequence[str], pid: int = 0) -> dict[str, Any]:
        parts = self._log.look().get(_exact(name))
        if parts is None:
            raise KeyError(name)
        part, found = parts.get(pid, {}), {}
        for key in keys:
            if key in part:
                with suppress(Exception, SystemExit):
                    found[key] = part[key].read()
        return found

    def entries(self) -> dict[str, dict[Any, Any]]:
        places = self._places.by_pid()
        entries = self._log.look()
        return {name: self._with_numbers(_read(name, parts[0]), places) for name, parts in entries.items()}

    def names(self) -> list[str]:
        return list(self._log.look())

    def put(self, name: str, entry: Mapping[Any, Any]) -> None:
        def plan(parts: Parts, pairs: Pairs) -> Deltas:
            return [(0, dict.fromkeys(parts.get(0, ()))), (0, pairs)]

        self._change(name, _pickled(entry), plan, anew=True)

    def update(self, name: str, changes: Mapping[Any, Any], pid: int = 0) -> None:
        self._change(name, _pickled(changes), lambda parts, pairs: [(_whose(parts, pid), pairs)])

    def discard(self, name: str, key: Any, pid: int = 0) -> None:
        def plan(parts: Parts, pairs: Pairs) -> Deltas:
            whose = _whose(parts, pid)
            if not pairs.keys() <= parts.get(whose, {}).keys():
                raise KeyError(key)
            return [(whose, pairs)]

        self._change(name, {_plain(key): None}, plan)

    def remove(self, name: str) -> None:
        self._change(name, {}, lambda parts, pairs: [(0, None)])

    def part(self, name: str, pid: int) -> dict[Any, Any]:
        return _read(name, _apart(self._log.look().get(_exact(name), {}), pid))

    def hand_over(self, name: str, pid: int, changes: Mapping[Any, Any]) -> None:
        def plan(parts: Parts, pairs: Pairs) -> Deltas:
            apart = _apart(parts, pid)
            merged = pairs | {key: value.raw for key, value in apart.items()}
            return [(0, merged), (pid, None)] if apart else [(0, merged)]

        self._change(name, _pickled(changes), plan)

    def drop(self, name: str, pid: int) -> None:
        if _apart(self._log.look().get(_exact(name), {}), pid):
            # The entry may be gone by now, and the part with it.
            with suppress(KeyError):
                self._change(name, {}, lambda parts, pairs: [(pid, None)])

    def beat(self, requests: int = 0) -> None:
        if not 0 <= requests < 1 << 64:
            raise OverflowError(f"a process cannot have served {requests} more requests")
        self._places.beat(requests)

    def flag(self, *, stoppable: bool | None = None, stopping: bool | None = None) -> None:
        self._places.flag(stoppable, stopping)

    def numbers(self, pid: int) -> dict[str, Any]:
        places = self._places.by_pid()
        return self._places.numbers(places[pid]) if pid in places else {}

    def bury(self, pid: int) -> None:
        self._places.vacate(pid)

    def changes(self, everything: bool = False) -> list[str]:
        before, self._seen = self._seen, self._log.look()
        return _differing(before, self._seen)

    def arm(self) -> bool:
        with self._log.alone():
            self._log.arm(True)
            return bool(_differing(self._seen, self._log.catch_up().entries))

    def disarm(self) -> None:
        self._log.arm(False)

    def _pairs(self, name: str, pid: int) -> Part:
        """The entry as a process sees it: with its part over it, if it has one."""
        parts = self._log.look().get(_exact(name))
        if parts is None:
            raise KeyError(name)
        return parts[0] | _apart(parts, _whose(parts, pid))

    def _with_numbers(self, entry: dict[Any, Any], places: Mapping[int, int]) -> dict[Any, Any]:
        pid = dict.get(entry, "pid")
        if type(pid) is int and pid in places:
            entry.update(self._places.numbers(places[pid]))
        return entry

    def _change(self, name: str, values: Mapping[Any, bytes | None], plan: _Plan, anew: bool = False) -> None:
        """Change an entry; ``anew`` if what everybody sees is replaced, or made."""
        name = _exact(name)
        is_special = any(type(key) is not str for key in values)
        known: set[Key] = set()
        while True:
            # Keys that are equal are kept as the same one throughout an entry. Comparing those that are no
            # `str` runs foreign code, and that while nobody waits: the entry may get other keys meanwhile.
            same = _by_key(known)
            pairs = {same[key] if key in same else _encoded(key): raw for key, raw in values.items()}
            with self._log.alone():
                state = self._log.catch_up()
                parts = state.entries.get(name, {})
                if not parts and not anew:
                    raise KeyError(name)
                stay = (part for pid, part in parts.items() if pid or not anew)
                keys = {key for part in stay for key in part if is_special or type(key) is bytes}
                if keys == known and self._log.commit(state, name, plan(parts, pairs)):
                    return
            known = keys


def _exact(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"the name of an entry is a str, not {type(name).__name__}")
    return str.__str__(name)


def _pickled(mapping: object) -> dict[Any, bytes | None]:
    if not isinstance(mapping, Mapping):
        raise TypeError(f"the keys of an entry come in a mapping, not in {type(mapping).__name__}")
    return {_plain(key): dumps(value) for key, value in dict(mapping).items()}


def _plain(key: Any) -> Any:
    return str.__str__(key) if isinstance(key, str) else key


def _encoded(key: Any) -> Key:
    return key if type(key) is str else dumps(key)


def _decoded(kept: Key) -> Any:
    return loads(kept) if type(kept) is bytes else kept


def _by_key(keys: Iterable[Key]) -> dict[Any, Key]:
    """How keys are kept, by what they are; without those that cannot be read here."""
    found = {}
    for kept in keys:
        with suppress(Exception, SystemExit):
            found[_decoded(kept)] = kept
    return found


def _read(name: str, pairs: Part) -> dict[Any, Any]:
    entry: dict[Any, Any] = {}
    unreadable: dict[Any, UnreadableError] = {}
    for kept, value in pairs.items():
        key: Any = kept
        try:
            key = _decoded(kept)
            hash(key)
        except (Exception, SystemExit) as exc:
            # With its traceback it would keep alive whatever it has passed.
            unreadable[kept] = UnreadableError(name, kept, exc.with_traceback(None))
            continue
        try:
            entry[key] = value.read()
        except (Exception, SystemExit) as exc:
            # A key that cannot even be compared is left out.
            with suppress(Exception):
                unreadable[key] = UnreadableError(name, key, exc.with_traceback(None))
    return PartialEntry(entry, unreadable) if unreadable else entry


def _whose(parts: Parts, pid: int) -> int:
    """Where a process reads and writes: in what everybody sees, which is 0, or apart from it."""
    owner = parts[0].get("pid")
    return 0 if not pid or owner is None or owner.raw == dumps(pid) else pid


def _apart(parts: Parts, pid: int) -> Part:
    return parts.get(pid, {}) if pid else {}


def _differing(before: Entries, now: Entries) -> list[str]:
    if before is now:
        return []
    return sorted(name for name in before.keys() | now.keys() if before.get(name) is not now.get(name))
