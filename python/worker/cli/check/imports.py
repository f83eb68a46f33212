"""Lists the longest imports, by the times that the interpreter prints with ``-X importtime``."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import NamedTuple, TypedDict

__all__ = ["FLAGS", "ImportReader", "Imports", "marking_imports"]

FLAGS = ("-X", "importtime")
# How many imports are listed.
LONGEST = 10
LINE = re.compile(rb"import time: +(\d+) \| +(\d+) \| +(\S+)\s*")
# Marks of this package in the output, between the lines of the interpreter.
BEGIN, END = b"import time: begin", b"import time: end "


class Import(TypedDict):
    """The import of one module; times in seconds, with and without those of the modules that it imports."""

    name: str
    own: float
    cumulative: float


class Imports(TypedDict):
    """The imports that loaded an application, the longest ones by name."""

    seconds: float
    count: int
    longest: list[Import]


class _Times(NamedTuple):
    own: float
    cumulative: float
    name: str


@contextmanager
def marking_imports(enabled: bool, target: str) -> Iterator[None]:
    """Mark the imports of an application, so that the interpreter's own start is told apart.

    Args:
        enabled (bool): Whether to mark them.
        target (str): The application, such as ``shop:app``. The interpreter prints no time for a module that
            is imported by its name; the marks do.
    """

    def mark(text: str) -> None:
        if enabled:
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{text}\n".encode())

    began = monotonic()
    mark(BEGIN.decode())
    try:
        yield
    finally:
        mark(f"{END.decode()}{monotonic() - began:.6f} {target.partition(':')[0]}")


class ImportReader:
    """Takes the lines about imports out of the output of an application."""

    def __init__(self) -> None:
        self._found: list[list[_Times]] = []
        self._is_inside = False

    def takes(self, line: bytes) -> bool:
        """Take a line if it is about an import; return whether it is."""
        if line.startswith(BEGIN):
            self._is_inside = True
            self._found.append([])
        elif line.startswith(END) and self._is_inside:
            self._is_inside = False
            seconds, name = line.removeprefix(END).decode(errors="replace").split(" ", 1)
            found = self._found[-1]
            if all(one.name != name for one in found):
                own = max(0.0, float(seconds) - sum(one.own for one in found))
                found.append(_Times(own, float(seconds), name))
        elif (times := LINE.fullmatch(line)) and self._is_inside:
            own, cumulative = (int(text) / 1e6 for text in times.groups()[:2])
            self._found[-1].append(_Times(own, cumulative, times[3].decode(errors="replace")))
        return line.startswith(b"import time:")

    def result(self) -> Imports:
        """Return the imports of the process that has taken longer: a forked worker imports nothing."""
        times = max(self._found, key=lambda found: sum(one.own for one in found), default=[])
        return {
            "seconds": sum(one.own for one in times),
            "count": len(times),
            "longest": [
                {"name": one.name, "own": one.own, "cumulative": one.cumulative}
                for one in sorted(times, reverse=True)[:LONGEST]
            ],
        }
