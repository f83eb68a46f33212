"""An application whose handlers hang, each in its own way. It does not start where a file ``broken`` is.

Its start does not end where a file ``waiting`` is.
"""

from __future__ import annotations

import asyncio
import ctypes
import pdb  # noqa: T100
import sys
import threading
from pathlib import Path
from time import sleep as stand_still
from time import thread_time
from typing import Any

from sanic import HTTPResponse, Request, Sanic
from sanic.response import json

from .journal import note, record
from .steering import steerable

app: Sanic[Any, Any] = Sanic("hanging")
steerable(app)
record(app)


if Path("broken").exists():
    raise RuntimeError("broken on purpose")


if Path("waiting").exists():

    @app.after_server_start
    async def wait(app: Sanic[Any, Any]) -> None:
        """Keep the start from its end. Requests are accepted all the same."""
        await asyncio.get_running_loop().create_future()


def block() -> None:
    stand_still(1000)


def spin() -> None:
    while True:
        pass


def keep_the_gil() -> None:
    """Take a lock of C twice, with the GIL. No signal ends that."""
    libc, mutex = ctypes.PyDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)


def keep_the_gil_in_a_call() -> None:
    """Keep the GIL in a system call, which a signal to this thread ends."""
    ctypes.PyDLL(None)["sleep"](1000)


def lock() -> None:
    """Take a lock that another thread has taken, which waits for this thread."""
    mine, theirs = threading.Lock(), threading.Lock()
    mine.acquire()
    taken = threading.Event()

    def other() -> None:
        with theirs:
            taken.set()
            mine.acquire()

    threading.Thread(target=other, daemon=True).start()
    taken.wait()
    theirs.acquire()


def debug() -> None:
    """Wait for a command, as a debugger does."""
    debugger = pdb.Pdb(stdin=_Silent(), stdout=sys.stderr)
    debugger.set_trace()


def trace() -> None:
    """Block under a trace function, as most debuggers set one."""
    sys.settrace(_trace)
    threading.Event().wait()


def _trace(*_: object) -> Any:
    return _trace


class _Silent:
    """An input on which no line ever comes."""

    def readline(self) -> str:
        threading.Event().wait()
        return ""


HANGS = {
    function.__name__: function
    for function in (block, spin, keep_the_gil, keep_the_gil_in_a_call, lock, debug, trace)
}


@app.get("/hang/<name:str>")
async def hang(request: Request, name: str) -> HTTPResponse:
    note("hangs", how=name)
    HANGS[name]()
    return json(name)


@app.get("/pause/<seconds:float>")
async def pause(request: Request, seconds: float) -> HTTPResponse:
    """Block the event loop for a while."""
    note("pauses")
    threading.Event().wait(seconds)
    return json(seconds)


@app.get("/deadlock")
async def deadlock(request: Request) -> HTTPResponse:
    """Wait for a future of asyncio that is never done: the event loop goes on."""
    note("deadlocked")
    await asyncio.get_running_loop().create_future()
    return json(None)


@app.get("/burn/<seconds:float>")
async def burn(request: Request, seconds: float) -> HTTPResponse:
    """Use the CPU for a while."""
    until = thread_time() + seconds
    while thread_time() < until:
        pass
    return json(seconds)
