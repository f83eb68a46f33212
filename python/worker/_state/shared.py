"""The shared state: the entries of all processes in shared memory, without a server and without locks."""

from __future__ import annotations

import os
from collections.abc import ItemsView, Iterator, Mapping, MutableMapping, Sequence, ValuesView
from contextlib import suppress
from multiprocessing.context import get_spawning_popen
from multiprocessing.reduction import DupFd
from secrets import token_hex
from typing import Any
from weakref import WeakValueDictionary

from worker import settings
from worker._core import IS_NATIVE, Questions, Table
from worker._state import identity, schema
from worker._state.memory import address_space, anonymous_file, notifier
from worker.settings import values

__all__ = ["SharedState"]

CLOSED = "the state of the workers is closed"
NO_TABLE = (
    "SharedState needs the native core, which is not at work here (see worker.core_info()); "
    "use multiprocessing.Manager().dict() instead"
)
# Each process maps all of `state_max_bytes`. The default is at most the address space limit divided by this.
SHARE = 20

# The states that are open in this process, by token.
_open: WeakValueDictionary[str, SharedState] = WeakValueDictionary()


class SharedState(MutableMapping[str, dict[str, Any]]):
    """The state of all processes, name to entry, in memory that these processes share.

    The main process makes it. A child receives it in the arguments of its process, under each start method.
    Any other pickle of it, for example in the arguments of a function that a worker asks to be managed, holds
    a token. A process that has the state resolves the token to it.

    An entry is a ``dict`` with any keys and values that can be pickled. A returned entry is a copy: changing
    it does not change the state. Each value is stored by itself, so :meth:`update_entry` changes only its
    keys. Every change is visible as a whole or not at all, and no change is lost because of another one. Only
    between the read and the write of :meth:`~collections.abc.MutableMapping.pop`, ``setdefault`` and
    ``popitem`` may an entry change.

    A process that cannot unpickle a value, because it cannot import its class, can read all others. A read of
    this one raises :exc:`~worker._core.codec.UnreadableError`.

    It needs the native core. Without that, use the mapping of a ``SyncManager``.

    Args:
        max_bytes (int | None): The largest size, in bytes; memory is taken as it is used. Defaults to the
            setting ``state_max_bytes``: 1 GiB, or a twentieth of the address space limit of this process if
            that is less.

    Raises:
        KeyError: There is no such entry.
        MemoryError: There is no room for a change; then nothing is changed.
        OSError: The system refuses the memory or a descriptor.
        RuntimeError: The native core is missing; or another program has written to the memory, and the entry
            cannot be read.
        TypeError: A name is no ``str``, or an entry no mapping.
        ValueError: ``max_bytes`` is out of range, or the state was closed.
    """

    IS_SUPPORTED = IS_NATIVE
    """Whether this process can make one: it has the native core."""

    def __init__(self, max_bytes: int | None = None) -> None:
        if not IS_NATIVE:
            raise RuntimeError(NO_TABLE)
        if max_bytes is None:
            size = settings.resolve({}).state_max_bytes
        else:
            size = settings.checked("state_max_bytes", max_bytes, "SharedState()")
        # A limit of the process (`ulimit -v`, `ulimit -f`) lowers the default.
        is_default = max_bytes is None and size == values.DEFAULT_STATE_BYTES
        smallest = values.MIN_STATE_BYTES if is_default else size
        if is_default:
            size = max(smallest, min(size, address_space() // SHARE))
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
        """Initialise a new state."""
        descriptors = [anonymous_file(size)]
        try:
            notify_fd, wake = notifier()
            descriptors += {notify_fd, wake}
            self._take(descriptors[0], wake, notify_fd, token_hex(16))
        except BaseException:
            for descriptor in descriptors:
                os.close(descriptor)
            raise

    def _take(self, memory: int, wake: int, notify_fd: int | None, token: str) -> None:
        """Own these descriptors, and register under this token."""
        self._table = Table(
            memory,
            wake,
            owner=schema.OWNER,
            beat=schema.LAST_BEAT,
            count=schema.REQUESTS,
            gauges=schema.GAUGES,
            seconds=schema.SECONDS,
            flags=schema.FLAGS,
            essential=schema.ESSENTIAL,
            sheets=schema.SHEETS,
        )
        self._questions = Questions(self._table)
        self._damaged: set[str] = set()
        self._memory, self._wake, self._notify_fd, self._token = memory, wake, notify_fd, token
        _open[token] = self

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Release the memory in this process. The system frees it when all processes have."""
        _open.pop(self.__dict__.get("_token", ""), None)
        # A state that was not fully made has none. With an eventfd the last two are the same.
        descriptors = {self.__dict__.pop(name, None) for name in ("_memory", "_wake", "_notify_fd")}
        for descriptor in descriptors - {None}:
            os.close(descriptor)
        self._notify_fd = None
        self._table = _Closed()  # type: ignore[assignment]
        self._questions = _Closed()  # type: ignore[assignment]

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
        """Return all entries, in a new ``dict``."""
        return self._table.entries()

    def items(self) -> ItemsView[str, dict[str, Any]]:
        """Return the pairs of names and entries, as they are now."""
        return self.copy().items()

    def values(self) -> ValuesView[dict[str, Any]]:
        """Return the entries, as they are now."""
        return self.copy().values()

    # Beyond a dict of dicts

    def entry(self, name: str, pid: int = 0) -> dict[str, Any]:
        """Return an entry as the process ``pid`` of that name sees it, with the values it has staged."""
        return self._table.entry(name, pid)

    def value(self, name: str, key: str, pid: int = 0) -> Any:
        """Return one value of an entry, as the process ``pid`` that bears its name sees it.

        Raises:
            KeyError: There is no such entry, or it has no such key.
            UnreadableError: The value cannot be unpickled here.
        """
        return self._table.value(name, key, pid)

    def read_keys(self, name: str, keys: Sequence[str], pid: int = 0) -> dict[str, Any]:
        """Return the plain values of some keys of an entry. No code of users runs.

        Plain values are numbers, text, bytes, times in UTC, and ``None``.

        Args:
            name (str): The entry.
            keys (Sequence[str]): The keys. Keys that are missing, or have other values, are left out.
            pid (int): Read the entry that this process has staged. Defaults to 0: the current entry.

        Raises:
            KeyError: There is no such entry.
        """
        return self._table.some(name, keys, pid)

    def has_entry(self, name: str) -> bool:
        """Return whether there is an entry, and check that every process can read it.

        Raises:
            RuntimeError: The entry is damaged.
        """
        return self._table.check(name)

    def update_entry(self, name: str, changes: Mapping[str, Any], pid: int = 0) -> None:
        """Set some keys of an entry, all at once.

        Args:
            name (str): The entry.
            changes (Mapping[str, Any]): The keys to set; all others stay as they are.
            pid (int): The process that writes about itself. If the entry belongs to another process, the
                values are staged. Defaults to 0: the owner of the entry, whichever process that is.

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
        """Hand an entry over to the process ``pid``: set these keys, then those that it has staged.

        Raises:
            KeyError: There is no such entry.
            MemoryError: There is no room for it.
        """
        self._table.hand_over(name, pid, {**changes, schema.OWNER: pid})

    def drop_staged(self, name: str, pid: int) -> None:
        """Drop the entry that a process has staged."""
        self._table.drop_staged(name, pid)

    def beat(
        self,
        requests: int = 0,
        *,
        in_flight: int | None = None,
        connections: int | None = None,
        loop_lag_p50: float | None = None,
        loop_lag_p99: float | None = None,
        loop_busy: float | None = None,
    ) -> None:
        """Note that the calling worker is alive, and add to the number of its requests.

        Its entry then shows ``last_beat`` (an aware ``datetime`` in UTC), ``requests``, and the numbers
        given. ``None`` leaves a number as it is. A number that was never given is not shown,
        nor is one whose name the application uses for a key of its own.

        Args:
            requests (int): The requests since the last beat. Defaults to 0.
            in_flight (int | None): The connections on which a request is read, handled or answered.
            connections (int | None): The open connections.
            loop_lag_p50 (float | None): The median lag of the event loop, seconds.
            loop_lag_p99 (float | None): The lag that 1 % of the samples exceed, seconds.
            loop_busy (float | None): The share of the time since the last beat in which the event loop was
                busy, from 0 to 1.
        """
        gauges = (in_flight, connections, loop_lag_p50, loop_lag_p99, loop_busy)
        self._table.beat(requests, identity.worker_pid(), gauges)

    def flag(self, *, stoppable: bool | None = None, stopping: bool | None = None) -> None:
        """Show in the entry of the calling worker whether its stop handlers are set, and whether it stops.

        ``None`` leaves a flag as it is.
        """
        self._table.flag(stoppable=stoppable, stopping=stopping, pid=identity.worker_pid())

    def numbers(self, pid: int) -> dict[str, Any]:
        """Return the values that :meth:`beat` and :meth:`flag` of a process have written; empty if none."""
        return self._table.numbers(pid)

    # Questions to a process, by which another one finds what of it is stuck

    def ask(self, pid: int) -> int:
        """Put a question to a process: return its number, or 0 if this process takes no questions.

        The process answers with its stacks. See :mod:`worker._child.responder`.
        """
        return self._questions.ask(pid)

    def answers(self, pid: int) -> tuple[int, int]:
        """Return the numbers of the last questions that a process has answered.

        The first is that of its native thread, which never waits for the interpreter, and the second that of
        its interpreter. An interpreter that has answered has put its stacks into the entry of its process.
        """
        return self._questions.answers(pid)

    def stack_signal(self, pid: int) -> int:
        """Return the number of the signal at which a process dumps its stacks; 0 if there is none."""
        return self._questions.signal(pid)

    def stacks(self, name: str, pid: int, question: int) -> tuple[str, str] | None:
        """Return the stacks that a process has answered a question with, and the name of its debugger.

        Args:
            name (str): The entry of the process.
            pid (int): The process. It may have staged its entry.
            question (int): The number of the question. An answer to a later one counts, too.

        Returns:
            tuple[str, str] | None: The debugger is empty without one. ``None``: the entry has no such answer.
        """
        keys = (schema.STACKS, schema.STACKS_QUESTION, schema.STACKS_DEBUGGER, schema.OWNER)
        with suppress(KeyError, RuntimeError):
            for owner in (0, pid):
                found = self.read_keys(name, keys, owner)
                number = found.get(schema.STACKS_QUESTION, 0)
                if found.get(schema.OWNER, pid) == pid and isinstance(number, int) and number >= question:
                    return str(found.get(schema.STACKS, "")), str(found.get(schema.STACKS_DEBUGGER, ""))
        return None

    @property
    def questions(self) -> Questions:
        """The questions to the calling process, for the thread that answers them."""
        return self._questions

    def last_beat(self, pid: int) -> float | None:
        """Return the time of the last :meth:`beat` of a process on the monotonic clock; ``None`` before it.

        No setting of the clock affects it, unlike the time among its :meth:`numbers`.
        """
        return self._table.last_beat(pid)

    def write_cell(self, sheet: str, index: int, data: bytes) -> None:
        """Write a cell of a sheet; for one process at a time.

        Args:
            sheet (str): One of :data:`~worker._state.schema.SHEETS`.
            index (int): The number of the cell, from 0.
            data (bytes): Its new content. If the process is killed during the write, the cell is empty.

        Raises:
            IndexError: The sheet has fewer cells.
            KeyError: There is no such sheet.
            ValueError: The data are longer than a cell.
        """
        self._table.write_cell(sheet, index, data)

    def cells(self, sheet: str) -> list[bytes | None]:
        """Return the content of all cells of a sheet, in order.

        ``None`` stands for a cell that was never written, is being written, or was damaged.

        Raises:
            KeyError: There is no such sheet.
        """
        return self._table.cells(sheet)

    def usage(self) -> tuple[int, int]:
        """Return the bytes that the entries take, in units of 16 KiB, and the bytes that they may take."""
        return self._table.usage()

    def reclaim(self, pid: int) -> None:
        """Make the space of a process that has exited available to others."""
        self._table.reclaim(pid)

    def is_first_damage(self, name: str) -> bool:
        """Return whether this process reports the damage of an entry for the first time."""
        is_first = name not in self._damaged
        self._damaged.add(name)
        return is_first

    # Notification of the main process

    @property
    def notify_fd(self) -> int | None:
        """A descriptor that a change makes readable, after :meth:`arm`.

        ``None`` in a process that received the state.
        """
        return self._notify_fd

    def changes(self, everything: bool = False) -> list[str]:
        """Return the names whose entries have changed since the last call; for the main process only.

        Args:
            everything (bool): Compare all entries: needed after an exit, as a process may be killed between a
                change and its mark. Defaults to ``False``.
        """
        return self._table.changes(everything)

    def arm(self) -> bool:
        """Have changes wake :attr:`notify_fd`; return whether there was one since :meth:`changes`."""
        return self._table.arm()

    def disarm(self) -> None:
        """Have changes wake no more."""
        self._table.disarm()


class _Closed:
    """Stands in for the table of a state that was closed."""

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
