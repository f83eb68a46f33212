"""Keeps the pid file while a manager runs, unless it was written for the whole server before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from worker._system import pid_file

__all__ = ["kept"]


@contextmanager
def kept(path: str) -> Iterator[None]:
    """Keep a pid file in the body.

    Args:
        path (str): The path; empty for none.

    Raises:
        PidFileError: The file is that of another running process, or cannot be written.
    """
    is_ours = bool(path) and pid_file.write(path)
    try:
        yield
    finally:
        if is_ours:
            pid_file.remove()
