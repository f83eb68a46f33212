"""A process that is PID 1, as the main process is in most containers.

The kernel gives it no default actions: a signal without a handler has no effect, unless it comes from outside
of the container and is SIGKILL or SIGSTOP. Orphans of the container become its children.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

__all__ = ["end", "is_init", "obey_early_stop"]


def is_init() -> bool:
    """Return whether the calling process is PID 1 of its namespace."""
    return os.getpid() == 1


def obey_early_stop() -> None:
    """As PID 1, let SIGTERM end this process until it has a handler of its own, as it ends any other."""
    if is_init() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, end)


def end(signum: int, frame: FrameType | None = None) -> None:
    """End this process at once, as the default action of a signal does.

    Args:
        signum (int): The number of the signal; the exit code of PID 1 is this number and 128.
        frame (FrameType | None): Ignored; a signal handler receives it.
    """
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)
    # Only PID 1 comes here.
    os._exit(128 + signum)
