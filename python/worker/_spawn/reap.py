"""Collects the orphans of workers, which a main process that is PID 1 or a subreaper inherits."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

__all__ = ["Reaper"]

PROC = Path("/proc")
# The rest of a worker's group is killed with it, and has exited after this time, seconds.
RECHECK = 1.0


class Reaper:
    """Collects the zombies that the main process has adopted from the sessions of its workers, and no others.

    Waiting for *any* child would steal the exit status from the code that started it. So the reaper searches
    ``/proc``, and collects by pid. A process in a worker's session that does not lead it was not started by
    the main process. The search follows each exit of a managed process, and is repeated a moment later.

    Args:
        is_ours (Callable): Returns whether a pid is that of a managed process that runs.

    Attributes:
        due: When to :meth:`settle`, on the monotonic clock; ``inf``: after the next exit.
    """

    def __init__(self, is_ours: Callable[[int], bool]) -> None:
        self._is_ours = is_ours
        self._ended: set[int] = set()
        self._recently_ended: set[int] = set()
        self.due = math.inf

    def exited(self, pid: int) -> None:
        """Take note that a managed process has exited and was collected."""
        self._ended.add(pid)
        self._recently_ended.add(pid)
        self.due = -math.inf

    def settle(self, now: float) -> None:
        """Collect the adopted zombies, if it is time to."""
        if now < self.due:
            return
        for pid, session in _zombies():
            is_adopted = pid != session and (session in self._ended or self._is_ours(session))
            # A child of a fork server that has exited is inherited by the main process.
            if is_adopted or pid in self._recently_ended:
                with suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
        if self.due == -math.inf:
            self.due = now + RECHECK
        else:
            self.due = math.inf
            # The pids may be reused.
            self._recently_ended.clear()


def _zombies() -> Iterator[tuple[int, int]]:
    """Yield the pid and the session of each zombie that is a child of this process."""
    with suppress(OSError):
        # WNOWAIT leaves the child as it is. As a rule there is none, and the search ends here.
        if os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return
        me = _status("self")
        # The /proc of an outer pid namespace has other pids; the fields NSpid and NSsid have ours as well.
        depth = len(me["NSpid"]) - 1
        for entry in os.listdir(PROC):
            with suppress(OSError, LookupError):
                status = _status(entry) if entry.isdigit() else {}
                if status["State"][0] == "Z" and status["PPid"] == me["Pid"]:
                    yield int(status["NSpid"][depth]), int(status["NSsid"][depth])


def _status(pid: str) -> dict[str, list[str]]:
    lines = (PROC / pid / "status").read_text(errors="replace").splitlines()
    fields = (line.partition(":") for line in lines)
    return {name: value.split() for name, _, value in fields}
