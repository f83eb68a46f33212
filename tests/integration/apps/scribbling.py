"""An application that keeps values in the state that hang their reader, and has forks that write there."""

from __future__ import annotations

import os
import threading
from typing import Any

from sanic import HTTPResponse, Request, Sanic, json

app: Sanic[Any, Any] = Sanic("scribbling")


def hang() -> None:
    threading.Event().wait()


class Hangs:
    """A value that takes for ever to unpickle."""

    def __reduce__(self) -> tuple[Any, ...]:
        return hang, ()


@app.get("/whoami")
async def whoami(request: Request) -> HTTPResponse:
    return json({"name": request.app.m.name, "pid": os.getpid()})


@app.get("/fork")
def fork(request: Request) -> HTTPResponse:
    pid = os.fork()
    if pid == 0:
        try:
            request.app.m.state["by_fork"] = os.getpid()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    return json({"fork": pid, "seen": request.app.m.state.get("by_fork")})


@app.get("/seen")
async def seen(request: Request) -> HTTPResponse:
    states = request.app.m.workers.values()
    return json([entry["by_fork"] for entry in states if "by_fork" in entry])


@app.get("/hang")
async def hang_who_reads(request: Request) -> HTTPResponse:
    for key in ("serving", "start_error", "mine"):
        request.app.m.state[key] = Hangs()
    return json({"pid": os.getpid()})
