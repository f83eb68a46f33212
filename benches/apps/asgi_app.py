"""The same as ``sanic_app.py`` for the servers of ASGI applications, without a framework."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

if name := os.environ.get("IMPORTS"):
    import_module(name)


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer; report that this worker serves when the server asks it to start."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"6")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"served"})


async def lifespan(receive: Any, send: Any) -> None:
    """Report the start, wait for the end."""
    await receive()
    report()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


def report() -> None:
    """Report that this worker serves."""
    with open(os.environ["SERVING"], "ab", buffering=0) as serving:
        serving.write(b"%d\n" % os.getpid())
