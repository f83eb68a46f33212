"""The exit code tells how the server has ended, in each way to run it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from signal import SIGHUP, SIGKILL, SIGSTOP, SIGTERM, SIGUSR1, SIGUSR2

import pytest
from integration.harness import Server
from integration.tools import free_port, wait_until

from worker.constants import ExitCode

pytestmark = pytest.mark.operations

APP = """
import os
from pathlib import Path
import worker
from sanic import Sanic, text

worker.install(max_consecutive_failures=1, graceful_timeout=float(os.environ["GRACEFUL"]))
if "SANIC_WORKER_NAME" in os.environ and Path("broken").exists():
    raise RuntimeError("broken")

app = Sanic("app")

@app.get("/pid")
async def pid(request):
    return text(str(os.getpid()))

if __name__ == "__main__":
    app.run(port=int(os.environ["PORT"]), motd=False)
    print("after", flush=True)
"""

ENDING = """
from sanic import Sanic

app = Sanic("ending")

@app.get("/")
async def index(request):
    pass

@app.after_server_start
async def stop(app):
    app.m.terminate()
"""

# Sends a signal to its own process when the server has ended.
LATE = """
import os
import sys
from worker import cli

if __name__ == "__main__":
    signum = int(sys.argv.pop())
    sys.argv += ["ending:app", "--no-motd", f"--port={os.environ['PORT']}"]
    cli.main()
    os.kill(os.getpid(), signum)
    print("after", flush=True)
"""

WAYS = {
    "sanic-worker": ["-m", "worker", "shop:app"],
    "sanic": ["-m", "sanic", "shop:app"],
    "run": ["shop.py"],
}
EACH_WAY = pytest.mark.parametrize("way", WAYS)


def started(way: str, folder: Path, graceful: int = 15) -> Server:
    port = free_port()
    (folder / "shop.py").write_text(APP)
    flags = [] if way == "run" else [f"--port={port}", "--no-motd"]
    env = {"GRACEFUL": str(graceful)}
    return Server([sys.executable, *WAYS[way], *flags], cwd=folder, port=port, env=env)


def pid(server: Server) -> int:
    return int(server.wait_ready("/pid").request("GET", "/pid").text)


@EACH_WAY
def test_a_stop_in_order(way: str, tmp_path: Path) -> None:
    with started(way, tmp_path) as server:
        pid(server)
        assert server.stop() == ExitCode.STOPPED
        assert bool(server.log().endswith("after")) == (way == "run")


@EACH_WAY
def test_a_failed_start(way: str, tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    with started(way, tmp_path) as server:
        assert server.wait() == ExitCode.NOT_STARTED


@EACH_WAY
def test_a_crash_loop(way: str, tmp_path: Path) -> None:
    with started(way, tmp_path) as server:
        worker = pid(server)
        (tmp_path / "broken").touch()
        os.kill(worker, SIGKILL)
        assert server.wait() == ExitCode.CRASH_LOOP


@EACH_WAY
def test_a_worker_that_had_to_be_killed(way: str, tmp_path: Path) -> None:
    with started(way, tmp_path, graceful=1) as server:
        os.kill(pid(server), SIGSTOP)
        assert server.stop() == ExitCode.KILLED


def test_a_second_signal(tmp_path: Path) -> None:
    with started("sanic-worker", tmp_path) as server:
        os.kill(pid(server), SIGSTOP)
        server.signal(SIGTERM)
        server.wait_line("Received signal SIGTERM")
        assert server.stop() == ExitCode.KILLED


@pytest.mark.parametrize("signum", [SIGHUP, SIGUSR1, SIGUSR2])
def test_a_request_after_the_end_changes_nothing(signum: int, tmp_path: Path) -> None:
    """A rotation of log files may begin while the server stops."""
    (tmp_path / "ending.py").write_text(ENDING)
    (tmp_path / "late.py").write_text(LATE)
    with Server([sys.executable, "late.py", str(int(signum))], cwd=tmp_path, port=free_port()) as server:
        assert server.wait() == ExitCode.STOPPED
        assert "after" in server.log()


def test_a_wrong_setting(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(APP)
    port = f"--port={free_port()}"
    for arguments in (
        ["shop:nothing"],
        ["nowhere:app"],
        ["shop:app", "--max-surge=many"],
        ["shop:app", port, "--user=no-such-user"],
        ["shop:app", port, "--group=no-such-group"],
        ["shop:app", port, f"--pid-file={tmp_path}"],
    ):
        env = {"GRACEFUL": "15"}
        with Server([sys.executable, "-m", "worker", *arguments], cwd=tmp_path, env=env) as server:
            assert server.wait() == ExitCode.WRONG_USAGE


def test_the_workers_of_a_server_that_failed_are_gone(tmp_path: Path) -> None:
    with started("sanic-worker", tmp_path) as server:
        worker = pid(server)
        (tmp_path / "broken").touch()
        os.kill(worker, SIGKILL)
        server.wait()
        wait_until(lambda: not server.processes(), "the end of all")
