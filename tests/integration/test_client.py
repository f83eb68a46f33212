"""The client of the inspector against a real server: it sees, steers, waits, and says how it ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.modes import NOT_FORK
from support.terminals import Terminal

from .harness import Server
from .tools import environment, free_port, run_python, wait_until

pytestmark = pytest.mark.ours

SOURCE = """
from sanic import Sanic, text
from sanic.worker.inspector import Inspector

class Mine(Inspector):
    def echo(self, *args, **kwargs):
        return {"args": args, "kwargs": kwargs}

app = Sanic("shop", inspector=True, inspector_class=Mine)
app.get("/whoami")(lambda request: text("ok"))
"""
ALL = {f"Sanic-{name}-0" for name in ("Server-0", "Server-1", "Inspector")}


class Steered:
    """A server and the commands that steer it."""

    def __init__(self, server: Server, port: int) -> None:
        self.server = server
        self.port = port

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        env = {"SANIC_INSPECTOR_PORT": str(self.port)}
        return run_python("-m", "worker", *args, cwd=self.server.cwd, env=env)

    def json(self, *args: str) -> Any:
        done = self.run(*args, "--json")
        assert done.returncode == 0, done
        return json.loads(done.stdout)

    def pids(self) -> dict[str, int]:
        """Return the pid of each worker, once each has a process and all servers are ready."""

        def look() -> dict[str, int]:
            workers = self.json("ps")["workers"]
            settled = all(one["pid"] and (one["phase"] == "ready" or not one["server"]) for one in workers)
            return {one["name"]: one["pid"] for one in workers} if settled else {}

        return wait_until(look, "workers that are ready")


@pytest.fixture(scope="module")
def steered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Steered]:
    cwd, port = tmp_path_factory.mktemp("shop"), free_port()
    (cwd / "shop.py").write_text(SOURCE)
    (cwd / "run").mkdir(0o700)
    env = {"SANIC_INSPECTOR_PORT": str(port), "XDG_RUNTIME_DIR": str(cwd / "run")}
    with Server.run("shop:app", cwd=cwd, env=env) as server:
        server.wait_ready()
        found = Steered(server, port)
        wait_until(lambda: found.run("inspect", "status").returncode == 0, "the inspector")
        found.pids()
        yield found
        assert found.run("inspect", "shutdown").returncode == 0
        assert server.wait() == 0


@pytest.fixture
def break_code(steered: Steered) -> Iterator[None]:
    """Break the code of the application for one test."""
    source = steered.server.cwd / "shop.py"
    source.write_text("import nothing_of_this_name\n")
    yield
    source.write_text(SOURCE)


def test_ps_shows_all_workers(steered: Steered) -> None:
    assert steered.pids().keys() == ALL
    done = steered.run("ps")
    assert {line.split()[0] for line in done.stdout.splitlines()[1:]} == ALL, done


@pytest.mark.parametrize("flags", [[], ["--zero-downtime"]])
def test_a_reload_is_waited_for(steered: Steered, flags: list[str]) -> None:
    before = steered.pids()
    done = steered.run("inspect", "reload", "--wait", *flags)
    assert (done.returncode, done.stderr) == (0, "")
    assert "done in" in done.stdout
    after = steered.pids()
    assert {name for name in ALL if before[name] != after[name]} == ALL - {"Sanic-Inspector-0"}


def test_a_named_worker_alone_is_restarted(steered: Steered) -> None:
    before = steered.pids()
    operation = steered.json("inspect", "restart", "Sanic-Server-1-0", "--wait")
    assert (operation["status"], operation["done"]) == ("done", 1)
    after = steered.pids()
    assert [name for name in ALL if before[name] != after[name]] == ["Sanic-Server-1-0"]


def test_a_change_of_the_number_is_waited_for(steered: Steered) -> None:
    assert steered.run("inspect", "-p", str(steered.port), "scale", "+1", "--wait").returncode == 0
    assert steered.pids().keys() == ALL | {"Sanic-Server-2-0"}
    assert steered.run("inspect", "scale", "2", "--wait").returncode == 0
    wait_until(lambda: steered.pids().keys() == ALL, "two servers")


@pytest.mark.usefixtures("break_code")
@pytest.mark.modes(*NOT_FORK)
def test_a_failed_rollout_has_its_reason_and_an_exit_code(steered: Steered) -> None:
    done = steered.run("inspect", "reload", "--zero-downtime", "--wait")
    assert done.returncode == 1
    assert "failed" in done.stderr and "nothing_of_this_name" in done.stderr, done
    assert len(done.stderr.splitlines()) == 1


def test_a_wrong_request_has_the_text_of_the_server(steered: Steered) -> None:
    done = steered.run("inspect", "restart", "Nobody")
    assert (done.returncode, done.stdout) == (1, "")
    assert "Nobody" in done.stderr and "Sanic-Server-0-0" in done.stderr


def test_a_command_of_the_application(steered: Steered) -> None:
    done = steered.run("inspect", "echo", "a", "--one=1", "--my-flag", "--no-other")
    expected = {"args": ["a"], "kwargs": {"one": "1", "my_flag": True, "other": False}}
    assert json.loads(done.stdout) == expected, done


def test_events_are_followed(steered: Steered) -> None:
    command = [sys.executable, "-m", "worker", "events", "-f", "--json", "-n", "1", "-p", str(steered.port)]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as client:
        try:
            assert client.stdout is not None
            client.stdout.readline()
            pid = steered.pids()["Sanic-Server-0-0"]
            os.kill(pid, signal.SIGKILL)
            exited = next(
                event
                for line in client.stdout
                # A process of an earlier restart may exit only now.
                if (event := json.loads(line))["type"] == "process_exited" and event["pid"] == pid
            )
            assert (exited["slot"], exited["signal"]) == ("Sanic-Server-0-0", "SIGKILL")
        finally:
            client.kill()
    wait_until(lambda: steered.pids()["Sanic-Server-0-0"] != pid, "another process")


def test_top_restarts_a_worker(steered: Steered) -> None:
    before = steered.pids()
    command = [sys.executable, "-m", "worker", "top", "-p", str(steered.port), "-i", "0.2"]
    with Terminal(*command) as top:
        top.shows("q quit")
        top.shows("Sanic-Server-1-0")
        top.type("jR")
        top.shows("Restart Sanic-Server-1-0?")
        top.type("y")
        wait_until(lambda: steered.pids()["Sanic-Server-1-0"] != before["Sanic-Server-1-0"], "a new process")
        after = steered.pids()
        top.shows(f" {after['Sanic-Server-1-0']} ")
        top.type("q")
        assert top.ended() == 0
        assert top.is_restored
    assert [name for name in ALL if before[name] != after[name]] == ["Sanic-Server-1-0"]


def test_metrics_and_operations_are_shown(steered: Steered) -> None:
    assert "sanic_worker_" in steered.run("inspect", "metrics").stdout
    steered.json("inspect", "restart", "Sanic-Server-1-0", "--wait")
    kinds = {one["kind"] for one in steered.json("inspect", "operations")["operations"]}
    assert "restart" in kinds


def test_the_only_server_of_the_user_is_found(steered: Steered, tmp_path: Path) -> None:
    env = {"XDG_RUNTIME_DIR": str(steered.server.cwd / "run")}
    done = run_python("-m", "worker", "inspect", "echo", "found", cwd=tmp_path, env=env)
    # Another server of this user may run on the machine: then both are listed.
    assert "found" in done.stdout or f"[{steered.server.pid}]  --host http://" in done.stderr, done
