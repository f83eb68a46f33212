"""An application with managed processes of every kind."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from typing import Any

from sanic import HTTPResponse, Request, Sanic
from sanic.response import json

from .journal import note, record
from .steering import steerable

app: Sanic[Any, Any] = Sanic("managed")
steerable(app)
record(app)


def until_told(label: str) -> None:
    """Record the start, wait for SIGINT or SIGTERM, record the signal."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    previous = signal.set_wakeup_fd(writer.fileno())
    note("managed", label=label)
    told = reader.recv(1)[0]
    signal.set_wakeup_fd(previous)
    note("told", label=label, signal=signal.Signals(told).name)
    reader.close()
    writer.close()


def until_interrupted(label: str) -> None:
    """Wait as in the guide: without a handler of its own, the stop comes as KeyboardInterrupt."""
    reader, writer = socket.socketpair()
    try:
        note("managed", label=label)
        reader.recv(1)
    except KeyboardInterrupt:
        note("told", label=label, signal="KeyboardInterrupt")
    reader.close()
    writer.close()


def with_sigwait(label: str) -> None:
    """Wait for signals synchronously, which works only while no other thread can get them."""
    numbers = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    note("managed", label=label)
    note("told", label=label, signal=signal.Signals(signal.sigwait(numbers)).name)


def configured(label: str, config: dict[str, Any] | None = None) -> None:
    note("configured", label=label, config=config)
    until_told(label)


def job(label: str) -> None:
    """Return at once."""
    note("done", label=label)


def failing(label: str) -> None:
    """Exit at once, with an exit code of its own."""
    note("done", label=label)
    raise SystemExit(4)


FUNCTIONS: dict[str, Callable[..., None]] = {"until_told": until_told, "job": job, "failing": failing}


@app.main_process_ready
async def ready(app: Sanic[Any, Any]) -> None:
    manage = app.manager.manage
    manage("Transient", until_told, {"label": "transient"}, transient=True)
    manage("Configured", configured, {"label": "configured"}, transient=True)
    manage("Durable", until_told, {"label": "durable"})
    manage("Guide", until_interrupted, {"label": "guide"})
    manage("Sigwait", with_sigwait, {"label": "sigwait"})
    manage("Pair", until_told, {"label": "pair"}, workers=2)
    manage("Lazy", until_told, {"label": "lazy"}, restartable=True, auto_start=False)
    manage("Job", job, {"label": "job"}, restartable=True)
    manage("Short", job, {"label": "short"}, tracked=False)


@app.post("/manage")
async def manage(request: Request) -> HTTPResponse:
    """Call `app.m.manage` with the body's arguments; `func` names one of FUNCTIONS."""
    arguments = request.json
    arguments["func"] = FUNCTIONS[arguments["func"]]
    app.m.manage(**arguments)
    return json(None)
