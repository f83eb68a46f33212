"""A small Sanic application for trying the process manager.

Run it by ``make run``, by ``sanic-worker examples.hello:app``, or as a script. It is an ordinary application,
so ``sanic examples.hello:app`` serves it on Sanic's own manager.
"""

from __future__ import annotations

import os

from sanic import Request, Sanic
from sanic.response import HTTPResponse, empty, json

app = Sanic("hello")
app.config.INSPECTOR = True
app.ctx.served = 0


@app.on_request
async def count(_request: Request) -> None:
    """Count the requests that this process has served."""
    app.ctx.served += 1


@app.get("/")
async def hello(_request: Request) -> HTTPResponse:
    """Return the name and pid of the answering worker: restart or scale, and see it change."""
    return json({"name": app.m.name, "pid": os.getpid(), "served": app.ctx.served})


@app.get("/workers")
async def workers(_request: Request) -> HTTPResponse:
    """Return the manager's view of every process."""
    return json({name: dict(state) for name, state in app.m.workers.items()}, default=str)


@app.post("/restart")
async def restart(_request: Request) -> HTTPResponse:
    """Ask the manager to restart this worker."""
    app.m.restart()
    return empty(202)


if __name__ == "__main__":
    import worker

    worker.install()
    app.run(host="127.0.0.1", port=8000, workers=2)
