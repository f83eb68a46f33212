"""Logs problems with received messages, at a limited rate."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable

from sanic.log import error_logger

__all__ = ["LogThrottle"]

# The largest number of lines about one sender within one span, and the length of a span in seconds. A flood
# of invalid messages must neither keep the main process busy nor fill the disk.
MAX_LINES = 100
SPAN = 1.0


class LogThrottle:
    """Logs the first lines about each sender in full, and the number of further ones.

    Args:
        name_of (Callable): Returns the name of a sender, by its pid.
    """

    def __init__(self, name_of: Callable[[int | None], str]) -> None:
        self._name_of = name_of
        self._counts: Counter[int | None] = Counter()
        self._names: dict[int | None, str] = {}
        self.flush_at = math.inf
        """When the further ones are to be summed up, on the monotonic clock."""

    def log(self, sender: int | None, text: Callable[[], str], *, exc_info: bool = False) -> None:
        """Log a line about a sender, unless this span has had too many about it.

        Args:
            sender (int | None): The pid of the sender.
            text (Callable): Makes the text; called only if it is logged.
            exc_info (bool): Log the traceback of the current exception as well. Defaults to ``False``.
        """
        if not self._counts:
            self.flush_at = time.monotonic() + SPAN
        if sender not in self._counts:
            # Now: the sender may have exited when the lines are summed up.
            self._names[sender] = self._name_of(sender)
        self._counts[sender] += 1
        if self._counts[sender] <= MAX_LINES:
            error_logger.error("%s", text(), exc_info=exc_info)

    def flush(self) -> None:
        """Log the number of lines that were left out, and begin a new span."""
        for sender, count in self._counts.items():
            if count > MAX_LINES:
                error_logger.error(
                    "Monitor suppressed %s more lines like these within a second, about %s.",
                    count - MAX_LINES,
                    self._names[sender],
                )
        self._counts.clear()
        self._names.clear()
        self.flush_at = math.inf
