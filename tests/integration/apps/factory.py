"""Application factories, with a value that the workers share."""

from __future__ import annotations

import multiprocessing
from typing import Any

from sanic import HTTPResponse, Request, Sanic
from sanic.response import json

from .journal import note, record
from .steering import steerable


async def share(app: Sanic[Any, Any]) -> None:
    app.shared_ctx.counter = multiprocessing.Value("i", 0)


async def count(request: Request) -> HTTPResponse:
    """Add one under the value's own lock."""
    counter = request.app.shared_ctx.counter
    with counter.get_lock():
        counter.value += 1
        return json({"count": counter.value, "name": request.app.m.name})


async def replace(request: Request) -> HTTPResponse:
    """Try to set an attribute on the shared context, which is locked in workers."""
    try:
        request.app.shared_ctx.other = multiprocessing.Value("i", 0)
    except RuntimeError as error:
        return json(str(error))
    return json(None)


def create_app(args: Any = None) -> Sanic[Any, Any]:
    note("created", given=args is not None)
    app: Sanic[Any, Any] = Sanic("factory")
    app.main_process_start(share)
    app.add_route(count, "/count", methods=["POST"])
    app.add_route(replace, "/replace", methods=["POST"])
    steerable(app)
    record(app)
    return app


def create_plain() -> Sanic[Any, Any]:
    """Return the application; a factory without parameters."""
    return create_app()
