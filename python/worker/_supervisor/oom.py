"""Tells which processes the kernel has killed for want of memory."""

from __future__ import annotations

from worker._system import cgroup

__all__ = ["OomKills"]


class OomKills:
    """Compares the kernel's counts of such kills with the exits that they explain.

    The kernel counts them for each control group, and does not tell which process it was. So the count is
    read at the start of each process, and at an exit by SIGKILL that the main process has not sent: if it has
    grown by then, one of these kills was that of the process.

    Args:
        root (str): As for :func:`worker._system.cgroup.own`. Defaults to ``"/"``.
    """

    def __init__(self, root: str = "/") -> None:
        self._root = root
        # The group of each process: one that has exited is in no group of its own any more.
        self._groups: dict[int, cgroup.Cgroup] = {}
        # The kills of each group that are explained, or older than the last start.
        self._explained: dict[str, int] = {}

    def note_start(self, pid: int) -> None:
        """Take note of a process that has just been started."""
        group = cgroup.own(pid, self._root)
        self._groups[pid] = group
        self._explained[group.memory_directory] = group.oom_kills()

    def explains(self, pid: int, *, was_killed: bool) -> bool:
        """Return whether the kernel has killed a process that has exited for want of memory.

        Args:
            pid (int): The process.
            was_killed (bool): Whether SIGKILL ended it, and the main process had not sent that.
        """
        group = self._groups.pop(pid, None)
        if group is None or not was_killed:
            return False
        name = group.memory_directory
        is_explained = group.oom_kills() > self._explained.get(name, 0)
        if is_explained:
            # Several processes may have been killed at once.
            self._explained[name] = self._explained.get(name, 0) + 1
        return is_explained
