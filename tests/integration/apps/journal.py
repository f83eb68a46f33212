"""Report the events of a process under test: one line on stdout, written at once and whole."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from typing import Any

from sanic import Sanic

MARK = "@journal "

WORKER_EVENTS = ("before_server_start", "after_server_start", "before_server_stop", "after_server_stop")
MAIN_EVENTS = ("main_process_start", "main_process_ready", "main_process_stop")
RELOAD_EVENTS = (
    "reload_process_start",
    "reload_process_stop",
    "before_reload_trigger",
    "after_reload_trigger",
)


def note(event: str, **fields: Any) -> None:
    """Report `event` with JSON-able `fields`. The line is shorter than PIPE_BUF, so lines never mix."""
    line = {"event": event, "pid": os.getpid(), "process": os.environ.get("SANIC_WORKER_NAME", ""), **fields}
    os.write(1, (MARK + json.dumps(line) + "\n").encode())


def recorder(event: str, **extra: Any) -> Callable[..., None]:
    """Return a listener that records `event`, and the changes that a reload trigger reports."""

    def listen(app: Sanic[Any, Any], *_: object, changed: set[str] | None = None) -> None:
        fields = dict(extra)
        if changed is not None:
            fields["changed"] = sorted(changed)
        if event == "before_server_start":
            fields["reloaded"] = app.config.get("RELOADED_FILES")
        note(event, app=app.name, **fields)

    return listen


def record(app: Sanic[Any, Any]) -> None:
    """Record every listener event of `app`."""
    for event in (*WORKER_EVENTS, *MAIN_EVENTS, *RELOAD_EVENTS):
        app.register_listener(recorder(event), event)


def noting(event: str, **fields: Any) -> Callable[[], None]:
    """Return a function without arguments that records `event`."""
    return partial(note, event, **fields)
