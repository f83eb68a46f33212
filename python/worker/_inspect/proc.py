"""Reads the figures of the kernel on a process from ``/proc``; ``None`` for a process that is gone."""

from __future__ import annotations

import os
import re
import time
from typing import NamedTuple

__all__ = ["Usage", "pss_bytes", "usage"]

TICK = 1 / os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# The states of a process that has exited, or that a signal or a debugger has stopped.
NOT_RUNNING = frozenset(b"ZXxTt")
# Larger than any of the files.
MAX_BYTES = 8192
_PSS = re.compile(rb"^Pss:\s+(\d+) kB$", re.MULTILINE)


class Usage(NamedTuple):
    """The resources that a process has used.

    Attributes:
        is_running: Whether it runs: it has not exited, and was not stopped by SIGSTOP.
        uptime: The time since its start, seconds.
        cpu_seconds: CPU time in user and kernel mode, of the process alone.
        rss_bytes: Resident memory.
    """

    is_running: bool
    uptime: float
    cpu_seconds: float
    rss_bytes: int


def usage(pid: int) -> Usage | None:
    """Return the resources that a process has used."""
    data = _read(f"/proc/{pid}/stat")
    # The name of the program may hold any character; the fields after it are numbers.
    fields = data[data.rfind(b")") + 2 :].split(None, 22)
    if len(fields) < 22:
        return None
    user, system, started, pages = (int(fields[number]) for number in (11, 12, 19, 21))
    return Usage(
        is_running=fields[0][0] not in NOT_RUNNING,
        uptime=max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started * TICK),
        cpu_seconds=(user + system) * TICK,
        rss_bytes=pages * PAGE_BYTES,
    )


def pss_bytes(pid: int) -> int | None:
    """Return the proportional memory of a process: a page that n processes map counts as one n-th.

    The kernel walks all pages of the process for it, which takes milliseconds.
    """
    found = _PSS.search(_read(f"/proc/{pid}/smaps_rollup"))
    return int(found[1]) * 1024 if found else None


def _read(path: str) -> bytes:
    """Return the content of a file of ``/proc``; empty if the process is gone or belongs to another user."""
    # A file object takes longer to make than the kernel takes to answer.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(descriptor, MAX_BYTES)
    except OSError:
        return b""
    finally:
        os.close(descriptor)
