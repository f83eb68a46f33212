"""Decodes received commands, and waits on connections that have no file descriptor."""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from math import isfinite
from multiprocessing.connection import wait as wait_for
from typing import Any, Protocol

from worker._control.send import BUSY, OPERATION, PING, RECYCLE, UPGRADE, fileno
from worker._core import Monitor, parse
from worker._core.messages import (
    RECYCLE_CAUSES,
    Busy,
    Command,
    Corrupt,
    Event,
    Exited,
    Invalid,
    Manage,
    Opaque,
    Ping,
    Received,
    Recycle,
    Requested,
    Restart,
    Scale,
    Stop,
    Terminate,
    Upgrade,
)

__all__ = ["ConnectionMonitor", "MonitorProtocol", "decode_command", "fileno", "interpret", "open_monitor"]

# The largest length of an id, and of the token of a ping.
MAX_ID = 32
SHORT = f"has at most {MAX_ID} characters"
# How often a connection that cannot wake its reader is polled, seconds.
TICK = 0.1


class MonitorProtocol(Protocol):
    """The wait of the main process: a ``Monitor`` of the core, or a :class:`ConnectionMonitor`."""

    def watch(self, key: str, pid: int, sentinel: int | None) -> None:
        """Report the exit of a process."""

    def unwatch(self, key: str) -> None:
        """Stop watching a process."""

    def wait(self, timeout: float | None, messages: bool = True) -> list[Any]:
        """Wait for events, at most ``timeout`` seconds (``None``: without limit).

        Without ``messages``, only messages of processes that have exited are received.
        """

    def wake(self) -> None:
        """End the current wait, or the next one, at once; from any thread."""

    def close(self) -> None:
        """Close the file descriptors."""


def open_monitor(connection: Any, notify_fd: int | None = None) -> MonitorProtocol:
    """Return a monitor of a connection and of a notification; the core's, if there is a descriptor."""
    number = fileno(connection)
    return ConnectionMonitor(connection, notify_fd) if number is None else Monitor(number, notify_fd)


def decode_command(command: Command | Opaque) -> Command:
    """Return the command of a frame; an opaque one is unpickled, as in Sanic.

    Unpickling runs code that the sender has chosen. The senders are children of this process, which gives
    them their code: they gain nothing by it.
    """
    if not isinstance(command, Opaque):
        return command
    try:
        message = pickle.loads(command.payload)
    # Unpickling runs code of the sender, which may raise any error. None may end the main process.
    except BaseException as error:
        return Invalid.because(command.payload, "it cannot be unpickled", error)
    return interpret(message)


def interpret(message: Any) -> Command:
    """Return the command of an object: falsy, a text of the grammar, or a tuple of 7 or 8."""
    try:
        return _interpreted(message)
    # Inspecting an object runs its code, too.
    except BaseException as error:
        return Invalid.because(message, "it cannot be inspected", error)


def _interpreted(message: Any) -> Command:
    if not message:
        return Stop()
    if isinstance(message, str):
        command: Command = parse(message)
        return command
    if isinstance(message, tuple):
        return _verb(message) or _manage(message)
    return Invalid(message, f"a {type(message).__name__} is not a command: send a str or a tuple of 8")


def _verb(message: tuple[Any, ...]) -> Command | None:
    """Return the command of a tuple that begins with a verb."""
    match message:
        case (str(verb), str(text), str(id_), str(origin), float(made_at)) if verb == OPERATION:
            command = parse(text)
            if len(id_) > MAX_ID or not (isinstance(command, (Restart, Scale)) or command == Terminate()):
                return Invalid(message, f"an operation is a restart, a scaling or a stop; its id {SHORT}")
            return Requested(command, id_, origin, made_at)
        case (str(verb), str(id_), str(origin), float(made_at)) if verb == UPGRADE:
            if len(id_) > MAX_ID:
                return Invalid(message, f"the id of an upgrade {SHORT}")
            return Requested(Upgrade(), id_, origin, made_at)
        case (str(verb), str(token)) if verb == PING:
            return Ping(token) if len(token) <= MAX_ID else Invalid(message, f"the token of a ping {SHORT}")
        case (str(verb), str(cause), int() | float() as value, int() | float() as limit) if verb == RECYCLE:
            if cause not in RECYCLE_CAUSES or not (isfinite(value) and isfinite(limit)):
                return Invalid(message, f"a limit is one of {', '.join(RECYCLE_CAUSES)}, and finite")
            return Recycle(cause, value, limit)
        case (str(verb),) if verb == BUSY:
            return Busy()
        case _:
            return None


def _manage(message: tuple[Any, ...]) -> Command:
    if len(message) not in (7, 8):
        return Invalid(message, f"a tuple of {len(message)} is not a command: a tuple of 8 manages a process")
    ident, func, kwargs = message[:3]
    workers = message[7] if len(message) == 8 else 1
    checks = (
        (isinstance(ident, str) and ident != "", "the name must be a str that is not empty"),
        (callable(func), "the function must be callable"),
        (
            isinstance(kwargs, Mapping) and all(isinstance(key, str) for key in kwargs),
            "the arguments must be a dict with str keys",
        ),
        (type(workers) is int and workers > 0, "the number of workers must be a whole number from 1 on"),
    )
    for is_met, requirement in checks:
        if not is_met:
            return Invalid(message, requirement)
    return Manage(*message)


class ConnectionMonitor:
    """The monitor of a connection without a file descriptor: any object with ``poll`` and ``recv``.

    It receives one message in each wait, and none after a falsy one. A process is watched only if it has a
    pid and a sentinel that can be polled. Such a connection cannot be waited for together with descriptors,
    so the monitor polls both every tenth of a second.
    """

    def __init__(self, connection: Any, notify_fd: int | None = None) -> None:
        self._connection = connection
        self._notify_fd = notify_fd
        self._watched: dict[str, tuple[int, int]] = {}
        self._woken = threading.Event()
        self._ended = False

    def watch(self, key: str, pid: int, sentinel: int | None) -> None:
        """Report the exit of a process, if its sentinel can be polled."""
        if type(sentinel) is int:
            self._watched[key] = (pid, sentinel)

    def unwatch(self, key: str) -> None:
        """Stop watching a process."""
        self._watched.pop(key, None)

    def wait(self, timeout: float | None, messages: bool = True) -> list[Event]:
        """Wait for a message, an exit or :meth:`wake`, at most ``timeout`` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            step = TICK if deadline is None else min(TICK, max(0.0, deadline - time.monotonic()))
            events = self._receive(0 if self._woken.is_set() else step) if messages else []
            events += self._exits()
            self._listen()
            if events or self._woken.is_set() or (deadline is not None and time.monotonic() >= deadline):
                self._woken.clear()
                return events

    def wake(self) -> None:
        """End the current wait, or the next one."""
        self._woken.set()

    def close(self) -> None:
        """Stop watching all processes. The connection stays open: it belongs to the caller."""
        self._watched.clear()

    def _receive(self, timeout: float) -> list[Event]:
        if self._ended:
            self._woken.wait(timeout)
            return []
        try:
            if not self._connection.poll(timeout):
                return []
            message = self._connection.recv()
        except (EOFError, OSError) as error:
            self._ended = True
            return [Corrupt(f"the connection has ended ({error!r})", b"")]
        except Exception as error:
            return [Received(Invalid.because(None, "it cannot be received", error))]
        command = interpret(message)
        self._ended = isinstance(command, Stop)
        return [Received(command)]

    def _listen(self) -> None:
        if self._notify_fd is not None:
            with suppress(BlockingIOError):
                os.read(self._notify_fd, 4096)
                self._woken.set()

    def _exits(self) -> list[Event]:
        ready = wait_for([sentinel for _, sentinel in self._watched.values()], 0) if self._watched else []
        gone = [(key, pid) for key, (pid, sentinel) in self._watched.items() if sentinel in ready]
        for key, _ in gone:
            del self._watched[key]
        return [Exited(key, pid, None) for key, pid in gone]
