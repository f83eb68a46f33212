"""An application of Sanic, as a module and as a script: ``sanic_app.py PORT WORKERS``.

Variables of the environment: ``SERVING`` names the file to which each worker that serves appends its pid,
``IMPORTS`` a module to import. ``INSTALL`` has the script install sanic-worker.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

if os.environ.get("INSTALL"):
    import worker

    worker.install()

from sanic import Sanic, text

if name := os.environ.get("IMPORTS"):
    import_module(name)

app: Sanic[Any, Any] = Sanic("benches", configure_logging=False)


@app.get("/")
async def root(request: Any) -> Any:
    """Answer."""
    return text("served")


@app.after_server_start
def report(app: Any) -> None:
    """Report that this worker serves."""
    with open(os.environ["SERVING"], "ab", buffering=0) as serving:
        serving.write(b"%d\n" % os.getpid())


if __name__ == "__main__":
    app.run(host="127.0.0.1", port=int(sys.argv[1]), workers=int(sys.argv[2]), motd=False, access_log=False)
