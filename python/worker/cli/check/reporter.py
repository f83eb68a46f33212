"""Reports the steps of a throw-away process to the command, as one JSON object a line."""

from __future__ import annotations

import asyncio
import faulthandler
import json
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from multiprocessing.connection import Connection
from time import monotonic
from typing import Any

from sanic.log import error_logger

from worker.cli.check.errors import Problem, describe, is_of_application
from worker.cli.check.findings import in_one_line
from worker.cli.inspect.text import one_line
from worker.serve import describe_stacks

__all__ = ["Reporter"]

# The time after a limit at which stacks are shown by the interpreter's own means, seconds: the thread that
# shows them needs the GIL, and another one may keep it.
GRACE = 1.0
MAX_WARNINGS = 50
SANICS = f"{os.sep}sanic{os.sep}log"


class Reporter:
    """Reports steps, and the stacks of a step that takes too long.

    Args:
        pipe (Connection): The sending end of a pipe to the command. No other process uses it meanwhile.
        process (str): ``"main"`` or ``"worker"``.

    Attributes:
        loop: The event loop whose tasks are shown.
        connections: The connections whose requests are shown.
        has_failed: Whether a step has failed.
    """

    def __init__(self, pipe: Connection, process: str) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.connections: set[Any] = set()
        self._logged: Problem | None = None
        self.has_failed = False
        self._pipe = pipe
        self._process = process
        self._numbers = count()
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._warned: set[str] = set()
        self._show_warning: Callable[..., Any] = warnings.showwarning

    def observe(self) -> None:
        """Note the errors in Sanic's log, and report warnings of Python."""
        error_logger.addFilter(self._note)
        # It tells of a task that has failed, and that nothing has awaited.
        logging.getLogger("asyncio").addFilter(self._warn_of)
        if not sys.warnoptions:
            for category in (DeprecationWarning, PendingDeprecationWarning):
                warnings.filterwarnings("default", category=category)
        module: Any = warnings
        shown = module.showwarning
        # A forked worker has the one of the main process.
        other = getattr(shown, "__self__", None)
        self._show_warning = other._show_warning if isinstance(other, Reporter) else shown
        module.showwarning = self._warning

    def send(self, kind: str, **fields: Any) -> None:
        """Send an event. If the command is gone, nothing happens."""
        event = {"event": kind, "at": monotonic(), "process": self._process, **fields}
        data = json.dumps(event).encode() + b"\n"
        with self._lock, suppress(OSError):
            while data:
                data = data[os.write(self._pipe.fileno(), data) :]

    def last_logged(self) -> Problem | None:
        """Return the last error in Sanic's log since the last call."""
        logged, self._logged = self._logged, None
        return logged

    def warn(self, text: str) -> None:
        """Send a warning, once."""
        if text not in self._warned and len(self._warned) < MAX_WARNINGS:
            self._warned.add(text)
            self.send("warning", text=text)

    def begin(self, name: str, key: str = "") -> str:
        """Begin a step; return its key."""
        key = key or f"{self._process}-{next(self._numbers)}"
        self.send("begin", key=key, name=name)
        return key

    def end(self, key: str, problem: Problem | None = None, note: str = "") -> None:
        """End a step, with the reason why it has failed, or a note on its result."""
        self.has_failed = self.has_failed or problem is not None
        self.send("end", key=key, problem=problem, note=note)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Report a step, and the error that ends it."""
        key = self.begin(name)
        try:
            yield
        except GeneratorExit:
            # A coroutine that the loop has dropped.
            self.end(key)
            raise
        except BaseException as error:
            self.end(key, describe(error))
            raise
        self.end(key)

    def allow(self, seconds: float | None, *, elsewhere: bool = False) -> None:
        """Limit the time from now on, in place of the limit before.

        Args:
            seconds (float | None): The limit; ``None`` for none.
            elsewhere (bool): Whether another process works meanwhile. Defaults to ``False``.
        """
        if self._timer is not None:
            self._timer.cancel()
            faulthandler.cancel_dump_traceback_later()
        self.send("limit", seconds=seconds)
        if seconds is None or elsewhere:
            self._timer = None
            return
        self._timer = threading.Timer(seconds, self._overrun)
        self._timer.daemon = True
        self._timer.start()
        with suppress(OSError, ValueError, AttributeError):
            faulthandler.dump_traceback_later(seconds + GRACE)

    def _overrun(self) -> None:
        self.send("overrun", stacks=describe_stacks(self.loop, self.connections))

    def _note(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], BaseException):
            self._logged = describe(record.exc_info[1])
        return True

    def _warn_of(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], BaseException):
            reason = in_one_line(describe(record.exc_info[1]))
            self.warn(f"{one_line(record.getMessage().partition(chr(10))[0])}: {reason}")
        return True

    def _warning(self, message: Any, category: Any, filename: str, lineno: int, *more: Any) -> None:
        place = f" ({filename}:{lineno})"
        if not issubclass(category, (DeprecationWarning, PendingDeprecationWarning)):
            self._show_warning(message, category, filename, lineno, *more)
        elif SANICS in filename:
            # Sanic's own function gives no place in the application.
            place = ""
        elif not is_of_application(filename):
            return
        self.warn(f"{category.__name__}: {one_line(message)}{place}")
