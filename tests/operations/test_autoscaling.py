"""A real server under real load: its number of workers follows the load, and the quota of its group."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest
from integration.harness import Server
from integration.tools import MODULE, free_port, wait_until
from support import cgroups

pytestmark = [pytest.mark.operations, pytest.mark.slow, pytest.mark.native]

SOURCE = """
import os
import threading

from sanic import Sanic, json, text
from worker._supervisor.duties import scaling_policy

# The number falls after minutes. Here, the main process waits for seconds only.
scaling_policy.DOWN_WINDOW = scaling_policy.FALL_PAUSE = 4.0

app = Sanic("scaled")
app.config.ACCESS_LOG = False

@app.get("/")
async def index(request):
    return text("ok")

@app.get("/block")
async def block(request):
    threading.Event().wait(0.1)
    return text("ok")

@app.get("/pid")
async def pid(request):
    return json(os.getpid())

@app.get("/workers")
async def workers(request):
    return json(sum(bool(entry.get("server")) for entry in app.m.workers.values()))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "scaled.py").write_text(SOURCE)
    return tmp_path


def start(folder: Path, *args: str, before: tuple[str, ...] = ()) -> Server:
    port = free_port()
    command = [sys.executable, "-m", MODULE, "scaled:app", "--host=127.0.0.1", f"--port={port}", *args]
    return Server([*before, *command], cwd=folder, port=port)


@contextmanager
def load(server: Server, clients: int) -> Iterator[list[Any]]:
    """Keep this many requests waiting; yield the failures."""
    is_over = threading.Event()
    failures: list[Any] = []

    def run() -> None:
        while not is_over.is_set():
            try:
                response = server.request("GET", "/block", timeout=30)
            except (OSError, HTTPException) as error:
                failures.append(error)
            else:
                if response.status != 200:
                    failures.append(response)

    threads = [threading.Thread(target=run) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield failures
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def test_the_number_rises_under_load_and_falls_again(folder: Path) -> None:
    with start(folder, "--workers=1..3", "--no-motd") as server:
        server.wait_ready("/")
        with load(server, 8) as failures:
            server.wait_line(
                r"Scaling from 1 to 2 workers: loop \d+ % busy.*; 1 of 1\.\.3 workers", timeout=30
            )
            server.wait_line(r"Scaling from 2 to 3 workers: loop", timeout=60)
        server.wait_line(r"Scaling from 3 to 2 workers: loop at most \d+ % busy for 4 s", timeout=60)
        server.wait_line(r"Scaling from 2 to 1 workers: loop at most", timeout=60)
        wait_until(lambda: server.get("/workers") == 1, "one worker", timeout=30)
        assert failures == []
        text = server.log()
        assert text.count("Scaling from") == 4, text


def test_an_idle_server_costs_the_main_process_no_wakeup(folder: Path) -> None:
    with start(folder, "--workers=1..3", "--hang-timeout=off", "--no-motd") as server:
        server.wait_ready("/")
        worker = server.get("/pid")

        def wakeups() -> int:
            """Return the number of wakeups of the main process in two beats of the worker."""
            beats, before = switches(worker), switches(server.pid)
            wait_until(lambda: switches(worker) >= beats + 2, "two beats", timeout=30)
            return switches(server.pid) - before

        wait_until(lambda: wakeups() == 0, "a main process that sleeps", timeout=90)


def switches(pid: int) -> int:
    """Return how often the main thread of a process has begun to wait."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


@pytest.mark.parametrize("args", [["--fast"], ["--workers=auto"]])
def test_the_quota_of_the_group_limits_the_number(folder: Path, args: list[str]) -> None:
    with cgroups.group("cpu") as group:
        if group.is_v2:
            group.write("cpu.max", "100000 100000")
        else:
            group.write("cpu.cfs_quota_us", 100000)
        join = ("sh", "-c", f'echo $$ > {group.path}/cgroup.procs; exec "$@"', "sh")
        with start(folder, *args, before=join) as server:
            server.wait_ready("/")
            server.wait_line("core. runs 1 worker$")
            assert "single worker" in server.log()
