"""The titles of real processes, as the kernel and ``ps`` show them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from .harness import Server
from .tools import MODULE, free_port, run_python, wait_until

pytestmark = [pytest.mark.ours, pytest.mark.operations]

Run = Callable[..., Server]
METHODS = pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
TARGET = "apps.inspected:app"


def proc(pid: int, name: str) -> bytes:
    return Path(f"/proc/{pid}/{name}").read_bytes()


def title(pid: int) -> str:
    return proc(pid, "cmdline").rstrip(b"\0").decode()


def environment(pid: int) -> dict[str, str]:
    """Return the environment of a process, as other processes read it.

    Sanic removes variables of its own from the main process, so they are left out.
    """
    lines = [os.fsdecode(line) for line in proc(pid, "environ").split(b"\0") if line]
    return dict(line.split("=", 1) for line in lines if not line.startswith("SANIC_"))


def pids(server: Server) -> dict[str, int]:
    """Return the processes of all slots that have one, name to pid."""
    table = server.table()
    return {name: entry["pid"] for name, entry in table.items() if name != "Sanic-Main" and "pid" in entry}


def titles(server: Server) -> dict[str, str]:
    return {name: title(pid) for name, pid in pids(server).items()}


def expected(server: Server, *names: str, target: str = TARGET) -> dict[str, str]:
    return {name: f"sanic-worker: {name} {target}" for name in names}


def started(run: Run, *args: str, method: str = "fork", target: str = TARGET, **options: Any) -> Server:
    env = {"SANIC_INSPECTOR_PORT": "0", **options.pop("env", {})}
    server = run(target, *args, env=env, start_method=method, **options).wait_ready()
    server.settled(options.get("workers", 2))
    return server


@METHODS
def test_each_child_has_its_title(run: Run, method: str) -> None:
    server = started(run, method=method)
    names = ("Sanic-Server-0-0", "Sanic-Server-1-0", "Sanic-Inspector-0")
    wait_until(lambda: titles(server) == expected(server, *names), "the titles")
    for name, pid in pids(server).items():
        shown = subprocess.run(
            ["ps", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=True
        )
        assert shown.stdout.strip() == f"sanic-worker: {name} {TARGET}"
        assert proc(pid, "comm") == proc(server.pid, "comm")
        # No variable is lost, to other processes either.
        found, main = environment(pid), environment(server.pid)
        assert found == main
        assert b"_setproctitle" in proc(pid, "maps")
    # The main process keeps its own, and has not even loaded the library.
    assert title(server.pid).split("\0")[1:4] == ["-m", MODULE, TARGET]
    assert b"_setproctitle" not in proc(server.pid, "maps")


@METHODS
@pytest.mark.parametrize("zero_downtime", [True, False])
def test_a_process_that_replaces_another_has_its_title(run: Run, method: str, zero_downtime: bool) -> None:
    server = started(run, method=method, workers=1)
    before = pids(server)["Sanic-Server-0-0"]
    server.post("/m/restart", {"zero_downtime": zero_downtime})
    wait_until(lambda: before not in server.processes(), "the old one gone")
    server.settled(1)
    assert pids(server)["Sanic-Server-0-0"] != before
    names = ("Sanic-Server-0-0", "Sanic-Inspector-0")
    wait_until(lambda: titles(server) == expected(server, *names), "the titles")


@METHODS
def test_no_titles_if_they_are_switched_off(run: Run, method: str) -> None:
    server = started(run, "--process-titles=off", method=method)
    assert not [line for line in server.processes().values() if line.startswith("sanic-worker:")]
    assert not [pid for pid in server.processes() if b"_setproctitle" in proc(pid, "maps")]


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_the_preload_process_has_a_title(run: Run, method: str) -> None:
    server = started(run, "--auto-reload", method=method)
    for shown in ("sanic-worker: preload process", f"sanic-worker: Sanic-Reloader-0 {TARGET}"):
        wait_until(lambda shown=shown: shown in server.processes().values(), shown)


@METHODS
def test_the_process_of_the_state_has_a_title(run: Run, method: str) -> None:
    server = started(run, method=method, env={"WORKER_CORE": "pure"})
    wait_until(lambda: "sanic-worker: state process" in server.processes().values(), "the state process")
    (pid,) = [pid for pid, line in server.processes().items() if line == "sanic-worker: state process"]
    assert environment(pid) == environment(server.pid)


def test_an_application_of_a_script_has_its_own_name(tmp_path: Path) -> None:
    with scripted(tmp_path, method="spawn") as server:
        names = ("Sanic-Server-0-0", "Sanic-Managed-0")
        wait_until(lambda: titles(server) == expected(server, *names, target="script"), "the titles")


OWN = "setproctitle('mine ' + str(__name__ == '__main__'))"


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_title_that_a_child_sets_at_import_stays(tmp_path: Path, method: str) -> None:
    with scripted(tmp_path, method=method, at_import=OWN) as server:
        # The script is `__mp_main__` in a child.
        wait_until(lambda: set(titles(server).values()) == {"mine False"}, "titles of the script")


def test_a_forked_child_keeps_the_title_that_the_script_has_set(tmp_path: Path) -> None:
    with scripted(tmp_path, method="fork", at_import=OWN) as server:
        wait_until(lambda: set(titles(server).values()) == {"mine True"}, "titles of the script")


@METHODS
def test_a_title_that_a_server_sets_stays(tmp_path: Path, method: str) -> None:
    with scripted(tmp_path, method=method, in_server="setproctitle('my server')") as server:
        wait_until(lambda: titles(server)["Sanic-Server-0-0"] == "my server", "the title of the server")
        pid = pids(server)["Sanic-Server-0-0"]
        assert environment(pid) == environment(server.pid)


def test_a_short_command_line_cuts_the_title(tmp_path: Path) -> None:
    with scripted(tmp_path, method="fork", executable="python") as server:
        length = len(proc(server.pid, "cmdline"))
        whole = "sanic-worker: Sanic-Server-0-0 script"
        assert length < len(whole)
        pid = pids(server)["Sanic-Server-0-0"]
        # The library takes two bytes less.
        wait_until(lambda: title(pid) == whole[: length - 2], "a title")
        assert environment(pid) == environment(server.pid)


def test_titles_without_the_library(tmp_path: Path) -> None:
    """Titles are off then, and it is an error to ask for them."""
    (tmp_path / "hidden.py").write_text(HIDDEN)
    done = run_python("hidden.py", cwd=tmp_path)
    default, refusal = done.stdout.splitlines()
    assert default == "False"
    assert refusal.startswith(
        "process_titles of worker.install() needs the library setproctitle, which is not"
    )


HIDDEN = """
import importlib.util

found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "setproctitle" else found(name, *rest)

import worker
from worker import settings

print(settings.resolve({}).process_titles)
worker.install(process_titles=False)
try:
    worker.install(process_titles=True)
except ValueError as error:
    print(error)
"""

SCRIPT = """
import os
import sys
from setproctitle import setproctitle

import worker

worker.install()

from sanic import Sanic
from apps.steering import steerable

{at_import}
app = Sanic("script")
steerable(app)

@app.after_server_start
async def start(app):
    {in_server}

@app.main_process_ready
async def ready(app):
    app.manager.manage("Managed", wait, {{}})

def wait():
    import signal
    signal.sigwait({{signal.SIGINT}})

if __name__ == "__main__":
    app.run(host="127.0.0.1", port=int(os.environ["PORT"]), workers=1, motd=False)
"""


@contextmanager
def scripted(
    folder: Path, *, method: str, at_import: str = "", in_server: str = "pass", executable: str = ""
) -> Iterator[Server]:
    """Run a script, and wait until it serves. With ``executable``, its command line is short."""
    script = folder / ("s" if executable else "script.py")
    script.write_text(SCRIPT.format(at_import=at_import, in_server=in_server))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    # A title of the script's own would overwrite the environment, by which the test finds the processes.
    env = {"START_METHOD": method, "PATH": path, **({"SPT_NOENV": "1"} if at_import else {})}
    command = ["env", executable or sys.executable, script.name]
    with Server(command, cwd=folder, env=env, port=free_port()) as server:
        server.wait_ready()
        server.settled(1)
        yield server
