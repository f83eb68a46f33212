"""The `sanic-worker` command beside serving: its forms, its calls, and a module that shadows the package."""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Callable
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


def test_the_version_names_sanic_too(command: Path, tmp_path: Path) -> None:
    done = run_python(str(command), "--version", cwd=tmp_path)
    assert done.returncode == 0
    assert re.search(r"^sanic-worker \S+", done.stdout, re.MULTILINE)
    assert re.search(r"^Sanic \d+\.\d+", done.stdout, re.MULTILINE)


def test_the_module_prints_its_help(tmp_path: Path) -> None:
    done = run_python("-m", "worker", "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "--workers" in done.stdout or "sanic" in done.stdout.lower()
    assert done.stderr == ""


@pytest.mark.parametrize("name", ["worker.py", "worker/__init__.py"])
def test_a_module_that_shadows_the_package_is_named(command: Path, tmp_path: Path, name: str) -> None:
    namesake = tmp_path / name
    namesake.parent.mkdir(exist_ok=True)
    namesake.write_text("from sanic import Sanic\n\napp = Sanic('namesake')\n")
    done = run_python(str(command), "worker:app", cwd=tmp_path)
    assert done.returncode not in (0, None)
    assert str(namesake) in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("worker/tasks.py", "from worker.tasks import DONE"),
        ("worker.py", "from worker import DONE"),
        ("worker.py", "import worker; worker.DONE"),
    ],
)
def test_a_shadowing_module_imported_by_the_application_is_named(
    command: Path, tmp_path: Path, name: str, line: str
) -> None:
    namesake = tmp_path / name
    namesake.parent.mkdir(exist_ok=True)
    namesake.write_text("DONE = True\n")
    (tmp_path / "hello.py").write_text(f"from sanic import Sanic\n\n{line}\n\napp = Sanic('hello')\n")
    done = run_python(str(command), "hello:app", cwd=tmp_path)
    assert done.returncode == 1
    (said,) = done.stderr.splitlines()
    assert said.startswith(f"sanic-worker: {tmp_path}/hello.py:3: ")
    assert str(tmp_path / name.removesuffix("/tasks.py")) in said


def test_an_unknown_application_is_refused(command: Path, tmp_path: Path) -> None:
    done = run_python(str(command), "nowhere:app", cwd=tmp_path)
    assert done.returncode == 2
    assert "No module named nowhere" in done.stderr


class TestMistakes:
    """A wrong command ends with 2, a failure with 1; each is one line."""

    SOURCE = """
from sanic import Sanic, text

app = Sanic("ok")
app.get("/")(lambda request: text("ok"))

def create_app():
    raise ValueError("the factory broke")
"""

    @pytest.fixture
    def fails(self, command: Path, tmp_path: Path) -> Callable[..., str]:
        (tmp_path / "ok.py").write_text(self.SOURCE)

        def fails(code: int, *args: str) -> str:
            done = run_python(str(command), *args, "--no-motd", cwd=tmp_path)
            assert done.returncode == code, done
            assert done.stdout == ""
            return done.stderr

        return fails

    @pytest.mark.parametrize(
        ("args", "line"),
        [
            (
                ["ok:wrong"],
                "ok has no wrong. It has the application app, the function create_app: use ok:app",
            ),
            (["./ok.py"], "./ok.py is a file. Give the module: ok:app"),
            (
                ["ok:app", "--workers", "0"],
                "workers of --workers cannot be '0': it takes a whole number from 1 on",
            ),
            (["ok:app", "--single-process", "--dev"], "--single-process cannot be combined with --dev: "),
        ],
    )
    def test_wrong_arguments_are_refused(self, fails: Callable[..., str], args: list[str], line: str) -> None:
        (said,) = fails(2, *args).splitlines()
        assert said.startswith(f"sanic-worker: {line}")

    @pytest.mark.parametrize("single", [[], ["--single-process"]])
    def test_a_port_in_use(self, fails: Callable[..., str], single: list[str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            (said,) = fails(1, "ok:app", "--host=127.0.0.1", f"--port={port}", *single).splitlines()
        assert said.startswith(f"sanic-worker: Cannot listen on 127.0.0.1:{port}: Address already in use. ")

    @pytest.mark.parametrize(
        ("args", "line"),
        [
            # One of the addresses that are reserved for documentation.
            (["--host=192.0.2.1", "--port=28999"], "192.0.2.1:28999: Cannot assign requested address. "),
            (["--unix=/nowhere/x.sock"], "/nowhere/x.sock: Socket folder does not exist: /nowhere."),
        ],
    )
    def test_an_unusable_address_is_refused(
        self, fails: Callable[..., str], args: list[str], line: str
    ) -> None:
        (said,) = fails(1, "ok:app", *args).splitlines()
        assert said.startswith(f"sanic-worker: Cannot listen on {line}")

    def test_an_error_of_the_application_has_its_traceback(self, fails: Callable[..., str]) -> None:
        said = fails(1, "ok:create_app")
        assert "Failed to run app: the factory broke" in said
        assert "ok.py" in said
        # No frame of this package stands between.
        assert "loader.py" not in said
