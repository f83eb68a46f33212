"""The plain application: every listener is recorded, and tests can steer it.

Environment variables add to it: ORDERED more listeners, HANG a `before_server_stop` that never ends, LOSE an
`after_server_start` that swallows the first SIGINT.
"""

from __future__ import annotations

import asyncio
import os
import signal
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


if "LOSE" in os.environ:

    @app.after_server_start
    async def lose(_: Sanic[Any, Any]) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        note("losing")
        note("lost", signal=signal.sigwait({signal.SIGINT}))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
