"""How a child exits, if it shares its interpreter with another process or is short of time."""

from __future__ import annotations

import atexit
import os
import sys
import weakref
from contextlib import suppress
from multiprocessing import util
from typing import NoReturn

__all__ = ["exit_child", "forget_exit_functions", "leave_shared"]


def forget_exit_functions() -> None:
    """Drop the exit functions of the parent in a forked child, and run the child's finalizers instead.

    Before CPython 3.13 the child runs its finalizers by itself; there this changes nothing.
    """
    atexit._clear()
    atexit.register(util._exit_function)  # type: ignore[attr-defined]


def leave_shared() -> None:
    """Keep the exit of this child of a preload process from removing files that the others use, too.

    A temporary directory that the application has made at its import is one. Exit functions stay: a spawned
    child, which imports the application itself, would run them.
    """
    for finalizer in [*weakref.finalize._registry]:  # type: ignore[attr-defined]
        finalizer.atexit = False


def exit_child(code: int) -> NoReturn:
    """End a child in order, but without finalising the interpreter: a fork shares parts of it."""
    try:
        atexit._run_exitfuncs()
        for stream in filter(None, (sys.stdout, sys.stderr)):
            with suppress(OSError, ValueError):
                stream.flush()
    finally:
        os._exit(code)
