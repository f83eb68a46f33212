"""A server under test whose main process is replaced by upgrades."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from signal import SIGTERM, SIGUSR2
from typing import Any

from integration.harness import Server
from integration.tools import wait_until

DONE = r"Upgrade finished in .*: the main process \[(\d+)\] serves"
FAILED = r"Upgrade failed after .*, and this main process stays; the new main process \[(\d+)\]: (.*)\."
REQUESTED = r"The new main process is \[(\d+)\]"

APP = '''\
import asyncio
import os

from apps.steering import steerable
from sanic import Sanic
from sanic.response import json

app = Sanic("Upgraded")
steerable(app)


@app.get("/version")
async def version(request):
    found = sorted(name for name in os.environ if name.startswith(("LISTEN_", "SANIC_WORKER_PREDECESSOR")))
    return json({"version": VERSION, "variables": found, "sanic": __import__("sanic").__version__})


@app.get("/held")
async def held(request):
    """Answer with the text that is written to a FIFO."""
    return json(await asyncio.to_thread(lambda: open("fifo").read()))


VERSION = 1
'''


def write(directory: Path, version: int | str) -> None:
    """Write a version of the application."""
    (directory / "upgraded.py").write_text(APP.replace("VERSION = 1", f"VERSION = {version}"))


class Upgraded(Server):
    """A server whose main process may be another one than the process that was started.

    Attributes:
        main: The pid of the main process.
    """

    @property
    def main(self) -> int:
        ended = [line.text for line in list(self.output.lines) if re.search(DONE, line.text)]
        found = re.search(DONE, ended[-1]) if ended else None
        return int(found[1]) if found else self.pid

    def upgrade(self) -> int:
        """Upgrade the server; return the pid of the main process, once the one before it has ended."""
        before = self.main
        pid = int(self.matched(DONE, self.begin())[1])
        wait_until(lambda: before not in self.processes(), "the end of the main process before")
        return pid

    def begin(self) -> int:
        """Ask for an upgrade; return the position in the output."""
        since = self.mark()
        os.kill(self.main, SIGUSR2)
        return since

    def matched(self, pattern: str, since: int = 0) -> re.Match[str]:
        """Return the match of the first line with this pattern."""
        found = re.search(pattern, self.wait_line(pattern, since=since, timeout=40).text)
        assert found is not None
        return found

    def successor(self, since: int) -> int:
        """Return the pid of the main process that an upgrade has started."""
        return int(self.matched(REQUESTED, since)[1])

    def failure(self, since: int) -> tuple[int, str]:
        """Return the pid of the main process of an upgrade that has failed, once it has ended, and why."""
        found = self.matched(FAILED, since)
        pid = int(found[1])
        wait_until(lambda: pid not in self.processes(), "the end of the new main process")
        return pid, found[2]

    def close(self) -> str:
        if self.main != self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.main, SIGTERM)
            with contextlib.suppress(AssertionError):
                wait_until(lambda: not self.processes(), "the end of all processes")
        return super().close()

    def version(self) -> Any:
        return self.get("/version")["version"]
