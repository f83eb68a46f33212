"""Measure a server whose code is edited: ``saved.py CONTENDER EDITS`` prints the time of each edit as JSON.

The time runs from just before the application's file is written to the first answer of the new code.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from time import monotonic, sleep

from servers import answer, free_port, running

APP = """
from sanic import Sanic, text

app = Sanic("saved")


@app.get("/")
async def version(request):
    return text("{}")
"""
# How often the server is asked, and how long an answer may take, seconds.
PAUSE = 0.005
PATIENCE = 60.0
# The shortest pause before each edit, seconds: the last restart must be over.
REST = 1.5


def wait_for(port: int, version: int) -> None:
    """Ask until the answer is of this version."""
    deadline = monotonic() + PATIENCE
    # Stock has moments in which no worker answers.
    while answer(port, timeout=5) != str(version).encode():
        assert monotonic() < deadline, f"no answer of version {version}"
        sleep(PAUSE)


def edits(app: Path, port: int, times: int) -> list[float]:
    """Edit this often; return the time of each edit, ms."""
    chance = Random(7)
    samples = []
    wait_for(port, 0)
    # A reloader that is just starting takes an edit for the original.
    sleep(3 * REST)
    for version in range(1, times + 1):
        sleep(REST + chance.random())
        began = monotonic()
        app.write_text(APP.format(version))
        wait_for(port, version)
        samples.append(1000 * (monotonic() - began))
    return samples


def main() -> None:
    """Start the server, measure, print the result."""
    contender, times = sys.argv[1:]
    port = free_port()
    module = "sanic" if contender == "stock" else "worker"
    with TemporaryDirectory() as folder:
        app = Path(folder, "saved_app.py")
        app.write_text(APP.format(0))
        command = [sys.executable, "-m", module, "saved_app:app", f"--port={port}", "--reload", "--no-motd"]
        with running(command, cwd=folder):
            print(json.dumps({"samples": edits(app, port, int(times))}))


if __name__ == "__main__":
    main()
