"""An application whose import never ends in a worker."""

from __future__ import annotations

import os
import threading
from typing import Any

from sanic import Sanic

from .journal import note

if os.environ.get("SANIC_WORKER_NAME", "").startswith("Sanic-Server"):
    note("importing")
    threading.Event().wait()

app: Sanic[Any, Any] = Sanic("slow")
