"""Serve an application: ``served.py CONTENDER PORT [WORKERS]``.

Each worker that has started writes one byte to the file that ``STARTED`` names in the environment.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from sanic import Sanic, text

CONTENDER, PORT, WORKERS = [*sys.argv[1:], *("stock", "0", "1")[len(sys.argv) - 1 :]]
if CONTENDER != "stock":
    import worker

    worker.install()

app: Sanic[Any, Any] = Sanic("served", configure_logging=False)


@app.get("/")
async def root(request: Any) -> Any:
    """Answer."""
    return text("served")


@app.after_server_start
def count(app: Any) -> None:
    """Show that this worker serves."""
    if path := os.environ.get("STARTED"):
        with open(path, "ab", buffering=0) as started:
            started.write(b"1")


if __name__ == "__main__":
    app.run(host="127.0.0.1", port=int(PORT), workers=int(WORKERS), motd=False, access_log=False)
