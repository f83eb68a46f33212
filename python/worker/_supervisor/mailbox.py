"""Takes messages of slots for the supervisor."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator

from worker.process import SlotMessage

__all__ = ["Mailbox"]


class Mailbox:
    """Keeps messages, left from any thread, until the supervisor reads them.

    Args:
        wake (Callable): Ends the wait of the loop. It is called for a message from another thread.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._messages: deque[SlotMessage] = deque()
        self._reader: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether messages are read: a loop runs."""
        return self._reader is not None

    def open(self) -> None:
        """Accept messages, to be read by the calling thread."""
        self._reader = threading.get_ident()

    def close(self) -> None:
        """Accept no more messages."""
        self._reader = None
        self._messages.clear()

    def __bool__(self) -> bool:
        return bool(self._messages)

    def post(self, message: SlotMessage) -> None:
        """Leave a message."""
        self._messages.append(message)
        if threading.get_ident() != self._reader:
            self._wake()

    def take(self) -> Iterator[SlotMessage]:
        """Yield and remove the messages, including those that arrive meanwhile."""
        while self._messages:
            yield self._messages.popleft()
