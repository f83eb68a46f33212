"""Reads the limits and the events of control groups, of version 1, version 2, and both beside each other.

A group has those of its ancestors, too, as far as they are visible from here: a container sees its own group
as the topmost one. A file that is missing or unreadable means that there is no limit, or no event.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence

__all__ = ["Cgroup", "available_cpus", "available_memory", "own"]

# From this size on, a limit of version 1 means that there is none.
V1_UNLIMITED = 1 << 60
# The key of the one hierarchy of version 2. Each of version 1 has the name of its controller.
V2 = ""
# How the kernel writes a space, a tab, a line end and a backslash in a path.
_ESCAPED = re.compile(r"\\([0-7]{3})")


class Cgroup:
    """The control group of one process.

    Args:
        hierarchies (Mapping[str, Sequence[str]]): For each controller of version 1, and for :data:`V2`, the
            directory of the group and those of its ancestors, outermost last.
    """

    def __init__(self, hierarchies: Mapping[str, Sequence[str]]) -> None:
        self._hierarchies = hierarchies

    @property
    def memory_directory(self) -> str:
        """The directory of the group that limits its memory; empty if it is not visible."""
        _, directories = self._files("memory", "", "")
        return next(iter(directories), "")

    def memory_limit(self) -> int | None:
        """Return the tightest limit of the memory, bytes; ``None`` without one."""
        return min((limit for limit, _ in self._memory_limits()), default=None)

    def memory_available(self) -> int | None:
        """Return the memory below :meth:`memory_limit` that is free or holds idle pages of files, bytes.

        ``None`` without a limit. A tighter limit of one group may leave more than a wider one of another.
        """
        current, _ = self._files("memory", "memory.usage_in_bytes", "memory.current")
        idle, _ = self._files("memory", "total_inactive_file", "inactive_file")
        found = []
        for limit, directory in self._memory_limits():
            used = (_number(f"{directory}/{current}") or 0) - _value(f"{directory}/memory.stat", idle)
            found.append(max(0, limit - max(0, used)))
        return min(found, default=None)

    def cpu_quota(self) -> float | None:
        """Return the tightest limit of the CPU time, as a number of CPUs; ``None`` without one."""
        name, directories = self._files("cpu", "cpu.cfs_quota_us", "cpu.max")
        quotas = []
        for directory in directories:
            quota, _, period = _read(f"{directory}/{name}").partition(" ")
            period = period or _read(f"{directory}/cpu.cfs_period_us")
            if quota.strip().isdecimal() and period.strip().isdecimal() and int(period):
                quotas.append(int(quota) / int(period))
        return min(quotas, default=None)

    def throttled_seconds(self) -> float:
        """Return how long the group has been kept from running by its quota, seconds, over all CPUs."""
        key, directories = self._files("cpu", "throttled_time", "throttled_usec")
        unit = 1e-9 if key == "throttled_time" else 1e-6
        return unit * sum(_value(f"{directory}/cpu.stat", key) for directory in directories)

    def oom_kills(self) -> int:
        """Return the number of processes of the group that the kernel has killed for want of memory."""
        name, directories = self._files("memory", "memory.oom_control", "memory.events")
        # A group of version 2 without the controller has no count. That of its ancestor includes it.
        files = (f"{directory}/{name}" for directory in directories)
        return _value(next(filter(os.path.exists, files), ""), "oom_kill")

    def is_frozen(self) -> bool:
        """Return whether the group, or an ancestor of it, is frozen or being frozen."""
        v1, v2 = (next(iter(self._hierarchies.get(key, ())), "") for key in ("freezer", V2))
        state = _read(f"{v1}/freezer.state").strip() if v1 else ""
        return state in ("FROZEN", "FREEZING") or bool(v2 and _value(f"{v2}/cgroup.events", "frozen"))

    def _files(self, controller: str, v1: str, v2: str) -> tuple[str, Sequence[str]]:
        """Return the name that a fact has where its controller is, and the directories of the group there."""
        if controller in self._hierarchies:
            return v1, self._hierarchies[controller]
        return v2, self._hierarchies.get(V2, ())

    def _memory_limits(self) -> Iterator[tuple[int, str]]:
        name, directories = self._files("memory", "memory.limit_in_bytes", "memory.max")
        for directory in directories:
            limit = _number(f"{directory}/{name}")
            if limit is not None and limit < V1_UNLIMITED:
                yield limit, directory


def own(pid: int | str = "self", root: str = "/") -> Cgroup:
    """Return the control group of a process.

    Args:
        pid (int | str): The process. Defaults to ``"self"``.
        root (str): The directory in which ``/proc`` and the mounts of the groups are looked for. Defaults to
            ``"/"``.
    """
    root = root.rstrip("/")
    mounts = [*_mounts(root)]
    hierarchies: dict[str, list[str]] = {}
    for line in _read(f"{root}/proc/{pid}/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for controller in controllers.split(","):
            found = [(top, point) for names, top, point in mounts if controller in names]
            if found:
                hierarchies[controller] = [root + directory for directory in _lineage(path, found)]
    return Cgroup(hierarchies)


def available_cpus(root: str = "/") -> int:
    """Return the number of CPUs that this process may use, by its affinity and the quota of its group.

    A part of a CPU counts as a whole one.
    """
    quota = own(root=root).cpu_quota()
    cpus = len(os.sched_getaffinity(0))
    return max(1, cpus if quota is None else min(cpus, math.ceil(quota)))


def available_memory(root: str = "/") -> int | None:
    """Return the memory that is available to this process, by the machine and its group, bytes.

    ``None`` if neither is known.
    """
    machine = _value(f"{root.rstrip('/')}/proc/meminfo", "MemAvailable:") * 1024
    known = (machine or None, own(root=root).memory_available())
    return min((memory for memory in known if memory is not None), default=None)


def _mounts(root: str) -> Iterator[tuple[Sequence[str], str, str]]:
    """Yield the controllers of each mounted hierarchy, the group at its top, and the mount point."""
    for line in _read(f"{root}/proc/self/mountinfo").splitlines():
        mount, _, rest = line.partition(" - ")
        kind, _, options = rest.partition(" ")
        if kind in ("cgroup", "cgroup2"):
            top, point = (_ESCAPED.sub(lambda c: chr(int(c[1], 8)), path) for path in mount.split(" ")[3:5])
            yield (V2,) if kind == "cgroup2" else options.rpartition(" ")[2].split(","), top, point


def _lineage(path: str, mounts: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Yield the directory of a group and those of its ancestors in a hierarchy, which may be mounted twice.

    A group outside of all mounts, as after a change of namespaces, counts as the topmost visible one.
    """
    found = ((point, os.path.relpath(path, top)) for top, point in mounts)
    inside = (one for one in found if one[1].split("/")[0] != os.pardir)
    point, inner = next(inside, (mounts[0][1], os.curdir))
    while inner not in ("", os.curdir):
        yield os.path.join(point, inner)
        inner = os.path.dirname(inner)
    yield point


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""


def _number(path: str) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdecimal() else None


def _value(path: str, key: str) -> int:
    """Return the number of a key in a file with a key, a number and perhaps a unit on each line; else 0."""
    for line in _read(path).splitlines():
        name, _, rest = line.partition(" ")
        number = rest.split(None, 1)[:1]
        if name == key and number and number[0].isdecimal():
            return int(number[0])
    return 0
