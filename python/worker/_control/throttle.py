"""What main has to say against what it is sent, so that nobody can keep it busy with complaining."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable

from sanic.log import error_logger

__all__ = ["LogThrottle"]

# How many complaints of one sender are logged within how many seconds: whoever floods main with nonsense
# is neither to keep it from all else nor to fill the disk.
MAX_LINES = 100
SPAN = 1.0


class LogThrottle:
    """Logs the first complaints of each sender in full, and how many more there were.

    Args:
        name_of (Callable): Who a sender is, in words.
    """

    def __init__(self, name_of: Callable[[int | None], str]) -> None:
        self._name_of = name_of
        self._made: Counter[int | None] = Counter()
        self._names: dict[int | None, str] = {}
        self.flush_at = math.inf
        """When they are to be summed up, on the monotonic clock."""

    def log(self, sender: int | None, text: Callable[[], str], *, exc_info: bool = False) -> None:
        """Log the text, which is made only then, unless there were many of this sender of late.

        Args:
            sender (int | None): Of whom it is.
            text (Callable): Makes the text.
            exc_info (bool): Log the traceback of the present exception as well. Defaults to ``False``.
        """
        if not self._made:
            self.flush_at = time.monotonic() + SPAN
        if sender not in self._made:
            # Now, as the sender may be gone by the time it is summed up.
            self._names[sender] = self._name_of(sender)
        self._made[sender] += 1
        if self._made[sender] <= MAX_LINES:
            error_logger.error("%s", text(), exc_info=exc_info)

    def flush(self) -> None:
        """Tell how many were not logged, and begin anew."""
        for sender, count in self._made.items():
            if count > MAX_LINES:
                error_logger.error(
                    "Monitor suppressed %s more lines like these within a second, about %s.",
                    count - MAX_LINES,
                    self._names[sender],
                )
        self._made.clear()
        self._names.clear()
        self.flush_at = math.inf
