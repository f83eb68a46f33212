"""Measure a reloader at work: ``reloading.py CONTENDER ROOT EDITS REST`` prints the result as JSON.

This is a program of its own because a process has one core for good, which ``WORKER_CORE`` chooses. Whether
there are file events, ``WATCHFILES_FORCE_POLLING`` decides. The reloader runs in a spawned process, as a
server's does, and watches one directory. The program edits a file in it again and again, and waits for the
message. The limit is ``watchfiles`` alone, which sends a message at every event.
"""

from __future__ import annotations

import json
import os
import sys
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from time import monotonic, sleep
from typing import Any

from usage import resident, used

# Packages that the tests need, and that Sanic imports if they are there, would count as memory of the
# reloader.
sys.modules.update(dict.fromkeys(("aioquic", "trustme")))  # type: ignore[arg-type]

CONTEXT = get_context("spawn")
# How long the first scan may take, and any message, seconds.
PATIENCE = 60.0
# How long the reloader has to become idle, seconds.
REST = 2.0


def application() -> Any:
    """Return a plain application."""
    from sanic import Sanic

    return Sanic("bench")


def reload(contender: str, root: Path, publisher: Connection) -> None:
    """Watch, and send a message for each change, until the end."""
    # Log lines are not part of the result.
    os.dup2(2, 1)
    if contender == "limit":
        from watchfiles import watch

        for _ in watch(root, step=50):
            publisher.send("")
    elif contender == "stock":
        from sanic.worker.loader import AppLoader
        from sanic.worker.reloader import Reloader

        Reloader(publisher, 0, {root}, AppLoader(factory=application))()
    else:
        from worker.loader import AppLoader as OurLoader
        from worker.reloader import Reloader as OurReloader

        OurReloader(publisher, 0, {root}, OurLoader(factory=application))()


class Edits:
    """Make edits of one file, each with a time of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._time = int(path.stat().st_mtime)

    def make(self) -> float:
        """Edit the file; return the time."""
        self._time += 1
        began = monotonic()
        self._path.write_text(str(self._time))
        os.utime(self._path, (self._time, self._time))
        return began


def measure(process: Any, messages: Connection, edits: Edits, times: int, rest: float) -> dict[str, Any]:
    """Edit this often, then leave the file alone for this many seconds."""
    chance = Random(7)
    samples: list[float] = []
    began = edits.make()
    # The first edits fall into the first scan.
    while not messages.poll(1.0):
        assert monotonic() < began + PATIENCE, "it does not see any edit"
        edits.make()
    sleep(REST)
    while len(samples) < times:
        while messages.poll(0.5 + chance.random()):
            messages.recv()
        began = edits.make()
        assert messages.poll(PATIENCE), "it has missed an edit"
        samples.append(1000 * (monotonic() - began))
    sleep(REST)
    (_, before), began = used(process.pid), monotonic()
    sleep(rest)
    (_, after), seconds = used(process.pid), monotonic() - began
    memory = resident(process.pid) * 1024 / 1e6
    return {"samples": samples, "cpu": 100 * (after - before) / 1e9 / seconds, "memory": memory}


def main() -> None:
    """Start the reloader, measure, print the result."""
    contender, root, times, rest = sys.argv[1:]
    messages, publisher = CONTEXT.Pipe(False)
    process = CONTEXT.Process(target=reload, args=(contender, Path(root), publisher), daemon=True)
    process.start()
    edited = max(Path(root).rglob("*.py"))
    print(json.dumps(measure(process, messages, Edits(edited), int(times), float(rest))))
    sys.stdout.flush()
    process.terminate()
    process.join()


if __name__ == "__main__":
    main()
