"""Collects the orphans of other processes, which a main process that is PID 1 or a subreaper inherits."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

__all__ = ["Reaper"]

PROC = Path("/proc")
# The rest of a worker's group is killed with it, and has exited after this time, seconds.
RECHECK = 1.0
# As PID 1: the shortest time from one search to the next, seconds. Many orphans may exit one after another.
PAUSE = 0.1

# Application code may move the main process to another session, after it has started a child.
_first_session = os.getsid(0)


class Reaper:
    """Collects the zombies that the main process has adopted, and no others.

    Waiting for *any* child would steal the exit status from the code that started it. So the reaper searches
    ``/proc``, and collects by pid. A child of the main process is born in its session, and can leave it only
    to lead another one. A zombie in a session that it does not lead, and that is not the main process's, was
    started by another process. Any other zombie may be a child of the application's code, and is left to it.

    The search follows each exit of a managed process, and is repeated a moment later; as PID 1, it follows
    each exit of any child (SIGCHLD).

    Attributes:
        due: When to :meth:`settle`, on the monotonic clock; ``inf``: after the next exit.
    """

    def __init__(self) -> None:
        self._recently_ended: set[int] = set()
        self._last_search = -math.inf
        self.due = math.inf

    def exited(self, pid: int) -> None:
        """Take note that a managed process has exited and was collected."""
        self._recently_ended.add(pid)
        self.due = -math.inf

    def child_exited(self) -> None:
        """Take note that a child of any kind has exited."""
        self.due = min(self.due, self._last_search + PAUSE)

    def settle(self, now: float) -> None:
        """Collect the adopted zombies, if it is time to."""
        if now < self.due:
            return
        self._last_search = now
        was_exit = self.due == -math.inf
        # Set before the search: another child may exit meanwhile.
        self.due = now + RECHECK if was_exit else math.inf
        ours = {_first_session, os.getsid(0)}
        for pid, session in _zombies():
            # A child of a preload process that has exited is inherited by the main process.
            if session not in {pid, *ours} or pid in self._recently_ended:
                with suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
        if not was_exit:
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
