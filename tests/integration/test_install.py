"""`install()` and `uninstall()`, each in a new interpreter."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from .tools import HERE, run_python

pytestmark = pytest.mark.ours

REFERENCE = json.loads((HERE.parent / "api.json").read_text())

HELPERS = """
import importlib, json, sys

def find(path):
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)

def homes(paths):
    return {path: find(path).__module__ for path in paths}
"""


def result(directory: Path, text: str) -> Any:
    """Run the script; return its output, which is JSON."""
    path = directory / "script.py"
    path.write_text(HELPERS + dedent(text))
    done = run_python(str(path), cwd=directory)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_name_of_the_reference_is_replaced_and_restored(tmp_path: Path) -> None:
    stock = [f"sanic.{path}" for path in REFERENCE]
    found = result(
        tmp_path,
        f"""
        import worker
        paths = {stock!r}
        before = {{path: find(path) for path in paths}}
        worker.install()
        worker.install()
        during = [path for path in paths if find(path) is not find(path.removeprefix("sanic."))]
        homes_during = homes(paths)
        worker.uninstall()
        worker.uninstall()
        after = [path for path in paths if find(path) is not before[path]]
        print(json.dumps([during, homes_during, after]))
        """,
    )
    during, homes, after = found
    assert during == []
    assert {home.partition(".")[0] for home in homes.values()} == {"worker"}
    assert after == []


def test_existing_references_to_sanic_classes_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "early.py").write_text(
        dedent(
            """
            import sanic.worker.manager
            from sanic.worker.manager import WorkerManager
            from sanic.worker.process import WorkerProcess as Renamed
            from sanic.worker import loader
            """
        )
    )
    bound, restored = result(
        tmp_path,
        """
        import early, worker, sanic.cli.app
        paths = [
            "early.WorkerManager", "early.Renamed", "early.loader.AppLoader",
            "early.sanic.worker.manager.WorkerManager",
            "sanic.app.WorkerManager", "sanic.app.Inspector", "sanic.app.CertLoader",
            "sanic.mixins.startup.WorkerManager", "sanic.mixins.startup.worker_serve",
            "sanic.mixins.startup.Reloader", "sanic.mixins.startup.AppLoader",
            "sanic.mixins.startup.WorkerMultiplexer", "sanic.cli.app.AppLoader",
        ]

        def look():
            bound = {}
            for path in paths:
                first, *rest = path.split(".")
                value = sys.modules["sanic.mixins.startup" if path.startswith("sanic.mixins") else
                                    "sanic.cli.app" if path.startswith("sanic.cli") else
                                    "sanic.app" if path.startswith("sanic.app") else "early"]
                for name in (rest if first == "early" else [path.rpartition(".")[2]]):
                    value = getattr(value, name)
                bound[path] = value.__module__
            return bound

        worker.install()
        during = look()
        worker.uninstall()
        print(json.dumps([during, look()]))
        """,
    )
    assert {path: home for path, home in bound.items() if not home.startswith("worker.")} == {}
    assert {path: home for path, home in restored.items() if not home.startswith("sanic.")} == {}


def test_a_threshold_set_on_the_stock_name_applies(tmp_path: Path) -> None:
    assert (
        result(
            tmp_path,
            """
        import worker
        worker.install()
        from sanic.worker.manager import WorkerManager
        WorkerManager.THRESHOLD = 7
        print(json.dumps(worker.WorkerManager.THRESHOLD))
        """,
        )
        == 7
    )


def test_a_class_derived_from_a_stock_class_is_refused(tmp_path: Path) -> None:
    (tmp_path / "early.py").write_text(
        "from sanic.worker.inspector import Inspector\n\nclass Custom(Inspector):\n    pass\n"
    )
    error, replaced = result(
        tmp_path,
        """
        import early, worker, sanic.worker.manager
        try:
            worker.install()
        except RuntimeError as problem:
            error = str(problem)
        print(json.dumps([error, sanic.worker.manager.WorkerManager is worker.WorkerManager]))
        """,
    )
    assert "early.Custom" in error
    assert "worker.install()" in error
    assert "before" in error
    assert replaced is False


def test_an_unknown_setting_is_refused(tmp_path: Path) -> None:
    assert "nonsense" in result(
        tmp_path,
        """
        import worker
        try:
            worker.install(nonsense=1)
        except TypeError as problem:
            print(json.dumps(str(problem)))
        """,
    )
