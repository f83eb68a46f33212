"""The names of the package: they are imported on first use, and type checkers find all of them."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from support.running import PACKAGE, environment

import worker

pytestmark = pytest.mark.slow

SOURCE = Path(worker.__file__)
USER = """
from typing import assert_type
import worker
from worker import WorkerManager, __version__, install

assert_type(WorkerManager.THRESHOLD, int)
assert_type(worker.Inspector, type[worker.inspector.Inspector])
assert_type(__version__, str)
install(max_workers=3)
worker.nonsense
"""


def test_type_checkers_and_the_interpreter_find_the_same_names() -> None:
    found = {
        alias.name: node.module
        for node in ast.walk(ast.parse(SOURCE.read_text()))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("worker.")
        for alias in node.names
    }
    for name in worker.__all__:
        assert getattr(worker, name) is getattr(sys.modules[found[name]], name), name


def test_an_import_of_the_package_alone_imports_no_sanic() -> None:
    program = "import sys, worker; print([name for name in sys.modules if name.startswith('sanic')])"
    output = subprocess.check_output([sys.executable, "-c", program], env=environment(), text=True)
    assert output.strip() == "[]"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="typing.assert_type is of 3.11")
def test_type_checkers_infer_the_types(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "user.py").write_text(USER)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--follow-imports=silent"]
    ended = subprocess.run(
        [*command, "user.py"],
        cwd=tmp_path,
        env=environment({"MYPYPATH": str(PACKAGE)}),
        capture_output=True,
        text=True,
        check=False,
    )
    errors = [line for line in ended.stdout.splitlines() if "error:" in line]
    assert len(errors) == 1, ended.stdout + ended.stderr
    assert 'Module has no attribute "nonsense"' in errors[0]
