"""An application whose new workers obey the file `gate`: empty, `hold`, `exit`, or `wait` for its end."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from sanic import Sanic

from .journal import note, record
from .steering import steerable

app: Sanic[Any, Any] = Sanic("gated")
steerable(app)
record(app)


def gate() -> str:
    """Return the content of the file in the current directory; empty where there is none."""
    try:
        return Path("gate").read_text()
    except FileNotFoundError:
        return ""


@app.before_server_start
async def pass_the_gate(_: Sanic[Any, Any]) -> None:
    word = gate()
    if word:
        note(word)
    if word == "hold":
        await asyncio.Event().wait()
    if word == "exit":
        os._exit(3)
    while gate() == "wait":
        await asyncio.wait([asyncio.get_running_loop().create_future()], timeout=0.02)
