"""The resources of a table: a file of a fixed size, and an eventfd that wakes the main process."""

from __future__ import annotations

import gc
import os
from types import ModuleType, TracebackType
from typing import Any

from worker._state import schema

MEBIBYTE = 1024 * 1024
SCHEMA = {
    "owner": schema.OWNER,
    "beat": schema.LAST_BEAT,
    "count": schema.REQUESTS,
    "gauges": schema.GAUGES,
    "seconds": schema.SECONDS,
    "flags": schema.FLAGS,
    "essential": schema.ESSENTIAL,
    "sheets": schema.SHEETS,
}


class Memory:
    """A file for tables of one core. It keeps none of them."""

    def __init__(self, core: ModuleType, size: int = 32 * MEBIBYTE) -> None:
        self._core = core
        self.size = size
        self.fd = os.memfd_create("table")
        os.truncate(self.fd, size)
        self.wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def __enter__(self) -> Memory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.fd)
        os.close(self.wake)
        # An exception that a test has caught may still hold a table.
        gc.collect()

    def table(self) -> Any:
        """Make one more table of it."""
        return self._core.Table(self.fd, self.wake, **SCHEMA)

    def woken(self) -> bool:
        """Whether the main process was woken since the last call."""
        try:
            return os.eventfd_read(self.wake) > 0
        except BlockingIOError:
            return False


def fill(table: Any, value: bytes, prefix: str = "filler") -> list[str]:
    """Make entries until there is no more room; return their names. The one without room leaves no trace."""
    names: list[str] = []
    while True:
        name = f"{prefix}-{len(names)}"
        try:
            table.put(name, {"value": value})
        except MemoryError:
            assert name not in table.names()
            return names
        names.append(name)
