"""Without the native core the state is in a separate process, which may exit at any time."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGTERM

import pytest

from .harness import Server
from .tools import free_port, port_is_free, wait_until

Run = Callable[..., Server]

pytestmark = pytest.mark.ours

PURE = {"WORKER_CORE": "pure"}
STATEFUL = """
from apps.journal import note
from apps.steering import steerable
from sanic import Sanic

app = Sanic("stateful")
app.config.INSPECTOR = True
steerable(app)


@app.main_process_stop
async def stopped(app):
    try:
        note("stopped", names=sorted(app.manager.worker_state))
    except ConnectionError as error:
        note("stopped", error=str(error))
"""


SLOW = [pytest.param(method, marks=pytest.mark.soak) for method in ("spawn", "forkserver")]


@pytest.fixture
def started(run: Run, tmp_path: Path) -> Run:
    """Start a server with two workers, an inspector and no native core."""
    (tmp_path / "stateful.py").write_text(STATEFUL)

    def start(method: str, inspector: int = 0) -> Server:
        env = {**PURE, "SANIC_INSPECTOR_PORT": str(inspector)}
        server = run("stateful:app", start_method=method, env=env).wait_ready()
        server.settled(2)
        wait_until(
            lambda: all(one["phase"] == "ready" for one in server.table().values() if one.get("server")),
            "main to know that they are ready",
        )
        return server

    return start


def state_process(server: Server) -> int:
    """Return the pid of the process that listens at the address of the state."""
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    inodes = {f"socket:[{line[6]}]" for line in lines if line[-1].startswith("@sanic-worker-")}

    def holds(pid: int) -> bool:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            # The process closes descriptors meanwhile.
            with suppress(FileNotFoundError):
                if os.readlink(entry) in inodes:
                    return True
        return False

    (pid,) = filter(holds, server.processes())
    return pid


@pytest.mark.parametrize("method", [*SLOW, "fork"])
def test_the_state_process_outlives_the_workers(started: Run, method: str) -> None:
    """Ctrl-C reaches every process of the terminal's group, and a listener can still read the state."""
    server = started(method)
    pid = state_process(server)
    assert os.getsid(pid) == pid
    assert server.stop(SIGINT, to="group") == 0
    (stopped,) = server.events("stopped")
    assert "Sanic-Main" in stopped.value("names")
    assert server.log("err") == ""


def test_a_stop_of_all_processes_at_once(started: Run) -> None:
    """As systemd does it."""
    server = started("spawn")
    assert server.stop(SIGTERM, to="all") == 0
    assert server.log("err") == ""


def test_no_process_is_left_after_a_kill_of_the_main_process(started: Run) -> None:
    server = started("spawn")
    server.stop(SIGKILL)
    wait_until(lambda: not server.processes(), "all processes gone")


@pytest.mark.parametrize("method", [SLOW[0], "fork"])
def test_the_server_serves_after_a_kill_of_the_state_process(started: Run, method: str) -> None:
    """The server serves on; reading the state is an error that says it is gone; a stop works."""
    inspector = free_port()
    server = started(method, inspector)
    workers = {name: entry["pid"] for name, entry in server.table().items()}
    wait_until(lambda: not port_is_free(inspector), "the inspector")
    os.kill(state_process(server), SIGKILL)
    wait_until(lambda: server.request("GET", "/workers").status == 500, "an answer without the state")
    server.wait_line("BrokenPipeError: the process that holds the state of the workers has exited")
    answer = server.request("GET", "/", port=inspector)
    assert (answer.status, "cannot be reached" in answer.text) == (503, True)
    for verb in ({"all_workers": True}, {"all_workers": True, "zero_downtime": True}):
        since = server.mark()
        assert "error" not in server.post("/m/restart", verb)
        server.wait_line("Cannot start .*: the state of the workers cannot be reached", since=since)
    assert server.get("/whoami")["pid"] in workers.values()
    assert server.stop() == 0
    (stopped,) = server.events("stopped")
    assert "has exited" in stopped.value("error")
