"""Reads from the stack of an event loop's thread which step of the loop it runs, and where in the code."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any, NamedTuple

from sanic.request import Request

__all__ = ["Place", "Sample", "blocking", "take"]

# The functions that call the steps of a loop: asyncio's own, and those that run uvloop, which has no frames.
CALLERS = {
    ("asyncio.events", "_run"),
    ("worker.serve", "_run_forever"),
    ("worker.serve", "_run_until_complete"),
}
# The modules whose functions are called as a step, but do the loop's own work, as the wait for events.
LOOP = {"asyncio.base_events", "worker._child.slow_loop"}
DEBUGGERS = {"bdb", "pdb", "IPython", "pydevd", "_pydevd_bundle", "_pydevd_sys_monitoring", "debugpy"}
# How much of a text from outside is shown, in characters.
SHOWN = 100

# Files of libraries lie in these, and Sanic's and ours perhaps elsewhere. `sysconfig` knows the directories,
# and takes milliseconds to import.
STDLIB = ("<frozen ", os.path.dirname(os.__file__) + os.sep)
INSTALLED = ("/site-packages/", "/dist-packages/")
SERVERS = {"sanic", "worker"}


class Place(NamedTuple):
    """A place in the code.

    Attributes:
        file: The path of the file.
        line: The line.
        function: The name of the function.
    """

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} in {self.function}"


class Sample(NamedTuple):
    """The step that a loop runs at a moment.

    Attributes:
        step: The outermost frame of the step: the same in each sample of one step.
        place: The innermost place in the code of the application; where it has none, the innermost of all.
        inner: The innermost place of all.
        work: The request, or else the task, in words; empty if it is neither.
        is_debugged: Whether a debugger stands in it.
    """

    step: FrameType
    place: Place
    inner: Place
    work: str = ""
    is_debugged: bool = False


def take(thread: int, loop: asyncio.AbstractEventLoop) -> Sample | None:
    """Return the step that a loop runs; ``None`` if it runs none, as while it waits for events.

    Args:
        thread (int): The identifier of the thread of the loop. The caller runs in another one.
        loop (AbstractEventLoop): The loop.
    """
    frames: list[FrameType] = []
    for frame in _outward(sys._current_frames().get(thread)):
        if (_module(frame), frame.f_code.co_name) in CALLERS:
            if not frames and (callback := _callback(frame)):
                # C code that the loop calls itself, such as `loop.call_later(1, time.sleep, 2)`.
                return Sample(frame, _place(frame), _place(frame), callback)
            break
        frames.append(frame)
    else:
        return None
    if not frames or _module(frames[-1]) in LOOP:
        return None
    own = next((frame for frame in frames if not _is_library(frame)), frames[0])
    return Sample(
        step=frames[-1],
        place=_place(own),
        inner=_place(frames[0]),
        work=_request(frames) or _task(loop),
        is_debugged=any(_module(frame).partition(".")[0] in DEBUGGERS for frame in frames),
    )


def blocking(samples: Sequence[Sample | None]) -> Sample | None:
    """Return the step that has blocked the loop, at its most frequent place.

    Returns:
        Sample | None: ``None`` if no step has at least half of the samples: there were many short ones, or
            the loop itself waited.
    """
    steps = Counter(id(sample.step) for sample in samples if sample is not None)
    found, count = next(iter(steps.most_common(1)), (0, 0))
    if not count or 2 * count < len(samples):
        return None
    of_step = [sample for sample in samples if sample is not None and id(sample.step) == found]
    (place, _), *_ = Counter(sample.place for sample in of_step).most_common(1)
    return next(sample for sample in of_step if sample.place == place)


def _outward(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _module(frame: FrameType) -> str:
    name = frame.f_globals.get("__name__")
    return name if isinstance(name, str) else ""


def _is_library(frame: FrameType) -> bool:
    file = frame.f_code.co_filename
    is_installed = file.startswith(STDLIB) or any(part in file for part in INSTALLED)
    return is_installed or _module(frame).partition(".")[0] in SERVERS


def _place(frame: FrameType) -> Place:
    code = frame.f_code
    name = getattr(code, "co_qualname", code.co_name)
    return Place(code.co_filename, frame.f_lineno or code.co_firstlineno, name)


def _request(frames: Sequence[FrameType]) -> str:
    """Return the method and the path of the request that is being handled; empty if there is none.

    It is an argument of Sanic's function, or of the handler of a WebSocket, which is a task of its own.
    """
    for frame in reversed(frames):
        code = frame.f_code
        for name in code.co_varnames[: code.co_argcount]:
            # The application may have derived a class of its own.
            with suppress(Exception):
                if isinstance(request := frame.f_locals.get(name), Request):
                    return _escaped(f"{request.method} {request.path}")
    return ""


def _callback(frame: FrameType) -> str:
    """Return the function that asyncio calls from a frame of its own; empty if it is none of these."""
    with suppress(Exception):
        called: Any = frame.f_locals["self"]._callback
        return _escaped(f"callback {getattr(called, '__module__', None)}.{called.__qualname__}")
    return ""


def _task(loop: asyncio.AbstractEventLoop) -> str:
    """Return the name of the current task and of its coroutine; empty if there is none."""
    with suppress(Exception):
        task: Any = asyncio.current_task(loop)
        coroutine = getattr(task.get_coro(), "__qualname__", "")
        return _escaped(f"task {task.get_name()} ({coroutine})")
    return ""


def _escaped(text: str) -> str:
    return ascii(text)[1:-1][:SHOWN]
