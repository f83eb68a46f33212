"""`worker.install()` after Sanic has begun: in the application's own module, or behind a loader."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from .harness import Server
from .tools import free_port, run_python

pytestmark = pytest.mark.ours

MODULE = """
import os
import worker
from sanic import Sanic

worker.install()

from apps.steering import steerable

Sanic.start_method = os.environ["START_METHOD"]
app = Sanic("own")
steerable(app)
"""


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_in_an_application_run_by_the_sanic_command(method: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(MODULE)
    port = free_port()
    command = [sys.executable, "-m", "sanic", "own:app", "--host=127.0.0.1", f"--port={port}"]
    env = {"START_METHOD": method}
    with Server([*command, "--no-motd"], cwd=tmp_path, port=port, env=env) as server:
        server.wait_ready()
        server.settled(1)
        assert server.get("/whoami")["multiplexer"].partition(".")[0] == "worker"
        assert server.stop() == 0
        assert server.log("err") == ""


def test_with_an_existing_loader(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(MODULE)
    script = """
import os
from sanic import Sanic
from sanic.worker.loader import AppLoader

if __name__ == "__main__":
    loader = AppLoader("own:app")
    app = loader.load()
    app.prepare(host="127.0.0.1", port=int(os.environ["PORT"]), workers=1, motd=False)
    Sanic.serve(primary=app, app_loader=loader)
"""
    (tmp_path / "script.py").write_text(script)
    env = {"START_METHOD": "spawn"}
    command = [sys.executable, "script.py"]
    with Server(command, cwd=tmp_path, port=free_port(), env=env) as server:
        server.wait_ready()
        server.settled(1)
        assert server.stop() == 0
        assert server.log("err") == ""


def test_existing_loaders_are_converted_and_restored(tmp_path: Path) -> None:
    script = """
import pickle
from sanic.worker.loader import AppLoader, CertLoader
import worker

loaders = [AppLoader("a:b", args=[1]), CertLoader(None)]
stock = [(type(one), vars(one).copy()) for one in loaders]
worker.install()
assert [type(one) for one in loaders] == [worker.AppLoader, worker.CertLoader]
assert [vars(pickle.loads(pickle.dumps(one))) for one in loaders] == [values for _, values in stock]
worker.uninstall()
assert [(type(one), vars(one)) for one in loaders] == stock
"""
    (tmp_path / "script.py").write_text(script)
    ended = run_python("script.py", cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_an_existing_reloader_is_refused(tmp_path: Path) -> None:
    script = """
from multiprocessing import Pipe
from sanic.worker.multiplexer import WorkerMultiplexer
from sanic.worker.reloader import Reloader
import worker

WorkerMultiplexer(None, {"": {}})
cycle = [WorkerMultiplexer(None, {"": {}})]
cycle.append(cycle)
del cycle
existing = Reloader(None, 1.0, set(), None)
try:
    worker.install()
except RuntimeError as error:
    print(error)
import sanic.worker.manager
assert sanic.worker.manager.WorkerManager is not worker.WorkerManager
del existing
worker.install()
assert sanic.worker.manager.WorkerManager is worker.WorkerManager
"""
    (tmp_path / "script.py").write_text(script)
    ended = run_python("script.py", cwd=tmp_path, env={"SANIC_WORKER_NAME": ""})
    assert ended.stderr == ""
    assert ended.stdout == (
        "An object of Sanic's own Reloader exists already and cannot be changed any more. "
        "Call worker.install() before it is made.\n"
    )
