"""The application of the units: files beside it change its behaviour."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from sanic import HTTPResponse, Request, Sanic
from sanic.response import text

HERE = Path(__file__).parent
IS_WORKER = "SANIC_WORKER_NAME" in os.environ

if IS_WORKER and (HERE / "broken").exists():
    raise RuntimeError("this code is broken")

app = Sanic("shop")


@app.before_server_start
async def take_time(app: Sanic) -> None:
    if (HERE / "slow").exists():
        try:
            await asyncio.wait_for(asyncio.Event().wait(), 1.0)
        except asyncio.TimeoutError:
            return


@app.after_server_start
async def fail(app: Sanic) -> None:
    if (HERE / "crashing").exists():
        os.kill(os.getpid(), signal.SIGKILL)


@app.get("/pid")
async def pid(request: Request) -> HTTPResponse:
    return text(str(os.getpid()))


@app.get("/environment")
async def environment(request: Request) -> HTTPResponse:
    return text(" ".join(os.environ))


@app.get("/new/<name>")
async def new(request: Request, name: str) -> HTTPResponse:
    """Make a file, and show its permissions."""
    path = Path("/run/shop") / name
    path.touch()
    return text(f"{path.stat().st_mode & 0o777:o}")
