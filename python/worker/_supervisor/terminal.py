"""The controlling terminal of the main process: whether a SIGHUP says that it is gone."""

from __future__ import annotations

import errno
import math
import os
import time

__all__ = ["Terminal"]

PATH = "/dev/tty"
# A shell that hangs up on its jobs as it ends sends them SIGHUP while the terminal is still there: how long
# after the signal its end is looked for, seconds.
AFTERTHOUGHT = 1.0


class Terminal:
    """The terminal that the calling process has when this is made, if it has one.

    A SIGHUP itself does not tell its reason: a shell sends it on, with its own pid. Where there never was a
    terminal, it is no hangup.

    Attributes:
        look_again: When the reason of the last SIGHUP is asked again, on the monotonic clock; ``inf``: never.
    """

    def __init__(self) -> None:
        self._was_there = _error_of_opening() == 0
        self.look_again = math.inf

    def is_gone(self) -> bool:
        """Whether there was a terminal, and it is closed, or its session has lost it."""
        return self._was_there and _error_of_opening() in (errno.ENXIO, errno.EIO)

    def hangs_up(self) -> bool:
        """Whether a SIGHUP that has come is the hangup; if it is not, it is asked again a moment later."""
        if self.is_gone():
            self.look_again = math.inf
            return True
        self.look_again = time.monotonic() + AFTERTHOUGHT if self._was_there else math.inf
        return False

    def has_hung_up(self, now: float) -> bool:
        """Whether it is time to ask again, and the terminal has gone since the last SIGHUP."""
        if now < self.look_again:
            return False
        self.look_again = math.inf
        return self.is_gone()


def _error_of_opening() -> int:
    try:
        os.close(os.open(PATH, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        return error.errno or errno.EINVAL
    return 0
