"""The `sanic-worker` command beside serving: what it is, how it is called, and a namesake in the way."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from .tools import run_python

pytestmark = pytest.mark.ours


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed command, or a script of the same content."""
    installed = Path(sys.executable).with_name("sanic-worker")
    if installed.exists():
        return installed
    script = tmp_path_factory.mktemp("bin") / "sanic-worker"
    script.write_text("import sys\nfrom worker.cli import main\nsys.exit(main())\n")
    return script


def test_the_version_names_both(command: Path, tmp_path: Path) -> None:
    done = run_python(str(command), "--version", cwd=tmp_path)
    assert done.returncode == 0
    assert re.search(r"^sanic-worker \S+", done.stdout, re.MULTILINE)
    assert re.search(r"^Sanic \d+\.\d+", done.stdout, re.MULTILINE)


def test_the_module_runs_and_helps(tmp_path: Path) -> None:
    done = run_python("-m", "worker", "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "--workers" in done.stdout or "sanic" in done.stdout.lower()
    assert done.stderr == ""


@pytest.mark.parametrize("name", ["worker.py", "worker/__init__.py"])
def test_a_namesake_in_the_way_is_named(command: Path, tmp_path: Path, name: str) -> None:
    namesake = tmp_path / name
    namesake.parent.mkdir(exist_ok=True)
    namesake.write_text("from sanic import Sanic\n\napp = Sanic('namesake')\n")
    done = run_python(str(command), "worker:app", cwd=tmp_path)
    assert done.returncode not in (0, None)
    assert str(namesake) in done.stderr
    assert "Traceback" not in done.stderr


def test_no_such_application(command: Path, tmp_path: Path) -> None:
    done = run_python(str(command), "nowhere:app", cwd=tmp_path)
    assert done.returncode == 1
    assert "No module named nowhere" in done.stderr
