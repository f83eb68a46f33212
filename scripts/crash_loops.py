"""Count the starts of a server in crash loops; ``crash_loops.py docs/crash-loops.md`` writes the page.

Each of four cases is a real server with four workers. It runs for a minute, or until it ends by itself.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

SECONDS = 60.0
SHOWN = 12

APP = """
import asyncio
import os
from pathlib import Path

from sanic import Sanic, text

name = os.environ.get("SANIC_WORKER_NAME", "")
what = Path("case").read_text()
if what == "import" and name.startswith("Sanic-Server"):
    raise ImportError("this module is broken")

app = Sanic("crashing")


@app.get("/")
async def hello(request):
    return text("hello")


@app.after_server_start
async def die(app):
    if what == "all" or (what == "one" and name == "Sanic-Server-2-0"):
        asyncio.get_running_loop().call_later(1.0, os._exit, 3)
"""

HEAD = """\
# Crash loops

This page shows the log of a server whose workers keep crashing. In each case it has four workers and the
default settings, and runs for a minute or until it ends by itself. Each case names the number of processes
that were started. The log is that of the main process, without times. `scripts/crash_loops.py` writes this
page.
"""


@dataclass(frozen=True)
class Case:
    """One way to crash.

    Attributes:
        title: The heading on the page.
        first: The crash at first: ``all``, ``one`` or ``import``; any other value for none.
        then: The crash after a reload; empty for no reload.
    """

    title: str
    first: str
    then: str = ""


CASES = (
    Case("Every worker exits one second after its start", "all"),
    Case("One of four workers exits one second after its start", "one"),
    Case("The application cannot be imported", "import"),
    Case("The application cannot be imported after a reload (SIGHUP)", "fine", "import"),
)


def run(case: Case) -> str:
    """Run one case; return its section of the page."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        Path(folder, "crashing.py").write_text(APP)
        Path(folder, "case").write_text(case.first)
        env = {name: value for name, value in os.environ.items() if not name.startswith("SANIC")}
        command = [
            sys.executable,
            "-m",
            "worker",
            "crashing:app",
            f"--port={port}",
            "--workers=4",
            "--no-motd",
        ]
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**env, "SANIC_NO_COLOR": "true"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        lines: list[str] = []
        if case.then:
            while sum("Worker ready" in line for line in lines) < 4:
                lines.append(process.stdout.readline())
            Path(folder, "case").write_text(case.then)
            process.send_signal(signal.SIGHUP)
        try:
            rest, _ = process.communicate(timeout=SECONDS)
            ending = f"The main process ended by itself with exit code {process.returncode}."
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            rest, _ = process.communicate(timeout=SECONDS)
            ending = "The server kept running."
    lines += rest.splitlines()
    return report(case, [line.rstrip() for line in lines], ending)


def report(case: Case, lines: list[str], ending: str) -> str:
    """Return the section of a case."""
    began = sum("Starting worker [" in line for line in lines)
    broken = sum(line.startswith("ImportError: this module is broken") for line in lines)
    said = [match[1] for line in lines if (match := re.match(r"Main +\S+ \S+ \S+ ERROR: (.*)", line))]
    said = [re.sub(r"\[\d+\]", "[pid]", line) for line in said if line]
    shown = said if len(said) <= SHOWN else [*said[: SHOWN // 2], "...", *said[-SHOWN // 2 :]]
    body = "\n".join(shown)
    starts = began + broken
    counted = f"{starts} start{'s' * (starts != 1)}"
    return f"\n## {case.title}\n\n{counted}. {ending}\n\n```\n{body}\n```\n"


def main() -> None:
    """Run all cases; write the page, or print it."""
    text = HEAD + "".join(map(run, CASES))
    if sys.argv[1:]:
        Path(sys.argv[1]).write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
