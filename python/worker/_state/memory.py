"""The file that holds the shared state, and the descriptors that announce a change of it."""

from __future__ import annotations

import fcntl
import os
import sys
import tempfile
from contextlib import suppress

__all__ = ["address_space", "anonymous_file", "notifier"]


def anonymous_file(size: int) -> int:
    """Return a file of zeros, without a name, that takes no memory yet."""
    try:
        memory = os.memfd_create("sanic-worker", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    # The system does not have the call, or a filter of system calls refuses it.
    except (AttributeError, OSError):
        with tempfile.TemporaryFile(prefix="sanic-worker-") as file:
            memory = os.dup(file.fileno())
    try:
        os.fchmod(memory, 0o600)
        os.ftruncate(memory, size)
        # A read behind the end of a shortened file kills the reader. Only a file on disk has no seals.
        with suppress(OSError, AttributeError):
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(memory)
        raise
    return memory


def address_space() -> int:
    """Return the address space limit of this process, bytes."""
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def notifier() -> tuple[int, int]:
    """Return the two ends of the notification, to read from and to write to; neither blocks."""
    if hasattr(os, "eventfd"):
        notify_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        return notify_fd, notify_fd
    notify_fd, wake = os.pipe()
    os.set_blocking(notify_fd, False)
    os.set_blocking(wake, False)
    return notify_fd, wake
