"""How a child exits, if it shares its interpreter with another process or is short of time."""

from __future__ import annotations

import atexit
import os
import sys
from contextlib import suppress
from multiprocessing import util
from typing import NoReturn

__all__ = ["exit_child", "forget_exit_functions"]


def forget_exit_functions() -> None:
    """Drop the exit functions of the parent in a forked child, and run the child's finalizers instead.

    Before CPython 3.13 the child runs its finalizers by itself; there this changes nothing.
    """
    atexit._clear()
    atexit.register(util._exit_function)  # type: ignore[attr-defined]


def exit_child(code: int) -> NoReturn:
    """End a child in order, but without finalising the interpreter: a fork shares parts of it."""
    try:
        atexit._run_exitfuncs()
        for stream in filter(None, (sys.stdout, sys.stderr)):
            with suppress(OSError, ValueError):
                stream.flush()
    finally:
        os._exit(code)
