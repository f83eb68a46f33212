"""Keeps the shared state in a process of its own, where there is no native core to share memory.

As with Sanic's manager, the state is the mapping of a manager of :mod:`multiprocessing`. The process is a
child of the main process like any other: it leads its own session and ends when the main process is gone. It
ignores the signals that stop the server, so it outlives the workers. If it is killed, each use of the mapping
raises ``BrokenPipeError``, and the server goes on serving.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from multiprocessing import AuthenticationError, get_context, managers
from multiprocessing.connection import Connection, Listener, answer_challenge, deliver_challenge
from multiprocessing.managers import BaseManager, DictProxy, Server
from multiprocessing.process import current_process
from multiprocessing.reduction import ForkingPickler
from secrets import token_hex
from typing import Any

from worker._child.signals import HANDLED
from worker._child.titles import STATE_PROCESS
from worker._spawn import processes

__all__ = ["StateProcess", "StateProxy"]

# How long to wait for an answer, seconds. A stopped process must not block the main process and the workers.
ANSWER_TIMEOUT = 5.0
# How long no request is made after an answer did not come, seconds.
PAUSE = 10.0
# How long to wait for the exit of the killed process, seconds.
KILL_TIMEOUT = 5.0
# The name under which `multiprocessing` finds our listener and client.
SERIALIZER = "sanic-worker"

GONE = "the process that holds the state of the workers has exited, and the state with it; restart the server"
SILENT = f"the process that holds the state of the workers did not answer within {ANSWER_TIMEOUT:g} seconds"


class StateProcess(BaseManager):
    """Starts and ends the process that keeps the state.

    Args:
        sheets (Mapping[str, tuple[int, int]]): The sheets beside the entries: name to number of cells, and
            bytes per cell.
        is_titled (bool): Whether the process gives itself a title. Defaults to ``False``.

    Raises:
        EOFError: The process exited before it was ready.
    """

    def __init__(self, sheets: Mapping[str, tuple[int, int]], is_titled: bool = False) -> None:
        self._sheets = sheets
        # A child of the preload process would not be a child of the main process.
        context = get_context("fork" if get_context().get_start_method() == "fork" else "spawn")
        # An abstract address: no file is left behind, and no directory needs to be writable.
        address = f"\0sanic-worker-{token_hex(16)}"
        super().__init__(address, serializer=SERIALIZER, ctx=_Context(_factory(context, is_titled)))  # type: ignore[arg-type]
        try:
            self.start(_ignore_signals)
        except EOFError:
            raise EOFError(
                f"The process that holds the state of the workers could not be started. {processes.NOT_BEGUN}"
            ) from None

    def dict(self) -> StateProxy:
        """Return a new mapping."""
        token, exposed = self._create("dict", self._sheets)  # type: ignore[attr-defined]
        return StateProxy(token, SERIALIZER, authkey=self._authkey, exposed=exposed)  # type: ignore[attr-defined]

    @staticmethod
    def _finalize_manager(process: Any, *_: Any) -> None:
        # Called by shutdown(), and when the main process ends without it. The state is useless without the
        # main process, so there is nothing to end in order. A stopped process could not do so, either.
        process.kill()
        process.join(KILL_TIMEOUT)
        with suppress(ValueError):
            process.close()


class StateProxy(DictProxy):  # type: ignore[type-arg]
    """The mapping, name to entry, in a process that received it.

    It may be used in any thread, after a fork, and in a signal handler that has interrupted another use.

    Raises:
        BrokenPipeError: On use, if the process that keeps the state is gone or does not answer.
    """

    def __init__(
        self,
        token: Any,
        serializer: str,
        manager: Any = None,
        authkey: bytes | None = None,
        exposed: Any = None,
        incref: bool = True,
        manager_owned: bool = False,
    ) -> None:
        # The mapping exists as long as its process, so references are not counted. Counting would take two
        # connections at the start and two at the end of each process.
        super().__init__(token, serializer, None, authkey, exposed, False, manager_owned)
        self._local = threading.local()
        self._silent_until = 0.0

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def merge(self, name: str, changes: Mapping[str, Any]) -> None:
        """Set some keys of an entry, all at once; :exc:`KeyError` if there is no such entry."""
        self._callmethod("merge", (name, changes))

    def discard(self, name: str, key: str) -> None:
        """Remove a key of an entry, if it exists; :exc:`KeyError` if there is no such entry."""
        self._callmethod("discard", (name, key))

    def write_cell(self, sheet: str, index: int, data: bytes) -> None:
        """Write a cell of a sheet.

        Raises:
            IndexError: The sheet has fewer cells.
            KeyError: There is no such sheet.
            ValueError: The data are longer than a cell.
        """
        self._callmethod("write_cell", (sheet, index, data))

    def cells(self, sheet: str) -> list[bytes | None]:
        """Return the content of all cells of a sheet, ``None`` for one that was never written.

        Raises:
            KeyError: There is no such sheet.
        """
        return self._callmethod("cells", (sheet,))  # type: ignore[no-any-return]

    def close(self) -> None:
        """Close the connection of the calling thread; the next use makes a new one."""
        self._take_connection()

    def _incref(self) -> None:
        """Do nothing: references are not counted."""

    def _callmethod(self, methodname: str, args: Any = (), kwds: Any = {}) -> Any:  # noqa: B006
        request = (self._id, methodname, args, kwds)  # type: ignore[attr-defined]
        kind, result = pickle.loads(self._exchange(ForkingPickler.dumps(request)))
        if kind == "#RETURN":
            return result
        raise managers.convert_to_error(kind, result)  # type: ignore[attr-defined]

    def _exchange(self, request: Any) -> bytes:
        if time.monotonic() < self._silent_until:
            raise BrokenPipeError(SILENT)
        # A signal handler in the same thread finds no connection meanwhile, and makes one. An interrupted
        # exchange drops its connection: its answer would be taken for that to the next request.
        connection = self._take_connection()
        try:
            if connection is None:
                connection = self._connect()
            connection.send_bytes(request)
            answer: bytes = connection.recv_bytes()
        except BlockingIOError:
            self._silent_until = time.monotonic() + PAUSE
            raise BrokenPipeError(SILENT) from None
        except (OSError, EOFError, AuthenticationError):
            raise BrokenPipeError(GONE) from None
        self._local.kept = (os.getpid(), connection)
        return answer

    def _take_connection(self) -> Any:
        pid, connection = getattr(self._local, "kept", (0, None))
        self._local.kept = (0, None)
        # A forked process has a copy of its parent's connection, whose answers it must not take.
        return connection if pid == os.getpid() else None

    def _connect(self) -> Any:
        connection = _connect(self._token.address, self._authkey)  # type: ignore[attr-defined]
        managers.dispatch(connection, None, "accept_connection", (current_process().name,))  # type: ignore[attr-defined]
        return connection


StateProxy._exposed_ = (*DictProxy._exposed_, "merge", "discard", "write_cell", "cells")  # type: ignore[attr-defined]
StateProxy._method_to_typeid_ = {}  # type: ignore[attr-defined]


class _Entries(dict):  # type: ignore[type-arg]
    """The mapping itself, in the process that keeps it. An entry is replaced, never changed."""

    def __init__(self, sheets: Mapping[str, tuple[int, int]]) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._sizes = sheets
        self._cells: dict[str, list[bytes | None]] = {
            name: [None] * size for name, (size, _) in sheets.items()
        }

    def merge(self, name: str, changes: Mapping[str, Any]) -> None:
        with self._lock:
            self[name] = {**self[name], **changes}

    def discard(self, name: str, key: str) -> None:
        with self._lock:
            self[name] = {one: value for one, value in self[name].items() if one != key}

    def write_cell(self, sheet: str, index: int, data: bytes) -> None:
        cells, allowed = self._sizes[sheet]
        if not 0 <= index < cells:
            raise IndexError(f"the sheet {sheet!r} has {cells} cells")
        if len(data) > allowed:
            raise ValueError(f"{len(data)} bytes for a cell of the sheet {sheet!r}, {allowed} are allowed")
        self._cells[sheet][index] = data

    def cells(self, sheet: str) -> list[bytes | None]:
        return self._cells[sheet]


class _Server(Server):
    """The server in the process: a thread for each connection."""

    def serve_forever(self) -> None:
        """Accept connections until the process is killed, without polling."""
        self.stop_event = threading.Event()
        current_process()._manager_server = self  # type: ignore[attr-defined]
        self.accepter()


StateProcess._Server = _Server  # type: ignore[attr-defined]
StateProcess.register("dict", _Entries, StateProxy, create_method=False)


def _factory(context: Any, is_titled: bool) -> Callable[..., Any]:
    make = processes.factory(context)

    def titled(**kwargs: Any) -> Any:
        process = make(**kwargs)
        if is_titled:
            process.title = STATE_PROCESS
        return process

    return titled


class _Context:
    """The part of a context that a manager of :mod:`multiprocessing` uses: a process class."""

    def __init__(self, process: Callable[..., Any]) -> None:
        self.Process = process


def _ignore_signals() -> None:
    for signum in HANDLED:
        signal.signal(signum, signal.SIG_IGN)


class _Connection(Connection):
    """A connection that raises ``BlockingIOError`` after a wait of :data:`ANSWER_TIMEOUT`."""

    def _recv_bytes(self, maxsize: int | None = None) -> Any:
        # The timeout of the socket would begin anew with each signal.
        if not self.poll(ANSWER_TIMEOUT):
            raise BlockingIOError
        return super()._recv_bytes(maxsize)  # type: ignore[misc]


def _connect(address: Any, authkey: bytes) -> Connection:
    """Connect to the process that keeps the state."""
    with socket.socket(socket.AF_UNIX) as sock:
        limit = struct.pack("@ll", int(ANSWER_TIMEOUT), int(ANSWER_TIMEOUT % 1 * 1e6))
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            sock.setsockopt(socket.SOL_SOCKET, option, limit)
        sock.connect(address)
        connection = _Connection(sock.detach())
    answer_challenge(connection, authkey)
    deliver_challenge(connection, authkey)
    return connection


managers.listener_client[SERIALIZER] = (Listener, _connect)  # type: ignore[attr-defined]
