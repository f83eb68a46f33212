"""The main process that this one replaces: its processes may still listen on the same addresses."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from worker._system import handover, proc

__all__ = ["Succession"]

# The time from one try to take an address to the next, seconds.
RETRY_INTERVAL = 0.1


def _predecessor() -> int:
    found = handover.predecessor()
    return 0 if found is None else found.pid


@dataclass(frozen=True)
class Succession:
    """The predecessor of a main process, for the child to which it is passed.

    Attributes:
        pid: Its pid; 0 if there is none. Defaults to that of the calling main process.
    """

    pid: int = field(default_factory=_predecessor)

    def awaits_address(self) -> bool:
        """Return whether the predecessor still runs; if so, after a short wait."""
        found = proc.usage(self.pid) if self.pid else None
        if found is None or not found.is_running:
            return False
        time.sleep(RETRY_INTERVAL)
        return True
