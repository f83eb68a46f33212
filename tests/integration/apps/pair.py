"""Two applications in one server. PORT is the first one's, SECOND the other's."""

from __future__ import annotations

import os
from typing import Any

from sanic import Sanic

from .journal import record
from .steering import steerable

first: Sanic[Any, Any] = Sanic("first")
second: Sanic[Any, Any] = Sanic("second")
for application in (first, second):
    steerable(application)
    record(application)


def serve() -> None:
    first.prepare(host="127.0.0.1", port=int(os.environ["PORT"]), workers=2, motd=False)
    second.prepare(host="127.0.0.1", port=int(os.environ["SECOND"]), workers=2, motd=False)
    Sanic.serve(primary=first)
