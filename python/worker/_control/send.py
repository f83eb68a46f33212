"""The sending end of the control channel, shared by all senders of a process."""

from __future__ import annotations

import os
import select
import time
from collections import deque
from threading import RLock
from typing import Any, Protocol

__all__ = [
    "BUSY",
    "OPERATION",
    "PING",
    "RECYCLE",
    "UPGRADE",
    "Publisher",
    "fileno",
    "has_room",
    "ping",
    "recycle",
    "report_busy",
    "request",
    "send",
]

# The verbs of messages that are tuples.
BUSY, OPERATION, PING, RECYCLE = "__BUSY__", "__OPERATION__", "__PING__", "__RECYCLE__"
UPGRADE = "__UPGRADE__"


class Publisher(Protocol):
    """The sending end of the control channel: a ``Connection``, or any object with its ``send``."""

    def send(self, obj: Any, /) -> None:
        """Pickle ``obj`` and send it as a whole."""


class _SendLock:
    """Keeps the messages of all threads and signal handlers of a process apart."""

    def __init__(self) -> None:
        self._lock = RLock()
        self._waiting: deque[tuple[Publisher, Any]] = deque()
        self._sending = False

    def send(self, publisher: Publisher, message: Any) -> None:
        with self._lock:
            self._waiting.append((publisher, message))
            # A signal handler may interrupt a send of its own thread. It can neither wait for that send nor
            # write between its bytes, so it queues its message, and the interrupted send writes it.
            while self._waiting and not self._sending:
                self._sending = True
                try:
                    if self._waiting:
                        first, first_message = self._waiting.popleft()
                        first.send(first_message)
                finally:
                    self._sending = False


_send_lock = _SendLock()


def _renew_send_lock() -> None:
    global _send_lock
    _send_lock = _SendLock()


# The thread that held the lock does not exist in a forked child, so the lock would never be released there.
os.register_at_fork(after_in_child=_renew_send_lock)


def send(publisher: Publisher, message: Any) -> None:
    """Send one message to the main process, without mixing its bytes with those of other messages.

    A large message takes several writes, and all threads of a process share one connection. The function may
    be called from a signal handler.

    Args:
        publisher (Publisher): The connection. The call blocks while the channel is full.
        message (Any): A command as ``str``, or the tuple of
            :meth:`worker.multiplexer.WorkerMultiplexer.manage`.

    Raises:
        OSError: The main process is gone (``ConnectionError``), or the connection is closed.
    """
    _send_lock.send(publisher, message)


def request(publisher: Publisher, command: str, id: str, origin: str) -> None:  # noqa: A002
    """Send a command to the main process, which shows in the shared state how it goes and how it ends.

    Args:
        publisher (Publisher): As for :func:`send`.
        command (str): The command, such as ``__SCALE__:4``, or :data:`UPGRADE`.
        id (str): The id of the operation: a new one, of 1 to 32 characters.
        origin (str): The origin of the request in words, for the log: ``inspector 127.0.0.1``.

    Raises:
        OSError: As for :func:`send`.
    """
    verb = (UPGRADE,) if command == UPGRADE else (OPERATION, command)
    send(publisher, (*verb, id, origin, time.time()))


def ping(publisher: Publisher, token: str) -> None:
    """Ask the main process to show a token in the shared state.

    Args:
        publisher (Publisher): As for :func:`send`.
        token (str): The token: a new one, of 1 to 32 characters.

    Raises:
        OSError: As for :func:`send`.
    """
    send(publisher, (PING, token))


def recycle(publisher: Publisher, cause: str, value: float, limit: float) -> bool:
    """Tell the main process that this server has reached a limit; return whether there was room for it.

    Args:
        publisher (Publisher): As for :func:`send`; this call never blocks.
        cause (str): The setting: ``max_rss``.
        value (float): The figure that has reached the limit.
        limit (float): The limit.

    Raises:
        OSError: As for :func:`send`.
    """
    return _send_if_room(publisher, (RECYCLE, cause, value, limit))


def report_busy(publisher: Publisher) -> bool:
    """Tell the main process that this server has become busy; return whether there was room for it.

    Args:
        publisher (Publisher): As for :func:`send`; this call never blocks.

    Raises:
        OSError: As for :func:`send`.
    """
    return _send_if_room(publisher, (BUSY,))


def _send_if_room(publisher: Publisher, message: tuple[Any, ...]) -> bool:
    if not has_room(publisher):
        return False
    send(publisher, message)
    return True


def fileno(connection: Any) -> int | None:
    """Return the file descriptor of a connection; ``None`` if it has none that can be polled."""
    try:
        number = connection.fileno()
    except (AttributeError, OSError, ValueError):
        return None
    return number if type(number) is int and number >= 0 else None


def has_room(publisher: Publisher, seconds: float = 0.0) -> bool:
    """Return whether the control channel takes a short message, at once or within a time.

    The channel is full if the main process does not read it: a send would block until it does. A publisher
    without a file descriptor is never full.

    Args:
        publisher (Publisher): As for :func:`send`.
        seconds (float): How long to wait for room. Defaults to 0.
    """
    number = fileno(publisher)
    if number is None:
        return True
    poll = select.poll()
    poll.register(number, select.POLLOUT)
    return bool(poll.poll(seconds * 1000))
