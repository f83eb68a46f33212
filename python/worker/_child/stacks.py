"""Describes in text what a server is doing: its threads, its tasks, and its requests.

The text is made while the main thread may hang. So nothing here takes a lock that the main thread may hold,
such as that of a log handler, and no code of the application runs, such as a ``__repr__``.
"""

from __future__ import annotations

import asyncio
import linecache
import sys
import threading
from collections.abc import Collection, Iterator
from contextlib import suppress
from os.path import isabs
from time import monotonic
from types import FrameType
from typing import Any, NamedTuple

from sanic.http.constants import Stage

__all__ = ["Subject", "debugger", "describe"]

# The size of the whole text, and of all threads other than the main one, in bytes.
MAX_BYTES = 64 << 10
MAX_THREADS_BYTES = 24 << 10
# The frames that are shown of one stack, outer and inner ones.
OUTER, INNER = 10, 50
MAX_REQUESTS = 20
MAX_TEXT = 200

Place = tuple[str, int, str]


class Subject(NamedTuple):
    """The parts of a server that its stacks are about.

    Attributes:
        loop: The event loop, if there is one yet.
        connections: Sanic's open connections.
    """

    loop: asyncio.AbstractEventLoop | None = None
    connections: Collection[Any] = ()


class _Text:
    """Text of a limited size. A part that does not fit is left out, and so are all parts after it."""

    def __init__(self, limit: int = MAX_BYTES) -> None:
        self._parts: list[str] = []
        # The last line says how much was left out.
        self._left = limit - MAX_TEXT

    def add(self, part: str) -> bool:
        """Add a part; return whether it fits."""
        # A file name may hold bytes that are no text.
        part = part.encode(errors="backslashreplace").decode()
        self._left -= len(part.encode()) + 1
        if self._left >= 0:
            self._parts.append(part)
        return self._left >= 0

    def add_all(self, parts: Iterator[str], number: int, kind: str) -> None:
        """Add parts while they fit, and say how many of them were left out."""
        added = 0
        for part in parts:
            if not self.add(part):
                break
            added += 1
        if number > added:
            self._parts.append(f"({number - added} more {kind} left out)\n")

    def __str__(self) -> str:
        return "\n".join(self._parts)


def describe(subject: Subject) -> str:
    """Return the text: the requests, the main thread, the other threads, the tasks.

    Args:
        subject (Subject): The parts of the server.
    """
    known = {*linecache.cache}
    try:
        return _described(subject)
    finally:
        # The lines of many files would stay in memory for good.
        for path in {*linecache.cache} - known:
            linecache.cache.pop(path, None)


def debugger() -> str:
    """Return the name of the debugger that is at work in this process; empty without one."""
    frame = _main_frame()
    while frame is not None:
        if (name := frame.f_globals.get("__name__")) in ("pdb", "bdb"):
            return str(name)
        if frame.f_trace is not None:
            module = getattr(frame.f_trace, "__module__", None) or type(frame.f_trace).__module__
            if not module.startswith("coverage"):
                return f"the trace function of {module}"
        frame = frame.f_back
    with suppress(Exception):
        # CPython 3.12 and newer.
        monitoring = sys.monitoring  # type: ignore[attr-defined,unused-ignore]
        if tool := monitoring.get_tool(monitoring.DEBUGGER_ID):
            return str(tool)
    with suppress(Exception):
        if sys.modules["debugpy"].is_client_connected():
            return "debugpy"
    return ""


def _described(subject: Subject) -> str:
    text = _Text()
    main = _main_frame()
    running = _running_request(main)
    requests = sorted(_requests(subject.connections, running), reverse=True)
    if running is not None and not any(is_running for is_running, *_ in requests):
        # Sanic keeps no set of the connections of HTTP/3.
        requests.insert(0, (True, None, _title(running)))
    if requests:
        text.add(f"Requests in progress: {len(requests)}")
        text.add_all(map(_request_line, requests[:MAX_REQUESTS]), len(requests), "requests")
        text.add("")
    if main is not None:
        text.add(_thread("MainThread", main))
    others = [*_other_threads()]
    threads = _Text(MAX_THREADS_BYTES)
    threads.add_all((_thread(*one) for one in others), len(others), "threads")
    if others:
        text.add(str(threads))
    if subject.loop is not None:
        tasks = _tasks(subject.loop)
        text.add_all((_task(one, is_current=number == 0) for number, one in tasks), len(tasks), "tasks")
    return str(text)


def _main_frame() -> FrameType | None:
    return sys._current_frames().get(threading.main_thread().ident or 0)


def _other_threads() -> Iterator[tuple[str, FrameType]]:
    """Yield the names and the frames of all threads but the main one and this one."""
    # `threading.enumerate` takes a lock.
    known = dict(getattr(threading, "_active", {}))
    skipped = {threading.main_thread().ident, threading.get_ident()}
    for ident, frame in sys._current_frames().items():
        if ident not in skipped:
            yield getattr(known.get(ident), "_name", None) or f"thread {ident}", frame


def _thread(name: str, frame: FrameType) -> str:
    return f"Thread {_cut(name)} (most recent call last):\n{_lines(_stack(frame))}"


def _stack(frame: FrameType | None) -> list[Place]:
    """Return the places of a stack, the outermost first."""
    places: list[Place] = []
    # The frames above it are of the start of the process.
    while frame is not None and not _is_of(frame, "worker_serve", "worker.serve"):
        places.append(_place(frame))
        frame = frame.f_back
    return places[::-1]


def _place(frame: FrameType) -> Place:
    code = frame.f_code
    # A frame has no line while it begins.
    return code.co_filename, frame.f_lineno or code.co_firstlineno, code.co_name


def _lines(places: list[Place]) -> str:
    if (left_out := len(places) - OUTER - INNER) > 0:
        between = [f"  ({left_out} frames left out)\n"]
        return "".join([*_each(places[:OUTER]), *between, *_each(places[-INNER:])])
    return "".join(_each(places))


def _each(places: list[Place]) -> Iterator[str]:
    for path, number, name in places:
        yield f'  File "{path}", line {number}, in {name}\n'
        # Sanic compiles some functions anew, without a file.
        if isabs(path) and (line := linecache.getline(path, number).strip()):
            yield f"    {_cut(line)}\n"


def _tasks(loop: asyncio.AbstractEventLoop) -> list[tuple[int, asyncio.Task[Any]]]:
    """Return the tasks of a loop: with 0 the one that runs now, and then the others."""
    current, tasks = None, set[asyncio.Task[Any]]()
    with suppress(Exception):
        current = asyncio.current_task(loop)
    with suppress(Exception):
        tasks = asyncio.all_tasks(loop)
    others = sorted(tasks - {current}, key=lambda task: task.get_name())
    first = [] if current is None else [(0, current)]
    return [*first, *enumerate(others, 1)]


def _task(task: asyncio.Task[Any], *, is_current: bool) -> str:
    places, awaited = _chain(task.get_coro())
    waiter = getattr(task, "_fut_waiter", None)
    if is_current:
        state = "running"
    elif waiter is not None:
        state = f"waits for {_kind(waiter)}"
    else:
        state = "ready to run" if awaited is None else f"waits for {_kind(awaited)}"
    return f"Task {_cut(task.get_name())} ({state}):\n{_lines(places)}"


def _chain(awaited: Any) -> tuple[list[Place], Any]:
    """Return the places of a coroutine and of those that it awaits, and the last object that is awaited."""
    places: list[Place] = []
    while awaited is not None and len(places) < OUTER + INNER:
        for kind, wait in (("cr", "cr_await"), ("gi", "gi_yieldfrom"), ("ag", "ag_await")):
            frame = getattr(awaited, f"{kind}_frame", None)
            if isinstance(frame, FrameType):
                places.append(_place(frame))
                awaited = getattr(awaited, wait, None)
                break
        else:
            break
    return places, awaited


def _kind(awaited: Any) -> str:
    if isinstance(awaited, asyncio.Task):
        return f"task {_cut(awaited.get_name())}"
    return type(awaited).__qualname__


def _requests(connections: Collection[Any], running: Any) -> Iterator[tuple[bool, float | None, str]]:
    """Yield for each request whether its handler runs now, its age in seconds, and its first line."""
    now = monotonic()
    for connection in list(connections):
        http = getattr(connection, "_http", None)
        request = getattr(http, "request", None)
        if request is not None and getattr(http, "stage", Stage.IDLE) is not Stage.IDLE:
            kind = " (WebSocket)" if getattr(connection, "websocket", None) is not None else ""
            yield request is running, now - connection._time, _title(request) + kind


def _request_line(request: tuple[bool, float | None, str]) -> str:
    is_running, age, title = request
    where = ", running in the main thread" if is_running else ""
    return f"  {title}" + ("" if age is None else f", for {age:.1f} s") + where


def _title(request: Any) -> str:
    with suppress(Exception):
        return _cut(ascii(f"{request.method} {request.path}")[1:-1])
    return "a request"


def _running_request(frame: FrameType | None) -> Any:
    """Return the request whose handler the main thread runs; ``None`` if it runs none."""
    while frame is not None:
        if _is_of(frame, "handle_request", "sanic.app"):
            return frame.f_locals.get("request")
        frame = frame.f_back
    return None


def _is_of(frame: FrameType, function: str, module: str) -> bool:
    return frame.f_code.co_name == function and frame.f_globals.get("__name__") == module


def _cut(text: object) -> str:
    # It must not steer a terminal, nor look like another line.
    shown = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in str(text)[: 2 * MAX_TEXT])
    return shown if len(shown) <= MAX_TEXT else f"{shown[: MAX_TEXT - 3]}..."
