"""The sending end of the pipe to the main process, as every sender of one process shares it."""

from __future__ import annotations

import os
from collections import deque
from threading import RLock
from typing import Any, Protocol

__all__ = ["Publisher", "send"]


class Publisher(Protocol):
    """What carries messages to the main process: a ``Connection``, or anything with its ``send``."""

    def send(self, obj: Any, /) -> None:
        """Pickle ``obj`` and hand it over whole."""


class _Turn:
    """Whose turn it is: one message after the other, whoever sends."""

    def __init__(self) -> None:
        self._lock = RLock()
        self._waiting: deque[tuple[Publisher, Any]] = deque()
        self._sending = False

    def send(self, publisher: Publisher, message: Any) -> None:
        with self._lock:
            self._waiting.append((publisher, message))
            # A signal handler may come in the middle of its own thread's send, where it can neither wait
            # for that to end nor write between its bytes: it leaves its message for the send it interrupted.
            while self._waiting and not self._sending:
                self._sending = True
                try:
                    if self._waiting:
                        first, first_message = self._waiting.popleft()
                        first.send(first_message)
                finally:
                    self._sending = False


_turn = _Turn()


def _new_turn() -> None:
    global _turn
    _turn = _Turn()


# The thread that held the lock does not exist in a forked child: nobody there would ever release it.
os.register_at_fork(after_in_child=_new_turn)


def send(publisher: Publisher, message: Any) -> None:
    """Send one message to the main process, whole, whatever else this process sends meanwhile.

    A large message is more than one write, and the threads of a process share one connection: without
    taking turns their bytes mix. It may be called from a signal handler.

    Args:
        publisher (Publisher): The connection. It blocks while the pipe is full.
        message (Any): What the main process shall receive: a command as ``str``, or the tuple
            of :meth:`worker.multiplexer.WorkerMultiplexer.manage`.

    Raises:
        OSError: The main process is gone (``ConnectionError``), or the connection is closed.
    """
    _turn.send(publisher, message)
