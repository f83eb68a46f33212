"""Reads the figures of the kernel on a process from ``/proc``; ``None`` for a process that is gone.

Where a function takes a ``Task``, ``"PID/task/TID"`` stands for one thread of a process.
"""

from __future__ import annotations

import os
import re
import time
from typing import NamedTuple

__all__ = [
    "EXITED",
    "Task",
    "Usage",
    "catches",
    "name",
    "pss_bytes",
    "rss_bytes",
    "run_delay",
    "signals",
    "stat",
    "state",
    "syscall",
    "tracer",
    "usage",
    "wchan",
]

Task = int | str

EXITED = frozenset(("", "Z", "X"))
"""The states of a process that has exited, as :func:`state` returns them."""

TICK = 1 / os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# The states of a process that has exited, or that a signal or a debugger has stopped.
NOT_RUNNING = frozenset(b"ZXxTt")
# Larger than any of the files.
MAX_BYTES = 8192
_TRACER = re.compile(rb"^TracerPid:\s+(\d+)$", re.MULTILINE)
_SIGNALS = re.compile(rb"^((?:Sig|Shd)\w+):\s+([0-9a-f]+)$", re.MULTILINE)
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
    fields = stat(pid)
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


def rss_bytes(pid: int) -> int | None:
    """Return the resident memory of a process."""
    found = usage(pid)
    return found and found.rss_bytes


def state(pid: Task) -> str:
    """Return the state of the main thread of a process, one letter; empty if the process is gone.

    ``R`` runs or waits for a CPU, ``S`` sleeps, ``D`` sleeps and no signal wakes it, ``T`` was stopped by a
    signal, ``t`` by a debugger, ``Z`` and ``X`` have exited.
    """
    fields = stat(pid)
    return fields[0].decode() if fields else ""


def stat(pid: Task) -> list[bytes]:
    """Return the fields of a process from its state on; the last one holds the rest."""
    data = _read(f"/proc/{pid}/stat")
    # The name of the program may hold any character; the fields after it are numbers.
    return data[data.rfind(b")") + 2 :].split(None, 22)


def tracer(pid: int) -> int:
    """Return the pid of the process that debugs or traces a process; 0 without one."""
    found = _TRACER.search(_read(f"/proc/{pid}/status"))
    return int(found[1]) if found else 0


def signals(pid: int | str, *kinds: str) -> frozenset[int]:
    """Return the signals of a process and its main thread that are of one of several kinds.

    Args:
        pid (int | str): The process; ``"self"`` for the calling one.
        *kinds (str): The names in ``/proc/PID/status``: ``SigCgt`` are handled, ``SigIgn`` ignored,
            ``SigBlk`` blocked, ``SigPnd`` and ``ShdPnd`` pending.
    """
    masks = _SIGNALS.findall(_read(f"/proc/{pid}/status"))
    found = [int(mask, 16) for kind, mask in masks if kind.decode() in kinds]
    return frozenset(bit + 1 for bit in range(64) if any(mask >> bit & 1 for mask in found))


def catches(pid: int, signum: int) -> bool:
    """Return whether a process has a handler for a signal; ``False`` where that is not known."""
    return signum in signals(pid, "SigCgt")


def name(task: Task) -> str:
    """Return the name of a process or a thread, at most 15 characters; empty if it is gone."""
    return _read(f"/proc/{task}/comm").decode(errors="replace").rstrip("\n")


def run_delay(pid: int) -> float:
    """Return how long the main thread of a process has waited for a CPU, seconds; 0 if it is unknown."""
    fields = _read(f"/proc/{pid}/schedstat").split()
    return int(fields[1]) / 1e9 if len(fields) > 1 else 0.0


def wchan(pid: Task) -> str:
    """Return the function of the kernel in which the main thread of a process sleeps, if it does."""
    found = _read(f"/proc/{pid}/wchan").decode("ascii", "replace").strip()
    return "" if found == "0" else found


def syscall(pid: Task) -> str:
    """Return the system call of the main thread of a process, with its arguments, or ``running``.

    It is empty if the process is gone or may not be debugged by this one.
    """
    return _read(f"/proc/{pid}/syscall").decode("ascii", "replace").strip()


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
