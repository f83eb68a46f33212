"""What main adopts: as PID 1 of a container, or as a subreaper, it inherits the orphans of its workers."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

__all__ = ["Reaper"]

PROC = Path("/proc")
# What an ended worker leaves behind is killed along with it; by then it has ended, seconds.
ONCE_MORE = 1.0


class Reaper:
    """Collects the zombies that main has adopted from the sessions of its workers, and no others.

    To wait for *any* child would take its exit status from whoever started it. So candidates are looked for
    in ``/proc``, and collected by pid: a process in a worker's session that does not lead it is no child that
    main itself has made. That is done when a process of the manager has ended, and once more a moment later.

    Args:
        is_ours (Callable): Whether a pid is that of a process of the manager that runs.

    Attributes:
        due: When to :meth:`settle`, on the monotonic clock; ``inf``: when a process has ended.
    """

    def __init__(self, is_ours: Callable[[int], bool]) -> None:
        self._is_ours = is_ours
        self._ended: set[int] = set()
        self._lately: set[int] = set()
        self.due = math.inf

    def exited(self, pid: int) -> None:
        """A process of the manager has ended, and its parent has collected it."""
        self._ended.add(pid)
        self._lately.add(pid)
        self.due = -math.inf

    def settle(self, now: float) -> None:
        """Collect what there is, if it is time to."""
        if now < self.due:
            return
        for pid, session in _zombies():
            is_adopted = pid != session and (session in self._ended or self._is_ours(session))
            # One that a fork server had made is main's child once that server is gone.
            if is_adopted or pid in self._lately:
                with suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
        if self.due == -math.inf:
            self.due = now + ONCE_MORE
        else:
            self.due = math.inf
            # Another process may bear this number some day.
            self._lately.clear()


def _zombies() -> Iterator[tuple[int, int]]:
    """Each dead child that nobody has collected, and its session."""
    with suppress(OSError):
        # It is only looked whether there is any, and left as it is: as a rule there is none.
        if os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return
        me = _status("self")
        # Where /proc is that of an outer namespace, it has other numbers; those of ours are there as well.
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
