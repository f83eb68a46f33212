"""The controlling terminal of the main process: tells whether a SIGHUP means that it is gone."""

from __future__ import annotations

import errno
import math
import os
import time

__all__ = ["Terminal"]

PATH = "/dev/tty"
# A shell that exits sends SIGHUP to its jobs while the terminal still exists. The terminal is checked again
# after this time, seconds.
RECHECK = 1.0


class Terminal:
    """The controlling terminal of the calling process at the creation of this object, if there is one.

    A SIGHUP does not carry its reason: a shell passes it on, with its own pid. Without a terminal, it is no
    hangup.

    Attributes:
        check_at: When to check the terminal again, on the monotonic clock; ``inf``: never.
    """

    def __init__(self) -> None:
        self._was_there = _error_of_opening() == 0
        self.check_at = math.inf

    def is_gone(self) -> bool:
        """Return whether there was a terminal that is closed now, or that its session has lost."""
        return self._was_there and _error_of_opening() in (errno.ENXIO, errno.EIO)

    def hangs_up(self) -> bool:
        """Return whether a SIGHUP that has come is a hangup; if not, plan another check."""
        if self.is_gone():
            self.check_at = math.inf
            return True
        self.check_at = time.monotonic() + RECHECK if self._was_there else math.inf
        return False

    def has_hung_up(self, now: float) -> bool:
        """Return whether the planned check is due, and the terminal has gone since the last SIGHUP."""
        if now < self.check_at:
            return False
        self.check_at = math.inf
        return self.is_gone()


def _error_of_opening() -> int:
    try:
        os.close(os.open(PATH, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        return error.errno or errno.EINVAL
    return 0
