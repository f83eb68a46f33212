"""The preload process that the command starts before Sanic is imported: when it is, and when not."""

from __future__ import annotations

import sys
from multiprocessing import get_context
from pathlib import Path

import pytest
from support.running import lives, python

from worker import cli
from worker._spawn.preload.preloads import preloads
from worker._spawn.processes import preloaded_method
from worker.cli import early

SERVING = [
    "shop:app",
    "shop:app --workers 2 --dev",
    "shop:app -vd",
    "shop:app --preload framework",
    "--host localhost shop",
    "./files --simple",
]
OTHERS = [
    "",
    "--help",
    "-h",
    "shop:app -h",
    "help --full",
    "--version",
    "-v",
    "--vers",
    "kill --pid 1",
    "status --pid 1",
    "restart --pid 1",
    "shop:app exec migrate",
    "shop:app status",
    "shop:app restart",
    "shop:app stop",
    "shop:app --single-process",
    "shop:app --sing",
    "shop:app --repl",
    "shop:app --daemon",
    "shop:app -dD",
    "shop:app --print-completion bash",
    "shop:app --preload off",
    "shop:app --preload=off",
]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    monkeypatch.delenv("SANIC_WORKER_PRELOAD")
    monkeypatch.setattr(preloads, "installs", False)
    found: list[bool] = []
    monkeypatch.setattr(preloads, "start", lambda: found.append(True))
    return found


@pytest.mark.parametrize(
    ("command", "expected"), [*((one, [True]) for one in SERVING), *((one, []) for one in OTHERS)]
)
def test_it_is_started_for_a_command_that_serves_with_a_manager(
    command: str, expected: list[bool], started: list[bool]
) -> None:
    early.start_preload(command.split(), is_program=True)
    assert started == expected


@pytest.mark.parametrize("args", ["inspect --wrong", "ps --wrong", "top --wrong", "events --wrong", "check"])
def test_no_other_command_gets_there(args: str, started: list[bool]) -> None:
    with pytest.raises(SystemExit):
        cli.main(args.split())
    assert started == []


@pytest.mark.parametrize(
    ("name", "value", "args", "expected"),
    [
        ("SANIC_WORKER_PRELOAD", "off", "", []),
        ("SANIC_WORKER_PRELOAD", "off", "--preload app", [True]),
        ("SANIC_WORKER_PRELOAD", "app", "", [True]),
        ("SANIC_WORKER_NAME", "Sanic-Server-0-0", "", []),
    ],
)
def test_the_environment_decides_too(
    name: str,
    value: str,
    args: str,
    expected: list[bool],
    started: list[bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(name, value)
    early.start_preload(["shop:app", *args.split()], is_program=True)
    assert started == expected


@pytest.mark.slow
def test_it_is_started_before_sanic_is_imported_and_ends_with_a_broken_command(tmp_path: Path) -> None:
    program = """
        import sys

        def note(event, args):
            if event == "os.posix_spawn" or (event == "import" and args[0] == "sanic"):
                seen.append(event)

        if __name__ == "__main__":
            seen = []
            sys.addaudithook(note)
            from worker import cli
            try:
                cli.main(["nowhere:app"])
            finally:
                from worker._spawn.preload.preloads import preloads
                # Whether CPython can set the session of a program is tried by a start that fails.
                print(preloads.current.pid, *dict.fromkeys(seen))
        """
    done = python(program, cwd=tmp_path)
    assert done.returncode == 2
    pid, *seen = done.stdout.split()
    assert seen == ["os.posix_spawn", "import"]
    assert not lives(int(pid))


@pytest.mark.slow
def test_install_starts_it_in_a_script_and_uninstall_ends_it(tmp_path: Path) -> None:
    """Any other program that imports a module which calls it may never serve."""
    (tmp_path / "elsewhere.py").write_text("import worker\nworker.install()\n")
    program = """
        import worker
        from worker._spawn.preload.preloads import preloads

        worker.install(preload="off")
        assert preloads.current is None
        worker.uninstall()
        import elsewhere
        assert preloads.current is None
        worker.uninstall()
        worker.install()
        process = preloads.current
        worker.uninstall()
        assert preloads.current is None and process.has_ended()
        worker.install()
        print(preloads.current.pid)
        """
    done = python(program, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert not lives(int(done.stdout))


def test_a_frozen_program_goes_without_and_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SANIC_WORKER_PRELOAD")
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(preloads, "installs", False)
    early.start_preload(["shop:app"], is_program=True)
    assert preloads.current is None
    assert preloaded_method(get_context("spawn")) == ""
