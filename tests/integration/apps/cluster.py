"""The plain application: steerable, every listener noted. With HANG set, `before_server_stop` never ends."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from sanic import Sanic

from .journal import note, record, recorder
from .steering import steerable

app: Sanic[Any, Any] = Sanic("cluster")
steerable(app)
record(app)

if "ORDERED" in os.environ:
    app.before_server_start(recorder("start", step="late"))
    app.before_server_start(recorder("start", step="first"), priority=3)
    app.before_server_stop(recorder("stop", step="registered first"))
    app.before_server_stop(recorder("stop", step="registered last"))

if "HANG" in os.environ:

    @app.before_server_stop
    async def hang(_: Sanic[Any, Any]) -> None:
        note("hanging")
        await asyncio.Event().wait()
