"""The output of a server under test: lines of its log, and the journal of its processes."""

from __future__ import annotations

import fcntl
import json
import os
import re
import selectors
import subprocess
import sys
import termios
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, TypeVar

from .apps.journal import MARK

T = TypeVar("T")


@dataclass(frozen=True)
class Line:
    """One line of output: `stream` is "out" or "err", `at` the monotonic time at which it was read."""

    stream: str
    text: str
    at: float


@dataclass(frozen=True)
class Event:
    """One journal entry: the event, its process, and its position in the whole output."""

    name: str
    process: str
    pid: int
    at: float
    fields: dict[str, Any] = field(default_factory=dict)

    def value(self, key: str) -> Any:
        """Return one of the attributes, or else of the fields."""
        return getattr(self, key, None) or self.fields.get(key)


class Output:
    """The whole output of a process and its descendants, read by one thread until all have closed it.

    `lines` and `events` have all that was written before they are looked at.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._lines: list[Line] = []
        self._events: list[Event] = []
        # Bytes that were read, by the descriptor.
        self._read_bytes: Counter[int] = Counter()
        self._changed = threading.Condition()
        self._process = process
        self._stop_reader, self._stop_writer = os.pipe()
        self._thread = threading.Thread(target=self._read, name="server output", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None and self._process.stderr is not None
        with selectors.DefaultSelector() as selector:
            tails = {"out": b"", "err": b""}
            selector.register(self._process.stdout, selectors.EVENT_READ, "out")
            selector.register(self._process.stderr, selectors.EVENT_READ, "err")
            selector.register(self._stop_reader, selectors.EVENT_READ, "")
            while len(selector.get_map()) > 1:
                for key, _ in selector.select():
                    if not key.data:
                        return
                    with self._changed:
                        chunk = os.read(key.fd, 1 << 16)
                        if not chunk:
                            selector.unregister(key.fileobj)
                        *whole, tails[key.data] = (tails[key.data] + (chunk or b"\n")).split(b"\n")
                        for raw in whole:
                            self._add(key.data, raw.decode(errors="replace"))
                        self._read_bytes[key.fd] += len(chunk)
                        self._changed.notify_all()

    @property
    def lines(self) -> list[Line]:
        """The lines of the log."""
        self._catch_up()
        return self._lines

    @property
    def events(self) -> list[Event]:
        """The entries of the journal."""
        self._catch_up()
        return self._events

    def _catch_up(self) -> None:
        """Wait until the thread has read all that is written by now."""
        with self._changed:
            if self._thread.is_alive():
                pipes = [pipe.fileno() for pipe in (self._process.stdout, self._process.stderr) if pipe]
                goals = {fd: self._read_bytes[fd] + _unread(fd) for fd in pipes}
                self._changed.wait_for(lambda: all(self._read_bytes[fd] >= goals[fd] for fd in goals), 60)

    def _add(self, stream: str, text: str) -> None:
        now = monotonic()
        before, mark, entry = text.partition(MARK)
        if mark:
            fields = json.loads(entry)
            name, process, pid = (fields.pop(key) for key in ("event", "process", "pid"))
            self._events.append(Event(name, process, pid, now, fields))
            text = before
        if text.strip():
            self._lines.append(Line(stream, text, now))

    def wait(self, look: Callable[[], T], what: str, timeout: float) -> T:
        """Return the result of `look` once it is true; call it whenever there is more output."""
        deadline = monotonic() + timeout
        with self._changed:
            while not (value := look()):
                if not self._changed.wait(deadline - monotonic()):
                    raise AssertionError(f"not within {timeout:g} s: {what}; last seen: {value!r}")
            return value

    def finish(self, timeout: float) -> bool:
        """Whether the output came to its end within `timeout` seconds."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def close(self) -> None:
        """End the reader thread and close every descriptor."""
        os.write(self._stop_writer, b"x")
        self._thread.join()
        os.close(self._stop_reader)
        os.close(self._stop_writer)
        for pipe in (self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()


def _unread(fd: int) -> int:
    """Return how many bytes a pipe holds."""
    found = fcntl.ioctl(fd, termios.FIONREAD, bytes(4))
    return int.from_bytes(found, sys.byteorder)


def tracebacks(text: str) -> list[list[str]]:
    """Return the files of each traceback in `text`, outermost first."""
    found: list[list[str]] = []
    for line in text.splitlines():
        if "Traceback (most recent call last)" in line:
            found.append([])
        elif found and (frame := re.match(r'\s+File "([^"]+)", line \d+', line)):
            found[-1].append(frame.group(1))
    return found
