"""An application of which one of two workers does not start; FAIL names the failure."""

from __future__ import annotations

import os
import signal
from typing import Any

from sanic import Sanic

from .journal import note, record
from .steering import steerable

FAIL = os.environ["FAIL"]


def chosen() -> bool:
    return os.environ.get("SANIC_WORKER_NAME") == "Sanic-Server-1-0"


if FAIL == "import" and chosen():
    note("dying")
    raise ImportError("broken on purpose")

app: Sanic[Any, Any] = Sanic("broken")
steerable(app)
record(app)


@app.before_server_start
async def fail(_: Sanic[Any, Any]) -> None:
    if not chosen():
        return
    note("dying")
    if FAIL == "listener":
        raise RuntimeError("broken on purpose")
    if FAIL == "exit":
        os._exit(3)
    if FAIL == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
