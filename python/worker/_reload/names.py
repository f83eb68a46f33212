"""Names of files, as the log shows them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress

from worker.constants import excerpt

__all__ = ["printable", "shown"]

# The largest number of files that a line names.
MAX_NAMED = 3


def printable(path: str) -> str:
    """Return a path with each character escaped that is not printable."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in path)


def shown(paths: Sequence[str]) -> str:
    """Return paths as a list for a log line, relative to the working directory where they are below it."""
    more = f" and {len(paths) - MAX_NAMED} more" if len(paths) > MAX_NAMED else ""
    return excerpt(", ".join(map(_relative, paths[:MAX_NAMED]))) + more


def _relative(path: str) -> str:
    with suppress(ValueError, OSError):
        below = os.path.relpath(path)
        return path if below.startswith(os.pardir) else below
    return path
