"""An application whose processes send malformed messages to the main process."""

from __future__ import annotations

import os
import pickle
import random
import signal
import struct
import sys
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any

from sanic import HTTPResponse, Request, Sanic
from sanic.response import json

from .journal import note, record
from .messages import MESSAGES, nothing
from .steering import steerable

app: Sanic[Any, Any] = Sanic("hostile")
steerable(app)
record(app)

FRAME = b"x" * 300_000


def ghost() -> object:
    """An object of a class that exists in this process only."""
    module = ModuleType("ghost")
    exec("class Ghost: pass", module.__dict__)
    sys.modules["ghost"] = module
    return module.Ghost()


@app.post("/bad/<which:str>")
async def bad(request: Request, which: str) -> HTTPResponse:
    """Send the named message, then a restart of an unknown process, which the main process must log."""
    message = ghost() if which == "ghost" else MESSAGES[which.replace("-", " ")]
    app.m._monitor_publisher.send(message)
    probe = f"Probe-{which}"
    app.m.restart(name=probe)
    return json({"name": app.m.name, "probe": probe})


@app.post("/seven")
async def seven(request: Request) -> HTTPResponse:
    """The tuple of earlier releases, which has no number of workers."""
    app.m._monitor_publisher.send(("Seven", nothing, {}, False, None, False, True))
    return json(None)


@app.post("/garbage")
async def garbage(request: Request) -> HTTPResponse:
    """A frame of the right form whose payload is no pickle, written past the connection."""
    os.write(app.m._monitor_publisher.fileno(), struct.pack("!i", 7) + b"\xffgarbage"[:7])
    app.m.restart(name="Probe-garbage")
    return json({"name": app.m.name, "probe": "Probe-garbage"})


def oversize(publisher: Connection[Any, Any]) -> None:
    """A header that promises a gigabyte, and a little of it."""
    os.write(publisher.fileno(), struct.pack("!i", 1 << 30) + b"x" * 1000)
    note("sent", what="oversize")


def noise(publisher: Connection[Any, Any]) -> None:
    """Bytes that are no frame at all."""
    os.write(publisher.fileno(), b"\xde\xad\xbe\xef" * 16)
    note("sent", what="noise")


def truncated(publisher: Connection[Any, Any]) -> None:
    """Write half a frame, and be killed."""
    os.write(publisher.fileno(), struct.pack("!i", 1000) + b"x" * 500)
    note("sent", what="truncated")
    os.kill(os.getpid(), signal.SIGKILL)


def honest(publisher: Connection[Any, Any], label: str, count: int) -> None:
    """Send large messages that each leave one line in the log: no process is called `honest-<label>-<n>`."""
    padding = "x" * len(FRAME)
    for number in range(count):
        # The files differ, because requests with the same files may become one.
        publisher.send(f"honest-{label}-{number}:{label}{number}{padding}")
    note("sent", what=f"honest-{label}")


def fuzz(publisher: Connection[Any, Any], rounds: int) -> None:
    """Start child after child that writes part of a frame and is killed in the middle of it."""
    chance = random.Random(7)
    payload = pickle.dumps(FRAME)
    frame = struct.pack("!i", len(payload)) + payload
    for _ in range(rounds):
        part = frame[: chance.choice((1, 3, 4, 5, chance.randrange(6, len(frame))))]
        child = os.fork()
        if not child:
            while part:
                part = part[os.write(publisher.fileno(), part) :]
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
    note("sent", what="fuzz")


@app.main_process_ready
async def ready(app: Sanic[Any, Any]) -> None:
    publisher = app.manager.monitor_publisher

    def prepared(name: str, func: Any, **kwargs: Any) -> None:
        app.manager.manage(name, func, {"publisher": publisher, **kwargs}, restartable=True, auto_start=False)

    prepared("Oversize", oversize)
    prepared("Noise", noise)
    prepared("Truncated", truncated)
    prepared("HonestA", honest, label="a", count=100)
    prepared("HonestB", honest, label="b", count=100)
    prepared("Fuzz", fuzz, rounds=20)
