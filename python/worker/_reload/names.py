"""Names of files, as the log shows them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress

from worker.constants import excerpt

__all__ = ["printable", "shown"]

# How many files a line names.
NAMED = 3


def printable(path: str) -> str:
    """Return a path with each character escaped that is not printable."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in path)


def shown(paths: Sequence[str]) -> str:
    """Return paths as a list for a log line, relative to the working directory where they are below it."""
    more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
    return excerpt(", ".join(map(_relative, paths[:NAMED]))) + more


def _relative(path: str) -> str:
    with suppress(ValueError, OSError):
        below = os.path.relpath(path)
        return path if below.startswith(os.pardir) else below
    return path
