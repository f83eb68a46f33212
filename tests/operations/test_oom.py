"""A worker that the kernel has killed for want of memory: said, counted, and replaced after a backoff."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path

import pytest
from integration.harness import Server
from integration.tools import free_port, wait_until
from support.cgroups import group

pytestmark = pytest.mark.operations

ONE = "Sanic-Server-0-0"
LIMIT = 400 << 20
EATING = """
from apps import steering
from sanic import Sanic, text

app = Sanic("eating")
app.add_route(steering.whoami, "/whoami")
app.add_route(steering.workers, "/workers")

kept = []

@app.get("/keep")
async def keep(request):
    kept.append(b"x" * (160 << 20))
    return text("kept")

@app.get("/eat")
async def eat(request):
    kept = []
    while True:
        kept.append(b"x" * (1 << 20))
"""


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A server in a control group with a memory limit, with the options that are the parameter."""
    (tmp_path / "eating.py").write_text(EATING)
    port = free_port()
    options = [
        "--host=127.0.0.1",
        f"--port={port}",
        "--workers=2",
        "--min-uptime=0.5",
        "--no-motd",
        *request.param,
    ]
    with group("memory") as limited:
        if limited.is_v2:
            limited.write("memory.max", LIMIT)
            with contextlib.suppress(OSError):
                limited.write("memory.swap.max", 0)
        else:
            limited.write("memory.limit_in_bytes", LIMIT)
            with contextlib.suppress(OSError):
                limited.write("memory.memsw.limit_in_bytes", LIMIT)
        inside = f'echo $$ > {limited.path}/cgroup.procs && exec "$@"'
        command = ["sh", "-c", inside, "sh", sys.executable, "-m", "worker", "eating:app", *options]
        with Server(command, cwd=tmp_path, port=port) as server:
            server.wait_ready().settled(2)
            yield server


# Without a limit of its own: a worker that takes its time to eat would be replaced first.
@pytest.mark.parametrize("server", [[]], indirect=True)
def test_a_worker_that_the_kernel_kills_is_told_apart(server: Server) -> None:
    before = server.settled(2)
    with contextlib.suppress(OSError, HTTPException):
        server.request("GET", "/eat")
    line = server.wait_line("was killed by the kernel for want of memory")
    assert "Restarting it in 0." in line.text, "not at once"
    after = server.settled(2)
    (name,) = (name for name in after if after[name]["pid"] != before[name]["pid"])
    assert after[name]["last_exit"] == "SIGKILL (out of memory)"
    assert "for want of memory" in after[name]["why"]
    # Another kill is none of the kernel's.
    os.kill(after[name]["pid"], signal.SIGKILL)
    server.wait_line(rf"{name} \[{after[name]['pid']}\] was killed by SIGKILL")
    wait_until(lambda: server.settled(2)[name]["pid"] != after[name]["pid"], "another process")
    assert server.settled(2)[name]["last_exit"] == "SIGKILL"
    assert server.stop() == 0


@pytest.mark.parametrize("server", [["--max-memory-percent=40"]], indirect=True)
def test_a_worker_is_replaced_at_its_share_of_the_limit(server: Server) -> None:
    before = {entry["pid"] for entry in server.settled(2).values()}
    assert "max_memory_percent" not in server.log(), "80 % together need no warning"
    assert server.request("GET", "/keep").text == "kept"
    line = server.wait_line(r"of memory \(max_memory_percent: 160\.0 MiB for this process\)\. Replacing it")
    server.wait_line("1 of 1 worker replaced")
    left = before & {entry["pid"] for entry in server.settled(2).values()}
    assert len(left) == 1
    assert not any(f"[{pid}]" in line.text for pid in left)
    assert server.stop() == 0
