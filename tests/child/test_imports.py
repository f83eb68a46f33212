"""The modules that a server has loaded, and those of the command before it starts the preload process.

In a server, the modules of the main process are imported when one of them is used.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.running import python

from worker._core import IS_NATIVE

pytestmark = pytest.mark.slow

MODULES = """
import json, os, signal, sys
from sanic import Sanic

manager, Sanic.start_method = sys.argv[1:]
if manager == "ours":
    import worker

    worker.install()

app = Sanic("app", configure_logging=False)
app.add_route(lambda request: None, "/")

@app.after_server_start
async def show(app):
    print(json.dumps(sorted(sys.modules)), flush=True)
    if manager == "ours":
        app.m.terminate()
    else:
        # A server of stock that starts may lose its stop.
        os.killpg(0, signal.SIGKILL)

if __name__ == "__main__":
    import socket

    if manager == "stock":
        os.setpgid(0, 0)

    with socket.create_server(("127.0.0.1", 0)) as sock:
        app.run(sock=sock, workers=1, motd=False)
"""

# All that a server needs of this package, and all that it imports beside.
OURS = {
    "worker",
    "worker._child",
    "worker._child.bootstrap",
    "worker._child.busy",
    "worker._child.descriptors",
    "worker._child.drain",
    "worker._child.exits",
    "worker._child.handshakes",
    "worker._child.heartbeat",
    "worker._child.logs",
    "worker._child.parent_watch",
    "worker._child.responder",
    "worker._child.samples",
    "worker._child.signals",
    "worker._child.slow_loop",
    "worker._child.stacks",
    "worker._child.titles",
    "worker.cli",
    "worker.cli.namesake",
    "worker._control",
    "worker._control.send",
    "worker._core",
    "worker._core.choose",
    "worker._spawn",
    "worker._spawn.processes",
    "worker._system",
    "worker._system.proc",
    "worker._state",
    "worker._state.foreign",
    "worker._state.identity",
    "worker._state.memory",
    "worker._state.schema",
    "worker._state.shared",
    "worker.constants",
    "worker.inspector",
    "worker.integration",
    "worker.integration.replacement",
    "worker.loader",
    "worker.multiplexer",
    "worker.serve",
    "worker.settings",
    "worker.settings.table",
    "worker.settings.values",
    "worker.state",
    "faulthandler",
    "setproctitle",
    "setproctitle._setproctitle",
    # Sanic imports it when it serves a folder.
    "sanic.simple",
}
NATIVE = {"worker._native", "worker._core.codec"}
# The state is then the proxy of a process.
PURE = {
    "worker._core.messages",
    "worker._core.pure",
    "worker._core.pure.control",
    "worker._core.pure.monitor",
    "worker._core.pure.parent_watch",
    "worker._core.pure.scan",
    "worker._spawn.state_process",
}


def modules(manager: str, method: str, folder: Path, preload: str = "off") -> set[str]:
    """Return the modules that a serving server has loaded."""
    ended = python(MODULES, manager, method, cwd=folder, env={"SANIC_WORKER_PRELOAD": preload})
    lines = [line for line in ended.stdout.splitlines() if line.startswith("[")]
    assert lines, ended.stdout + ended.stderr
    return {*json.loads(lines[0])}


def test_a_spawned_server_imports_only_required_modules(tmp_path: Path) -> None:
    added = modules("ours", "spawn", tmp_path) - modules("stock", "spawn", tmp_path)
    assert added <= OURS | (NATIVE if IS_NATIVE else PURE)
    assert {"worker.serve", "worker._child.bootstrap"} <= added


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_server_of_a_preload_process_imports_only_required_modules(method: str, tmp_path: Path) -> None:
    found = modules("ours", method, tmp_path, "framework")
    ours = {name for name in found if name.partition(".")[0] == "worker"}
    # These are in the preload process, which forks the children.
    names = ("", ".application", ".conditions", ".process", ".sources", ".threads")
    forks = {f"worker._child.preload{name}" for name in names}
    assert ours - OURS - NATIVE - PURE - forks == set()


EARLY = """
import os, sys

def show(event, args):
    if event == "os.posix_spawn" and args[0] != "/":
        print(*{*sys.modules} - before, flush=True)
        os._exit(0)

sys.addaudithook(show)
before = {*sys.modules}
from worker.__main__ import main

sys.argv = ["sanic-worker", "nowhere:app"]
main()
"""
# All that the command imports until it starts the preload process: of this package, and of the library.
OURS_EARLY = {
    "worker",
    "worker.__main__",
    "worker._child",
    "worker._child.descriptors",
    "worker._child.preload",
    "worker._child.preload.conditions",
    "worker._child.preload.process",
    "worker._child.preload.threads",
    "worker._child.signals",
    "worker._spawn",
    "worker._spawn.preload",
    "worker._spawn.preload.conditions",
    "worker._spawn.preload.preloads",
    "worker._spawn.preload.process",
    "worker._spawn.program",
    "worker._system",
    "worker._system.init",
    "worker.cli",
    "worker.cli.early",
    "worker.cli.namesake",
}
LIBRARY_EARLY = {
    *("array", "atexit", "collections", "contextlib", "copyreg", "enum", "errno", "fcntl", "functools", "gc"),
    *(
        "importlib",
        "itertools",
        "keyword",
        "locale",
        "math",
        "operator",
        "re",
        "reprlib",
        "resource",
        "select",
    ),
    *("selectors", "signal", "socket", "struct", "subprocess", "threading", "types", "typing", "warnings"),
    "weakref",
    # Parts of `re` until Python 3.10.
    *("sre_compile", "sre_constants", "sre_parse"),
}


def test_the_command_imports_only_required_modules_before_it_starts_the_preload_process(
    tmp_path: Path,
) -> None:
    ended = python(EARLY, cwd=tmp_path)
    found = {*ended.stdout.split()}
    ours = {name for name in found if name.partition(".")[0] == "worker"}
    assert {"worker.cli.early"} <= ours <= OURS_EARLY, ended.stderr
    library = {name.partition(".")[0] for name in found - ours if not name.startswith("_")}
    assert library <= LIBRARY_EARLY


def test_the_command_collects_garbage_again_when_it_imports_the_application(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(
        "import gc\nraise SystemExit(f'{gc.isenabled()} {gc.get_freeze_count() > 0}')"
    )
    program = (
        "import sys\nfrom worker import cli\nsys.argv[1:] = ['shop:app', '--preload', 'off']\ncli.main()"
    )
    assert python(program, cwd=tmp_path).stderr.strip() == "True True"


USES = """
import json, os, sys, traceback
from sanic import Sanic

if os.environ["INSTALLS"] == "script":
    import worker

    worker.install()

from uses import use

Sanic.start_method = sys.argv[1]
app = Sanic("app", configure_logging=False)
app.add_route(lambda request: None, "/")

@app.after_server_start
async def show(app):
    late = {"worker.manager", "worker._supervisor", "worker.process"} & {*sys.modules}
    try:
        result = use(app)
    except BaseException:
        result = traceback.format_exc()
    print(json.dumps([sorted(late), result]), flush=True)
    app.m.terminate()

if __name__ == "__main__":
    if os.environ["INSTALLS"] == "main":
        import worker

        worker.install()
    import socket

    with socket.create_server(("127.0.0.1", 0)) as sock:
        app.run(sock=sock, workers=1, motd=False)
"""


def used(folder: Path, use: str, *, method: str = "spawn", installs: str = "main") -> Any:
    """Return the result of ``use(app)`` in a server; ``installs`` says where ``install()`` is called."""
    (folder / "uses.py").write_text(use)
    ended = python(USES, method, cwd=folder, env={"INSTALLS": installs})
    lines = [line for line in ended.stdout.splitlines() if line.startswith("[[")]
    assert lines, ended.stdout + ended.stderr
    late, result = json.loads(lines[0])
    if method == "spawn":
        assert late == []
    return result


THRESHOLD = """
def use(app):
    from sanic.worker.manager import WorkerManager
    WorkerManager.THRESHOLD = 600
    import worker, worker.manager
    return [worker.WorkerManager.THRESHOLD, worker.manager.WorkerManager.THRESHOLD]
"""

SAME = """
import importlib, pickle, pkgutil, threading

NAMES = {
    "manager": ("MonitorCycle", "WorkerManager"),
    "process": ("Worker", "WorkerProcess"),
    "reloader": ("Reloader",),
    "restarter": ("Restarter",),
    "inspector": ("Inspector",),
    "serve": ("worker_serve",),
}

def use(app):
    import sanic.app, sanic.mixins.startup, sanic.worker, worker
    found = []

    def look():
        # An attribute of the package, without an import statement.
        found.append(sanic.worker.manager is worker.manager)
        found.append(sanic.worker.manager.WorkerManager is worker.WorkerManager)

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 16
    for stem, names in NAMES.items():
        theirs = importlib.import_module(f"sanic.worker.{stem}")
        ours = importlib.import_module(f"worker.{stem}")
        found += [theirs is ours, getattr(sanic.worker, stem) is ours, getattr(worker, stem) is ours]
        found.append(importlib.util.find_spec(f"sanic.worker.{stem}") is ours.__spec__)
        for name in names:
            found.append(getattr(theirs, name) is getattr(worker, name))
            found.append(pkgutil.resolve_name(f"sanic.worker.{stem}:{name}") is getattr(worker, name))
            found.append(pickle.loads(f"csanic.worker.{stem}\\n{name}\\n.".encode()) is getattr(worker, name))
    found.append(sanic.app.WorkerManager is worker.WorkerManager)
    found.append(sanic.app.Inspector is worker.Inspector is app.inspector_class)
    found.append(sanic.mixins.startup.WorkerManager is worker.WorkerManager)
    found.append(sanic.mixins.startup.Reloader is worker.Reloader)
    found.append(not hasattr(sanic.app, "nonsense") and not hasattr(sanic.worker, "nonsense"))
    return found
"""

SUBCLASSES = """
from sanic.worker.inspector import Inspector
from sanic.worker.reloader import Reloader

class Own(Inspector):
    async def more(self):
        return 1

class Quiet(Reloader):
    pass

def use(app):
    import worker
    return [issubclass(Own, worker.Inspector), issubclass(Quiet, worker.Reloader)]
"""

STAR = """
def use(app):
    found = {}
    exec("from sanic.worker.manager import *", found)
    exec("from worker import *", found)
    import worker
    missing = [name for name in worker.__all__ if name not in found or name not in dir(worker)]
    return [missing, found["WorkerManager"].__module__, hasattr(worker, "nonsense"), worker.__version__ != ""]
"""

PATCHED = """
def use(app):
    import sanic.app, sanic.worker.manager, worker
    ours = sanic.worker.manager.WorkerManager
    sanic.worker.manager.WorkerManager = "patched"
    seen = [worker.WorkerManager, sanic.app.WorkerManager]
    sanic.worker.manager.WorkerManager = ours
    return [seen, worker.WorkerManager is ours, sanic.app.WorkerManager is ours]
"""


class TestInAServer:
    """Modules that are imported on use work as others do, with each start method."""

    @pytest.mark.parametrize("installs", ["main", "script"])
    @pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
    def test_both_names_of_a_module_give_the_same_module(
        self, method: str, installs: str, tmp_path: Path
    ) -> None:
        found = used(tmp_path, SAME, method=method, installs=installs)
        assert isinstance(found, list), found
        assert found == [True] * len(found)

    def test_the_threshold_can_be_set(self, tmp_path: Path) -> None:
        assert used(tmp_path, THRESHOLD) == [600, 600]

    def test_classes_can_be_derived(self, tmp_path: Path) -> None:
        (tmp_path / "uses.py").write_text(SUBCLASSES)
        ended = python(USES, "spawn", cwd=tmp_path, env={"INSTALLS": "script"})
        assert "[true, true]" in ended.stdout, ended.stdout + ended.stderr

    def test_a_patched_name_is_not_kept(self, tmp_path: Path) -> None:
        assert used(tmp_path, PATCHED) == [["patched", "patched"], True, True]

    def test_star_imports_work(self, tmp_path: Path) -> None:
        assert used(tmp_path, STAR) == [[], "worker.manager", False, True]


REFUSED = """
import sys
from sanic import Sanic

if __name__ == "__main__":
    import worker

    worker.install()

import own

if __name__ == "__main__":
    app = Sanic("app", configure_logging=False)
    import socket

    with socket.create_server(("127.0.0.1", 0)) as sock:
        app.run(sock=sock, workers=1, motd=False)
"""


@pytest.mark.parametrize(
    ("module", "name"), [("manager", "WorkerManager"), ("reloader", "Reloader"), ("inspector", "Inspector")]
)
def test_a_server_refuses_a_class_that_was_derived_before(module: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(f"from sanic.worker.{module} import {name}\nclass Own({name}): pass\n")
    ended = python(REFUSED, cwd=tmp_path)
    assert ended.returncode == 1
    assert f"own.Own is derived from Sanic's own {name} and cannot be changed any more" in ended.stderr
