"""An application with its own module ``worker`` gets an explanation when an import from it fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.running import python

pytestmark = pytest.mark.slow

# The script's directory comes first on sys.path. A folder without __init__.py comes after every real package,
# so a script can have one beside it.
TRY = """
import sys, worker
try:
    {}
except BaseException as error:
    print(type(error).__name__, error)
"""


def tried(statement: str, cwd: Path, *path: str) -> str:
    """Run a statement in a script in `cwd`; return its output. `path` comes last on `sys.path`."""
    done = python(f"import sys; sys.path += {path!r}\n{TRY.format(statement)}", cwd=cwd)
    assert done.stderr == ""
    return done.stdout.strip()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "worker").mkdir()
    (tmp_path / "worker" / "tasks.py").write_text("DONE = True")
    return tmp_path / "worker"


IMPORTS = ["import worker.tasks", "from worker import tasks", "from worker.tasks import DONE"]


@pytest.mark.parametrize("statement", IMPORTS)
def test_a_directory_beside_the_script_is_named(folder: Path, statement: str) -> None:
    said = tried(statement, folder.parent)
    assert said.startswith("NamesakeError There is no module worker.tasks in ")
    assert f"{folder} has the name of the package that sanic-worker installs" in said
    assert said.endswith("Rename that folder.")


@pytest.mark.parametrize("name", ["worker.py", "worker/__init__.py"])
@pytest.mark.parametrize("statement", [*IMPORTS, "worker.tasks", "from worker import DONE"])
def test_a_module_later_on_the_path_is_named(tmp_path: Path, name: str, statement: str) -> None:
    """The command puts the working directory at the end of sys.path."""
    project = tmp_path / "project"
    namesake = project / name
    namesake.parent.mkdir(parents=True)
    namesake.write_text("DONE = True")
    said = tried(statement, tmp_path, str(project))
    assert said.startswith("Namesake")
    assert f"{namesake} has the name of the package that sanic-worker installs" in said


@pytest.mark.parametrize(
    ("statement", "kind"), [("import worker.x", "ModuleNotFoundError"), ("worker.x", "Attri")]
)
def test_an_error_without_a_shadowed_module_is_unchanged(tmp_path: Path, statement: str, kind: str) -> None:
    (tmp_path / "worker").mkdir()
    (tmp_path / "worker" / "data.json").touch()
    said = tried(statement, tmp_path)
    assert said.startswith(kind)
    assert "has the name" not in said


def test_imports_from_the_package_work(folder: Path) -> None:
    said = tried(
        "import worker.cli, worker._state.shared; from worker import install, settings; "
        "print(hasattr(worker, 'tasks'), hasattr(worker, '__wrapped__'), worker.cli.__name__)",
        folder.parent,
    )
    assert said == "False False worker.cli"


def test_a_module_takes_precedence_over_a_directory(folder: Path, tmp_path: Path) -> None:
    """A module wins over a folder without __init__.py, in any order of the path."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "worker.py").touch()
    assert str(project / "worker.py") in tried("import worker.tasks", tmp_path, str(project))
