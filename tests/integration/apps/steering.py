"""Routes by which a test asks a worker for its name and pid, and makes it use `app.m`."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from datetime import datetime
from typing import Any

from sanic import HTTPResponse, Request, Sanic
from sanic.response import json

from .journal import note

if "START_METHOD" in os.environ:
    Sanic.start_method = os.environ["START_METHOD"]  # type: ignore[assignment]


def travel(value: Any) -> Any:
    """Return a time as its ISO text and its offset from UTC in seconds (None if it is naive); other values
    unchanged.
    """
    if isinstance(value, datetime):
        offset = value.utcoffset()
        return {"iso": value.isoformat(), "offset": None if offset is None else offset.total_seconds()}
    if isinstance(value, dict):
        return {key: travel(inner) for key, inner in value.items()}
    return value


async def whoami(request: Request) -> HTTPResponse:
    parent = multiprocessing.parent_process()
    return json(
        {
            "pid": os.getpid(),
            "parent": parent.pid if parent else None,
            "session": os.getsid(0),
            "name": os.environ.get("SANIC_WORKER_NAME"),
            "identifier": os.environ.get("SANIC_WORKER_IDENTIFIER"),
            "worker_process": os.environ.get("SANIC_WORKER_PROCESS"),
            "multiplexer": type(request.app.m).__module__,
            "m_name": request.app.m.name,
            "m_pid": request.app.m.pid,
            "reloaded": request.app.config.get("RELOADED_FILES"),
        }
    )


async def workers(request: Request) -> HTTPResponse:
    return json(travel(dict(request.app.m.workers)))


async def state(request: Request) -> HTTPResponse:
    return json(travel(dict(request.app.m.state)))


async def set_state(request: Request) -> HTTPResponse:
    """Set each key of the body; return the error, if there is one, as text."""
    try:
        for key, value in request.json.items():
            request.app.m.state[key] = value
    except LookupError as error:
        return json({"name": request.app.m.name, "error": str(error)})
    return json({"name": request.app.m.name})


async def verb(request: Request, name: str) -> HTTPResponse:
    """Call a method of `app.m` with the body as keyword arguments."""
    try:
        getattr(request.app.m, name)(**(request.json or {}))
    except Exception as error:
        return json({"name": request.app.m.name, "error": f"{type(error).__name__}: {error}"})
    return json({"name": request.app.m.name, "pid": os.getpid()})


async def send(request: Request) -> HTTPResponse:
    """Send the body's messages, one after another and unchanged, over the control channel."""
    for message in request.json:
        request.app.m._monitor_publisher.send(message)
    return json({"name": request.app.m.name})


async def die(request: Request) -> HTTPResponse:
    """End this worker by SIGKILL in the middle of the request."""
    os.kill(os.getpid(), signal.SIGKILL)
    return json(None)


async def block(request: Request) -> HTTPResponse:
    """Block the event loop for ever."""
    note("blocked")
    threading.Event().wait()
    return json(None)


def steerable(app: Sanic[Any, Any]) -> None:
    """Add the routes to `app`."""
    app.add_route(whoami, "/whoami", name=f"{app.name}_whoami")
    app.add_route(workers, "/workers", name=f"{app.name}_workers")
    app.add_route(state, "/state", name=f"{app.name}_state")
    app.add_route(set_state, "/state", methods=["POST"], name=f"{app.name}_set_state")
    app.add_route(verb, "/m/<name:str>", methods=["POST"], name=f"{app.name}_verb")
    app.add_route(send, "/send", methods=["POST"], name=f"{app.name}_send")
    app.add_route(die, "/die", methods=["POST"], name=f"{app.name}_die")
    app.add_route(block, "/block", name=f"{app.name}_block")
