"""An application to be killed, reloaded and broken.

A worker that starts obeys the file ``code``: empty, ``broken`` (it cannot be imported), or ``burn N`` (its
import takes N seconds of a processor).
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import socket
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

from sanic import HTTPResponse, Request, Sanic
from sanic.response import text

from .journal import note, record
from .steering import steerable

if os.environ.get("SANIC_WORKER_NAME", "").startswith("Sanic-Server") and Path("code").exists():
    what, _, number = Path("code").read_text().partition(" ")
    if what == "broken":
        raise SyntaxError("broken on purpose")
    if what == "burn":
        until = time.process_time() + float(number)
        while time.process_time() < until:
            pass

app: Sanic[Any, Any] = Sanic("supervised")
app.config.ACCESS_LOG = False
if "GRACEFUL" in os.environ:
    app.config.GRACEFUL_SHUTDOWN_TIMEOUT = float(os.environ["GRACEFUL"])
steerable(app)
record(app)


@app.get("/pid")
async def pid(_: Request) -> HTTPResponse:
    return text(str(os.getpid()))


async def takes(seconds: float) -> None:
    """Work for this long, and let other tasks run meanwhile."""
    await asyncio.wait([asyncio.get_running_loop().create_future()], timeout=seconds)


@app.get("/work")
async def work(_: Request) -> HTTPResponse:
    """Take a while, in which the worker may exit."""
    await takes(0.03)
    return text(str(os.getpid()))


@app.get("/slow/<seconds:float>")
async def slow(_: Request, seconds: float) -> HTTPResponse:
    await takes(seconds)
    return text("slow")


may_go = Path("let go").exists


@app.get("/held")
async def held(_: Request) -> HTTPResponse:
    """Answer once there is a file ``let go``."""
    while not may_go():
        await takes(0.01)
    return text("held")


def spins() -> None:
    while True:
        pass


def ignores() -> None:
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    threading.Event().wait()


def hangs_in_c() -> None:
    """Never release the interpreter."""
    ignored = (signal.SIGINT, signal.SIGTERM)
    for signum in ignored:
        signal.signal(signum, signal.SIG_IGN)
    ctypes.PyDLL(None).pause()


WAYS = {
    "spins": spins,
    "sleeps": partial(time.sleep, 1000),
    "stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "ignores": ignores,
    "hangs": hangs_in_c,
}


@app.get("/hang/<way:str>")
async def hang(_: Request, way: str) -> HTTPResponse:
    note("hangs", way=way)
    WAYS[way]()
    return text("it goes on")


if "BIND" in os.environ:

    @app.before_server_start
    async def bind(app: Sanic[Any, Any]) -> None:
        """Bind an address of the application's own, which two workers cannot have at once."""
        app.ctx.own = socket.create_server(("127.0.0.1", int(os.environ["BIND"])))
