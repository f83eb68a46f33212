from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from worker import cli, settings
from worker._core import core_info
from worker.cli import sanic_command
from worker.cli.inspect import arguments, command
from worker.constants import RestartOrder


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Record the calls: ``"install"``, and the arguments of Sanic's command."""
    calls: list[Any] = []
    command = ModuleType("sanic.__main__")
    command.main = calls.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sanic.__main__", command)
    monkeypatch.setattr(sys.modules["sanic"], "__main__", command, raising=False)
    monkeypatch.setattr(sanic_command, "install", lambda: calls.append("install"))
    monkeypatch.chdir(tmp_path)
    return calls


@pytest.mark.parametrize(
    "args",
    [
        ["hello:app", "--workers", "2"],
        ["top:app"],
        ["kill", "--pid", "1"],
        ["--host", "top", "a:b"],
        ["-p", "8000", "top:app"],
        ["--name", "ps", "a:b"],
        ["-p", "8000"],
        [],
    ],
)
def test_the_command_of_sanic_runs_after_install(
    ran: list[Any], args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(args)
    assert ran == ["install", args]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ps -p 7", "ps -p 7"),
        ("-p 7 ps", "ps -p 7"),
        ("-p7 --host=x -s --json ps", "ps -p7 --host=x -s --json"),
        ("--port 7 inspect scale 2", "inspect --port 7 scale 2"),
        ("-H ps -k top events -f", "events -H ps -k top -f"),
        ("--unix x inspect mine --x=1", "inspect --unix x mine --x=1"),
    ],
)
def test_options_of_the_client_may_come_first(
    text: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(command, "run", commands.append)
    cli.main(text.split())
    assert commands == [expected.split()]


def test_every_option_of_the_connection_may_come_first() -> None:
    shown = arguments.make_parser("x").format_help().partition("\nconnection:")[2].partition("\nverbs:")[0]
    assert {*cli.VALUED, *cli.FLAGS} == {*re.findall(r"(?<!\S)--?[A-Za-z][a-z-]*", shown)}


def test_the_arguments_of_the_process_are_the_default(
    ran: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["sanic-worker", "hello:app"])
    cli.main()
    assert ran == ["install", None]


@pytest.mark.parametrize("argv", [True, False])
@pytest.mark.parametrize("flag", ["--version", "-v"])
def test_the_version_is_printed(
    ran: list[Any],
    flag: str,
    argv: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["sanic-worker", *([flag] if argv else ["hello:app"])])
    cli.main(None if argv else [flag])
    assert ran == ["install", None if argv else [flag]]
    info = core_info()
    assert capsys.readouterr().out == f"sanic-worker {info.version}; {info.core} core\n"


@pytest.fixture
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for setting in settings.SETTINGS:
        monkeypatch.delenv(setting.variable, raising=False)
    yield
    settings.forget()


@pytest.mark.usefixtures("_no_settings")
class TestSettings:
    @pytest.mark.parametrize("argv", [True, False])
    def test_flags_of_settings_are_removed_from_the_arguments(
        self, ran: list[Any], argv: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        args = [
            "hello:app",
            "--max-surge",
            "2",
            "--reload",
            "--workers=2",
            "--reload-order=SHUTDOWN_FIRST",
            "-d",
        ]
        rest = ["hello:app", "--reload", "--workers=2", "-d"]
        monkeypatch.setattr(sys, "argv", ["sanic-worker", *(args if argv else [])])
        monkeypatch.setenv("SANIC_WORKER_MAX_SURGE", "3")
        cli.main(None if argv else args)
        assert ran == ["install", None if argv else rest]
        assert sys.argv[1:] == (rest if argv else [])
        resolved = settings.resolve({})
        assert (resolved.max_surge, resolved.reload_order) == (2, RestartOrder.SHUTDOWN_FIRST)

    @pytest.mark.parametrize("source", ["--max-surge", "SANIC_WORKER_MAX_SURGE"])
    def test_an_invalid_value_ends_the_command_before_the_start(
        self,
        ran: list[Any],
        source: str,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        if not source.startswith("--"):
            monkeypatch.setenv(source, "0")
        with pytest.raises(SystemExit) as ended:
            cli.main(["hello:app", *(["--max-surge=0"] if source.startswith("--") else [])])
        assert ended.value.code == 2
        assert ran == ["install"]
        assert capsys.readouterr().err == (
            f"sanic-worker: max_surge of {source} cannot be '0': it takes a whole number from 1 on\n"
        )

    @pytest.mark.parametrize("single", ["--single-process", "--single"])
    def test_flags_without_effect_are_named(
        self, ran: list[Any], single: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SANIC_WORKER_MAX_CONSECUTIVE_FAILURES", "3")
        flags = ["--max-surge=2", "--idle-drain-timeout=2", "--unix-mode", "600", "--max-workers=9"]
        cli.main(["hello:app", single, *flags])
        assert ran == ["install", ["hello:app", single]]
        assert caplog.messages == ["--max-workers, --max-surge have no effect with --single-process"]

    @pytest.mark.parametrize("args", [["--max-surge=2"], ["--single-process", "--idle-drain-timeout=2"]])
    def test_flags_with_effect_are_not_named(
        self, ran: list[Any], args: list[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        cli.main(["hello:app", *args])
        assert caplog.messages == []


@pytest.mark.parametrize("name", ["worker.py", "worker/__init__.py", "worker/app.py", "worker/sub/app.py"])
@pytest.mark.parametrize("target", ["worker", "worker:app", "worker.app:app", "worker.app:create_app()"])
def test_an_application_module_named_worker_is_refused(
    ran: list[Any], tmp_path: Path, name: str, target: str
) -> None:
    namesake = tmp_path / name
    namesake.parent.mkdir(exist_ok=True, parents=True)
    namesake.touch()
    if "app" in name:
        namesake = tmp_path / "worker"
    with pytest.raises(SystemExit) as caught:
        cli.main(["--dev", target] if ":" in target else [target])
    assert str(caught.value.code).startswith(
        f"{namesake} has the name of the package that sanic-worker installs"
    )
    assert ran == []


@pytest.mark.parametrize("target", ["hello:app", "workers:app", "--host worker hello:app", "a.worker:app"])
def test_a_module_named_worker_beside_the_application_is_accepted(
    ran: list[Any], tmp_path: Path, target: str
) -> None:
    (tmp_path / "worker.py").touch()
    cli.main(target.split())
    assert ran == ["install", target.split()]


def test_files_that_shadow_no_module_are_accepted(ran: list[Any], tmp_path: Path) -> None:
    (tmp_path / "worker.py").mkdir()
    (tmp_path / "worker").mkdir()
    (tmp_path / "worker" / "Dockerfile").touch()
    (tmp_path / "workers.py").touch()
    for target in ("workers:app", "worker:app"):
        cli.main([target])
        assert ran[-2:] == ["install", [target]]


def test_the_directory_of_the_package_is_accepted(ran: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(cli.__file__).parent.parent)
    cli.main(["hello:app"])
    assert ran == ["install", ["hello:app"]]
