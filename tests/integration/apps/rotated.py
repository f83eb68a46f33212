"""An application whose processes write to log files; `OWN` names a handler of its own for SIGUSR1."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import threading
from logging.handlers import RotatingFileHandler, WatchedFileHandler
from typing import Any

from sanic import HTTPResponse, Request, Sanic
from sanic.response import json

from .journal import note
from .steering import steerable

KINDS = {"plain": logging.FileHandler, "rotating": RotatingFileHandler, "watched": WatchedFileHandler}
OWN = os.environ.get("OWN", "")

logger = logging.getLogger("rotated")
logger.setLevel(logging.INFO)
logger.propagate = False
for name, kind in KINDS.items():
    logger.addHandler(kind(f"{name}.log"))

if OWN == "faulthandler":
    faulthandler.register(signal.SIGUSR1)

app: Sanic[Any, Any] = Sanic("app")
steerable(app)


@app.get("/log/<number:int>")
async def log(request: Request, number: int) -> HTTPResponse:
    logger.info("request %d of %d", number, os.getpid())
    return json(os.getpid())


def wait_for_stop() -> None:
    """Run until a stop, with the default action of SIGUSR1."""
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    note("waits")
    threading.Event().wait()


@app.main_process_ready
async def manage(app: Sanic[Any, Any]) -> None:
    logger.info("main %d", os.getpid())
    app.manager.manage("Waiter", wait_for_stop, {})


@app.after_server_start
async def use_signal(app: Sanic[Any, Any]) -> None:
    if OWN == "python":
        signal.signal(signal.SIGUSR1, lambda *_: note("own handler"))
