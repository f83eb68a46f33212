"""Read the resources that a process uses, as the kernel counts them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def used(pid: int) -> tuple[int, int]:
    """Return the voluntary switches of a process, and its running time, ns."""
    switches = running = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        status = (task / "status").read_text()
        switches += int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])
        running += int((task / "schedstat").read_text().split()[0])
    return switches, running


def resident(pid: int) -> int:
    """Return the resident memory of a process, KiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def family(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    found = [pid]
    for one in found:
        with suppress(OSError):
            for task in Path(f"/proc/{one}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


def proportional(pid: int) -> float:
    """Return the memory of a process, MB; what several processes share counts in proportion."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(rollup.partition("\nPss:")[2].split()[0]) / 1024
