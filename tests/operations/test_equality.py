"""A worker that is forked from a preload process begins in the conditions of a spawned one.

The main process changes them after it has started the preload process. Each condition of both workers is
compared, except for the known differences.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest
from integration.harness import Server
from integration.tools import free_port, wait_until
from support.running import environment

pytestmark = pytest.mark.operations

# The differences, each with its reason; docs/preload.md tells them to the user.
KNOWN = {
    "command line": "the kernel shows that of the preload process",
    "initial environment": "the kernel shows that of the preload process",
    "sys.orig_argv": "the command of the preload process",
    "names in __main__": "the program of the preload process is another one",
    "parent": "the preload process, and not the main process",
    "hash of a text": "one hash secret for all",
    "frozen objects": "the garbage collector leaves alone what the preload process has imported",
    "imported here": "the preload process has imported the application (app)",
}
# These differ between two main processes.
OF_MAIN = {"authkey", "pid of the parent process", "standard files", "variable SANIC_WORKER_PRELOAD"}

CHANGES = '''\
import logging, multiprocessing, os, resource, signal, sys, time
from pathlib import Path


def change_softly():
    """Change what a running process can take over."""
    os.environ.update(ADDED="1", PATH=os.environ["PATH"] + ":/added", TZ="Asia/Tokyo", TMPDIR=os.getcwd())
    os.environ["SANIC_LOG_EXTRA"] = "False"
    del os.environ["REMOVED"]
    os.umask(0o027)
    for limit, soft in ((resource.RLIMIT_NOFILE, 512), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(limit, (soft, resource.getrlimit(limit)[1]))
    sys.path.insert(0, os.path.join(os.getcwd(), "added"))
    sys.argv.append("added")
    multiprocessing.current_process().authkey = b"changed"
    # These are no conditions of a child: it does not take them over.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2, signal.SIGALRM])
    signal.signal(signal.SIGALRM, lambda *_: None)
    logging.getLogger("main").setLevel(logging.ERROR)
    sys.setrecursionlimit(2000)


def change_for_good():
    """Change what an interpreter takes over at its start alone."""
    os.nice(3)
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    signal.signal(signal.SIGWINCH, signal.SIG_IGN)
    os.environ.update(LC_ALL="C.UTF-8", PYTHONWARNINGS="error::BytesWarning", MALLOC_ARENA_MAX="2")
    Path("/proc/self/oom_score_adj").write_text("300")
    resource.setrlimit(resource.RLIMIT_MSGQUEUE, (100, 200))
    sys.stdout.flush()
    os.dup2(os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    if os.geteuid() == 0:
        os.setgroups([os.getgid(), 4242])


def change():
    change_softly()
    if os.environ["CHANGES"] == "all":
        change_for_good()
'''

APPLICATION = """\
import json, os
from sanic import Sanic

IMPORTED_BY = os.getpid()
is_main = "SANIC_WORKER_NAME" not in os.environ
when = os.environ["WHEN"]

if is_main and when == "import":
    import changes
    changes.change()

app = Sanic("application")
app.add_route(lambda request: None, "/")


@app.main_process_start
async def change(app):
    from worker._supervisor.duties import preloading
    preloading.FIRST_WAIT = 30
    if when == "listener":
        import changes
        changes.change()


@app.after_server_start
async def show(app):
    from support.dumping import dump
    found = {**dump(), "imported here": IMPORTED_BY == os.getpid()}
    with open("dump.json", "w") as file:
        json.dump(found, file)
    app.m.terminate()


if __name__ == "__main__":
    import worker
    worker.install()
    app.run(port=int(os.environ["PORT"]), workers=1, motd=False)
"""

BARE = """\
import json, os, sys
import changes
import worker

if __name__ == "__main__":
    worker.install()


def show(name):
    from support.dumping import dump
    found = dump()
    with open(name, "w") as file:
        json.dump(found, file)


if __name__ == "__main__":
    from multiprocessing import get_context
    from worker._spawn.preload.application import described
    from worker._spawn.preload.preloads import preloads
    from worker._spawn.processes import factory
    from worker.settings import resolve

    make = factory(get_context("spawn"), resolve({"graceful_timeout": 5}))

    def start(name):
        process = make(name="Sanic-Bare-0", target=show, kwargs={"name": name}, daemon=True)
        os.environ["SANIC_WORKER_NAME"] = process.name
        process.start()
        del os.environ["SANIC_WORKER_NAME"]
        process.join()
        print(name, process.is_preloaded, process.exitcode, flush=True, file=sys.stderr)

    assert preloads.ready(30)
    first = preloads.current
    changes.change_softly()
    if sys.argv[1] == "app":
        first.load(described(None))
        assert preloads.ready(30)
    os.umask(0o026)
    os.mkdir("elsewhere")
    os.chdir("elsewhere")
    start("forked")
    assert preloads.current is first
    preloads.current = None
    start("spawned")

    preloads.current = first
    changes.change_for_good()
    start("spawned for good")
    assert preloads.current is None
    preloads.start()
    assert preloads.ready(30)
    start("forked for good")
"""


EXITING = """\
import atexit, os, sys, tempfile
import worker

shared = tempfile.TemporaryDirectory()
atexit.register(lambda: print(os.getpid(), "exits", os.path.exists(shared.name), flush=True))

if __name__ == "__main__":
    worker.install()


def show():
    print(os.getpid(), shared.name, flush=True)


if __name__ == "__main__":
    from multiprocessing import get_context
    from worker._spawn.preload.application import described
    from worker._spawn.preload.preloads import preloads
    from worker._spawn.processes import factory

    preloads.current.load(described(None))
    assert preloads.ready(30)
    for number in range(2):
        process = factory(get_context("spawn"))(name="Sanic-Bare-0", target=show, daemon=True)
        process.start()
        process.join()
        assert process.is_preloaded
"""


def run(folder: Path, *command: str, **env: str) -> str:
    """Run a program in a directory, check that it has succeeded, and return its output."""
    for name, text in (("changes", CHANGES), ("application", APPLICATION), ("bare", BARE)):
        (folder / f"{name}.py").write_text(text)
    ended = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment({"REMOVED": "1", **env}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def differences(spawned: dict[str, Any], forked: dict[str, Any]) -> dict[str, Any]:
    """Return each item in which two dumps differ, except for the known differences."""
    preloaded = "worker._child.preload.application"
    assert preloaded in forked["modules"] and preloaded not in spawned["modules"]
    names = (spawned.keys() | forked.keys()) - KNOWN.keys() - {"modules", "descriptors"}
    found = {name: (spawned.get(name), forked.get(name)) for name in sorted(names)}
    # A spawned child has one more pipe, whose end shows its exit.
    opened = {**spawned["descriptors"], "pipe": spawned["descriptors"]["pipe"] - 1}
    found["descriptors"] = (opened, forked["descriptors"])
    # The preload process imports parts of the standard library in advance.
    modules = {name.partition(".")[0] for name in {*spawned["modules"]} ^ {*forked["modules"]}}
    found["modules"] = ([], sorted(modules - sys.stdlib_module_names - {"worker"}))
    return {name: values for name, values in found.items() if values[0] != values[1]}


@pytest.mark.parametrize("depth", ["framework", "app"])
def test_a_bare_process(depth: str, tmp_path: Path) -> None:
    run(tmp_path, "bare.py", depth)
    for suffix in ("", " for good"):
        spawned, forked = (
            json.loads((tmp_path / "elsewhere" / f"{name}{suffix}").read_text())
            for name in ("spawned", "forked")
        )
        assert (spawned["Umask"], spawned["variable ADDED"]) == ("0026", "1")
        assert (spawned["oom_score_adj"] == "300") == bool(suffix)
        assert differences(spawned, forked) == {}


@pytest.mark.parametrize(
    ("start", "when", "changes"),
    [
        ("command", "import", "soft"),
        ("command", "listener", "all"),
        ("script", "import", "all"),
        ("script", "listener", "soft"),
    ],
)
def test_a_worker_of_a_server(start: str, when: str, changes: str, tmp_path: Path) -> None:
    port = free_port()
    server = ["-m", "worker", "application:app", f"--port={port}", "--workers=1", "--no-motd"]
    dumps = []
    for depth in ("off", "framework", "app"):
        command = server if start == "command" else ["application.py"]
        run(tmp_path, *command, PORT=str(port), WHEN=when, CHANGES=changes, SANIC_WORKER_PRELOAD=depth)
        dumps.append(json.loads((tmp_path / "dump.json").read_text()))
        (tmp_path / "dump.json").unlink()
    spawned, *forked = (
        {name: value for name, value in dump.items() if name not in OF_MAIN} for dump in dumps
    )
    assert [dump["imported here"] for dump in dumps] == [True, True, False]
    for dump in forked:
        assert differences(json.loads(json.dumps(spawned)), dump) == {}


def test_a_change_from_outside_reaches_the_next_worker(tmp_path: Path) -> None:
    def oom_score(pid: int) -> Path:
        return Path(f"/proc/{pid}/oom_score_adj")

    def replaced() -> int:
        before = server.settled(1)
        name, entry = next((name, one) for name, one in before.items() if one.get("server"))
        os.kill(entry["pid"], SIGKILL)
        wait_until(lambda: server.settled(1)[name]["pid"] != entry["pid"], "another worker")
        pid: int = server.settled(1)[name]["pid"]
        return pid

    def ready() -> set[int]:
        """Return the preload processes that have given themselves a title, after their imports."""
        title = "sanic-worker: preload"
        return {pid for pid, command in server.processes().items() if command.startswith(title)}

    with Server.run("apps.cluster:app", cwd=tmp_path, workers=1) as server:
        server.wait_ready()
        first = wait_until(ready, "a preload process")
        oom_score(server.pid).write_text("200")
        since = server.mark()
        assert oom_score(replaced()).read_text() == "200\n"
        server.wait_line("the main process has since changed oom_score_adj. Workers are spawned", since=since)
        wait_until(lambda: ready() - first, "another preload process")
        pid = replaced()
        assert oom_score(pid).read_text() == "200\n"
        assert f"PPid:\t{server.pid}\n" not in Path(f"/proc/{pid}/status").read_text()


def test_exit_functions_of_an_application_run_in_each_worker(tmp_path: Path) -> None:
    (tmp_path / "exiting.py").write_text(EXITING)
    ended = run(tmp_path, "exiting.py")
    lines = [line.split() for line in ended.splitlines()]
    assert [words[1:] for words in lines[1::2]] == [["exits", "True"]] * 2
