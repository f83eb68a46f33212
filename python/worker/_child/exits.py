"""How a child exits, if it shares its interpreter with another process or is short of time."""

from __future__ import annotations

import atexit
import os
import sys
from contextlib import suppress
from multiprocessing import util
from typing import NoReturn

__all__ = ["forget_exit_functions", "leave"]


def forget_exit_functions() -> None:
    """In a forked child, drop what its parent runs at its exit; its own finalizers run there instead.

    Before CPython 3.13 the child runs its finalizers by itself; then this changes nothing.
    """
    atexit._clear()
    atexit.register(util._exit_function)  # type: ignore[attr-defined]


def leave(code: int) -> NoReturn:
    """End a child in order, but without taking the interpreter apart: of a fork, it is not all its own."""
    try:
        atexit._run_exitfuncs()
        for stream in filter(None, (sys.stdout, sys.stderr)):
            with suppress(OSError, ValueError):
                stream.flush()
    finally:
        os._exit(code)
