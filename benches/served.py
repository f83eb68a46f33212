"""Serve an application of one worker: ``served.py CONTENDER PORT``."""

from __future__ import annotations

import sys
from typing import Any

from sanic import Sanic, text

CONTENDER, PORT = sys.argv[1:] if len(sys.argv) == 3 else ("stock", "0")
if CONTENDER != "stock":
    import worker

    worker.install()

app: Sanic[Any, Any] = Sanic("served", configure_logging=False)


@app.get("/")
async def root(request: Any) -> Any:
    """Answer."""
    return text("served")


if __name__ == "__main__":
    app.run(host="127.0.0.1", port=int(PORT), workers=1, motd=False, access_log=False)
