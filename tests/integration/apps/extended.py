"""An application that does the work of Sanic Extensions in the manager: it counts requests and watches
workers.

A worker that was asked for `/hang` answers nothing from then on.
"""

from __future__ import annotations

import threading
from typing import Any

from sanic import HTTPResponse, Request, Sanic
from sanic_ext import CountedRequest, Extend

from .steering import steerable

app: Sanic[Any, Any] = Sanic("extended", request_class=CountedRequest)
app.config.HEALTH = app.config.HEALTH_MONITOR = app.config.HEALTH_ENDPOINT = True
# More than a machine that stalls makes of a worker that reports.
app.config.HEALTH_MAX_MISSES = 4
app.config.HEALTH_REPORT_INTERVAL = 0.2
app.config.HEALTH_MISSED_THRESHHOLD = 1
steerable(app)
Extend(app)


@app.get("/hang")
async def hang(_: Request) -> HTTPResponse:
    threading.Event().wait()
    raise AssertionError("it hangs")
