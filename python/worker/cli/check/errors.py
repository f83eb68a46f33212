"""Describes an error of an application: one line, its place in the code, and its traceback."""

from __future__ import annotations

import os
import sysconfig
import traceback
from traceback import walk_tb
from typing import TypedDict

from worker.cli.inspect.text import one_line
from worker.loader import without_our_frames

__all__ = ["Problem", "describe", "is_of_application"]

MAX_LINE = 500
MAX_TRACEBACK = 20_000
OURS = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "")
# The directories of code that is not the application's.
INSTALLED = (OURS, *(os.path.join(sysconfig.get_path(name), "") for name in ("stdlib", "purelib", "platlib")))


class Problem(TypedDict):
    """An error of an application.

    Attributes:
        text: The error in one line.
        where: The file and the line of the application; empty if it has none in the traceback.
        traceback: The traceback as text.
    """

    text: str
    where: str
    traceback: str


def describe(error: BaseException) -> Problem:
    """Return the description of an error, without the frames of this package."""
    name = type(error).__name__
    text = one_line(error.msg if isinstance(error, SyntaxError) else error)[:MAX_LINE]
    lines = traceback.format_exception(without_our_frames(error))
    return {
        "text": f"{name}: {text}" if text else name,
        "where": _where(error),
        "traceback": "".join(lines)[-MAX_TRACEBACK:],
    }


def is_of_application(file: str) -> bool:
    """Return whether a file of code belongs to the application: it is in no installed package."""
    return os.path.isfile(file) and not os.path.abspath(file).startswith(INSTALLED)


def _where(error: BaseException) -> str:
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_short(error.filename)}:{error.lineno}"
    places = [(frame.f_code.co_filename, line) for frame, line in walk_tb(error.__traceback__)]
    theirs = [place for place in places if is_of_application(place[0])]
    if not theirs:
        return ""
    file, line = theirs[-1]
    return f"{_short(file)}:{line}"


def _short(file: str) -> str:
    """Return the path of a file, relative if it is below the current directory."""
    here = os.path.join(os.getcwd(), "")
    return file.removeprefix(here)
