"""The state of all processes in memory that they share: no server keeps it, and no lock."""

from __future__ import annotations

import fcntl
import os
import resource
import sys
import tempfile
from collections.abc import ItemsView, Iterator, Mapping, MutableMapping, Sequence, ValuesView
from contextlib import suppress
from multiprocessing.context import get_spawning_popen
from multiprocessing.reduction import DupFd
from secrets import token_hex
from typing import Any
from weakref import WeakValueDictionary

from worker import settings
from worker._core import IS_NATIVE, Table
from worker._state import identity, schema

__all__ = ["SharedState"]

CLOSED = "the state of the workers is closed"
NO_TABLE = (
    "SharedState needs the native core, which is not at work here (see worker.core_info()); "
    "use multiprocessing.Manager().dict() instead"
)
# Each process maps all of `state_max_bytes`: by default no more than this part of the address space that it
# may have.
SHARE = 20

# Every one that this process has open, by its token.
_open: WeakValueDictionary[str, SharedState] = WeakValueDictionary()


class SharedState(MutableMapping[str, dict[str, Any]]):
    """The state of all processes, name to entry, shared by those whom it was handed to.

    It is made in main and handed over while a child is being made, under each start method: in the arguments
    of its process. In any other pickle, the arguments of a managed function that a worker asks for among
    them, it is a token, which a process that has this state resolves to its own.

    An entry is a ``dict`` of any keys and values that can be pickled. What is handed out is the caller's own
    copy: a change of it changes nothing here. Each value is kept by itself, so :meth:`update_entry` touches
    nothing but its keys. Every change is seen whole or not at all, and none is lost because of another. Only
    what is read by :meth:`~collections.abc.MutableMapping.pop`, ``setdefault`` and ``popitem`` may have
    changed before it is written.

    A process that cannot unpickle a value, because it cannot import its class, sees all others: only to ask
    for this one raises :exc:`~worker._core.codec.UnreadableError`.

    It needs the native core; without that, use the mapping of a ``SyncManager``.

    Args:
        max_bytes (int | None): How much it may take at the most, in bytes; memory is taken as it is used.
            Defaults to the setting ``state_max_bytes``: 1 GiB, or a twentieth of the address space that this
            process may have, if that is less.

    Raises:
        KeyError: There is no such entry.
        MemoryError: There is no room for a change; then nothing is changed.
        OSError: The memory, or a descriptor, cannot be had.
        RuntimeError: The native core is missing; or something else has written to the memory, and what is
            asked for cannot be read any more.
        TypeError: A name is no ``str``, or an entry no mapping.
        ValueError: ``max_bytes`` is out of range, or the state was closed.
    """

    def __init__(self, max_bytes: int | None = None) -> None:
        if not IS_NATIVE:
            raise RuntimeError(NO_TABLE)
        if max_bytes is None:
            size = settings.resolve({}).state_max_bytes
        else:
            size = settings.checked("state_max_bytes", max_bytes, "SharedState()")
        # Where a process may not have that much (`ulimit -v`, `ulimit -f`), it has less by default.
        is_default = max_bytes is None and size == settings.DEFAULT_STATE_BYTES
        smallest = settings.MIN_STATE_BYTES if is_default else size
        if is_default:
            size = max(smallest, min(size, _address_space() // SHARE))
        while True:
            try:
                self._make(size)
                break
            except OSError as exc:
                if size <= smallest:
                    hint = f"{exc.strerror}: the state of the workers, {size} bytes (`state_max_bytes`)"
                    raise OSError(exc.errno, hint) from exc
                size = max(smallest, size // 2)

    def _make(self, size: int) -> None:
        """Be a new one."""
        descriptors = [_anonymous_file(size)]
        try:
            bell, wake = _bell()
            descriptors += {bell, wake}
            self._take(descriptors[0], wake, bell, token_hex(16))
        except BaseException:
            for descriptor in descriptors:
                os.close(descriptor)
            raise

    def _take(self, memory: int, wake: int, bell: int | None, token: str) -> None:
        """Own these descriptors, and be found by this token."""
        self._table = Table(
            memory,
            wake,
            owner=schema.OWNER,
            beat=schema.LAST_BEAT,
            count=schema.REQUESTS,
            flags=schema.FLAGS,
            essential=schema.ESSENTIAL,
        )
        self._damaged: set[str] = set()
        self._memory, self._wake, self._bell, self._token = memory, wake, bell, token
        _open[token] = self

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the memory, in this process; it is gone when the last one has."""
        _open.pop(self.__dict__.get("_token", ""), None)
        # One that was never whole has none; the bell may be the same as what rings it.
        descriptors = {self.__dict__.pop(name, None) for name in ("_memory", "_wake", "_bell")}
        for descriptor in descriptors - {None}:
            os.close(descriptor)
        self._bell = None
        self._table = _Closed()  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        if "_memory" not in self.__dict__:
            raise ValueError(CLOSED)
        if get_spawning_popen() is None:
            return _resolve, (self._token,)
        return _received, (DupFd(self._memory), DupFd(self._wake), self._token)

    # The mapping

    def __getitem__(self, name: str) -> dict[str, Any]:
        return self._table.entry(name)

    def __setitem__(self, name: str, entry: Mapping[str, Any]) -> None:
        self._table.put(name, entry)

    def __delitem__(self, name: str) -> None:
        self._table.remove(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._table.names())

    def __len__(self) -> int:
        return len(self._table.names())

    def __contains__(self, name: object) -> bool:
        try:
            self._table.some(name, ())  # type: ignore[arg-type]
        except (KeyError, TypeError):
            return False
        return True

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.copy()!r})"

    def copy(self) -> dict[str, dict[str, Any]]:
        """Return all entries, in a ``dict`` of the caller's own."""
        return self._table.entries()

    def items(self) -> ItemsView[str, dict[str, Any]]:
        """Return the pairs of names and entries, as they are now."""
        return self.copy().items()

    def values(self) -> ValuesView[dict[str, Any]]:
        """Return the entries, as they are now."""
        return self.copy().values()

    # What a dict of dicts has not

    def entry(self, name: str, pid: int = 0) -> dict[str, Any]:
        """Return an entry as the process ``pid`` of that name sees it, with what it has written apart."""
        return self._table.entry(name, pid)

    def value(self, name: str, key: str, pid: int = 0) -> Any:
        """Return one value of an entry, as the process ``pid`` that bears its name sees it.

        Raises:
            KeyError: There is no such entry, or it has no such key.
            UnreadableError: The value cannot be unpickled here.
        """
        return self._table.value(name, key, pid)

    def some(self, name: str, keys: Sequence[str], pid: int = 0) -> dict[str, Any]:
        """Return those of some keys that an entry has, as far as they are plain; no code of a user's runs.

        Plain is a number, a text, bytes, a time in UTC, or ``None``.

        Args:
            name (str): The entry.
            keys (Sequence[str]): What is asked for; what is not plain is left out.
            pid (int): Of what this process has written apart, not of the entry. Defaults to 0: of the entry.

        Raises:
            KeyError: There is no such entry.
        """
        return self._table.some(name, keys, pid)

    def has_entry(self, name: str) -> bool:
        """Return whether there is an entry, and see to it that all of it can be read by any process.

        Raises:
            RuntimeError: It cannot.
        """
        return self._table.check(name)

    def update_entry(self, name: str, changes: Mapping[str, Any], pid: int = 0) -> None:
        """Set some keys of an entry, all at once.

        Args:
            name (str): The entry.
            changes (Mapping[str, Any]): The keys to set; all others stay as they are.
            pid (int): The process that writes this of itself, under the name that it bears. If the entry is
                another's, whose pid it holds, this is kept apart. Defaults to 0: whoever's the entry is.

        Raises:
            KeyError: There is no such entry.
            MemoryError: There is no room for it.
        """
        self._table.update(name, changes, pid)

    def discard_key(self, name: str, key: str, pid: int = 0) -> None:
        """Remove a key of an entry; ``pid`` as for :meth:`update_entry`.

        Raises:
            KeyError: There is no such entry, or it has no such key.
        """
        self._table.discard(name, key, pid)

    def hand_over(self, name: str, pid: int, changes: Mapping[str, Any]) -> None:
        """Let an entry be that of the process ``pid``: make these changes, then those it has written apart.

        Raises:
            KeyError: There is no such entry.
            MemoryError: There is no room for it.
        """
        self._table.hand_over(name, pid, {**changes, schema.OWNER: pid})

    def drop_part(self, name: str, pid: int) -> None:
        """Forget what a process has written apart."""
        self._table.drop(name, pid)

    def beat(self, requests: int = 0) -> None:
        """Note that the calling worker is alive, and that it has served so many more requests.

        Its entry shows it from then on: ``last_beat`` (an aware ``datetime`` in UTC) and ``requests``.
        """
        self._table.beat(requests, identity.worker_pid())

    def flag(self, *, stoppable: bool | None = None, stopping: bool | None = None) -> None:
        """Show in the entry of the calling worker whether it obeys a stop, and whether it has.

        ``None`` leaves the one as it is.
        """
        self._table.flag(stoppable=stoppable, stopping=stopping, pid=identity.worker_pid())

    def numbers(self, pid: int) -> dict[str, Any]:
        """Return what :meth:`beat` and :meth:`flag` of the process ``pid`` have noted; empty if nothing."""
        return self._table.numbers(pid)

    def bury(self, pid: int) -> None:
        """Give the room that a dead process had to others."""
        self._table.bury(pid)

    def is_first_damage(self, name: str) -> bool:
        """Whether this process hears for the first time that an entry is damaged: then it is to be told."""
        is_first = name not in self._damaged
        self._damaged.add(name)
        return is_first

    # What main waits for

    @property
    def bell(self) -> int | None:
        """What becomes readable by a change, after :meth:`arm`; ``None`` where the state was not made."""
        return self._bell

    def changes(self, everything: bool = False) -> list[str]:
        """Return the names under which something has changed since the last call; for one process, main.

        Args:
            everything (bool): Compare all, as after the end of a process, which may have come between a
                change and its mark. Defaults to ``False``.
        """
        return self._table.changes(everything)

    def arm(self) -> bool:
        """Let changes ring the bell from now on; return whether there has been one since :meth:`changes`."""
        return self._table.arm()

    def disarm(self) -> None:
        """Let changes ring it no more."""
        self._table.disarm()


class _Closed:
    """What a state has in place of its table when it was closed."""

    def __getattr__(self, name: str) -> Any:
        raise ValueError(CLOSED)


def _resolve(token: str) -> SharedState:
    state = _open.get(token)
    if state is None:
        raise LookupError(
            "this process does not have the state of the workers that was sent to it: pass the state in the "
            "arguments of the process, in the main process"
        )
    return state


def _received(memory: Any, wake: Any, token: str) -> SharedState:
    descriptors = memory.detach(), wake.detach()
    state = _open.get(token)
    if state is not None:
        for descriptor in descriptors:
            os.close(descriptor)
        return state
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    state = SharedState.__new__(SharedState)
    state._take(*descriptors, None, token)
    return state


def _anonymous_file(size: int) -> int:
    """A file of zeros that has no name, and no room taken yet."""
    try:
        memory = os.memfd_create("sanic-worker", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    # The system has none, or refuses it, as a filter of system calls does.
    except (AttributeError, OSError):
        with tempfile.TemporaryFile(prefix="sanic-worker-") as file:
            memory = os.dup(file.fileno())
    try:
        os.fchmod(memory, 0o600)
        os.ftruncate(memory, size)
        # A read behind the end of a file that was made shorter kills the reader. A file on disk has no seals.
        with suppress(OSError, AttributeError):
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(memory)
        raise
    return memory


def _address_space() -> int:
    """How much of it this process may have, in bytes."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def _bell() -> tuple[int, int]:
    """Where a change is heard, and where it rings; neither ever waits."""
    if hasattr(os, "eventfd"):
        bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        return bell, bell
    bell, wake = os.pipe()
    os.set_blocking(bell, False)
    os.set_blocking(wake, False)
    return bell, wake
