"""The number of workers: `--workers`, `--fast`, the environment and the application, in a real command."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from integration.tools import free_port
from support.running import environment

from worker import settings
from worker._system import cgroup
from worker.cli import sanic_command

CPUS = 5
AVAILABLE = cgroup.available_cpus()
SOURCE = """
from sanic import Sanic, text

app = Sanic("counted")
app.get("/")(lambda request: text("ok"))

@app.main_process_ready
async def show(app):
    print(app.manager.num_server, app.manager.settings.workers, app.state.workers, app.state.fast)
    app.manager.shutdown()

def create_app(args):
    print(args.workers)
    return app

if __name__ == "__main__":
    import sys, worker
    {call}
"""
ALLOWED = "it takes a whole number from 1 on, auto, or a range such as 2..8 or 2..auto"


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("SANIC_WORKER_WORKERS", raising=False)
    monkeypatch.setattr(cgroup, "available_cpus", lambda: CPUS)
    yield
    settings.forget()


def parse(*args: str) -> Any:
    """Return the number that Sanic's command gets, and the setting."""
    from sanic.cli.app import SanicCLI

    with sanic_command._adapted_command():
        command: Any = SanicCLI()  # type: ignore[no-untyped-call]
        command.attach()
        found = command.parser.parse_args(["hello:app", *args])
        sanic_command._set_workers(found)
    resolved = settings.resolve({}).workers
    return found.workers, None if resolved is None else str(resolved)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], (1, None)),
        (["--workers", "3"], (3, "3")),
        (["--workers", "auto"], (CPUS, "5")),
        (["--workers=AUTO"], (CPUS, "5")),
        (["-w", "auto"], (CPUS, "5")),
        (["-wauto"], (CPUS, "5")),
        (["--work", "auto"], (CPUS, "5")),
        (["--wor=7"], (7, "7")),
        (["-w3", "-w", "auto"], (CPUS, "5")),
        (["--fast"], (1, "5")),
        (["--fast", "-w", "1"], (1, "5")),
        (["--single-process", "--workers=1"], (1, "1")),
        pytest.param(["-w2..8"], (2, "2..8"), marks=pytest.mark.native),
        pytest.param(["--workers", "2..auto"], (2, "2..5"), marks=pytest.mark.native),
        (["--workers", "9..auto"], (9, "9")),
    ],
)
def test_the_option_is_read_as_sanic_reads_it(args: list[str], expected: Any) -> None:
    assert parse(*args) == expected


@pytest.mark.parametrize("value", ["auto", "3", "1"])
def test_a_flag_overrides_the_environment(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANIC_WORKER_WORKERS", "7")
    assert parse() == (1, "7")
    assert parse("--workers", value)[1] == str(CPUS if value == "auto" else value)
    settings.forget()
    assert parse("--fast")[1] == str(CPUS)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-w", "0"], f"sanic-worker: workers of --workers cannot be '0': {ALLOWED}\n"),
        (["--workers=some"], f"sanic-worker: workers of --workers cannot be 'some': {ALLOWED}\n"),
        (["--workers", "8..2"], f"sanic-worker: workers of --workers cannot be '8..2': {ALLOWED}\n"),
        (["--fast", "-wauto"], "sanic: error: argument -w/--workers: not allowed with argument --fast\n"),
        (
            ["--workers", "1..2", "--single-process"],
            "sanic: error: argument --single-process: not allowed with argument -w/--workers\n",
        ),
        pytest.param(
            ["--workers", "1..100000"],
            "sanic-worker: workers of --workers cannot be 1..100000: max_workers is ",
            marks=pytest.mark.native,
        ),
    ],
)
def test_a_wrong_value_or_combination_ends_the_command(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(*args)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def output(tmp_path: Path) -> Callable[..., str]:
    """Run a server that ends when it begins to start; return its output."""

    def run(*args: str, call: str = "", **env: str) -> str:
        port = free_port()
        text = SOURCE.replace("{call}", call or "pass").replace("{port}", f"{port}")
        (tmp_path / "counted.py").write_text(text)
        command = [sys.executable, *(["counted.py"] if call else ["-m", "worker", *args, f"--port={port}"])]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment(env), capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 0, done
        return done.stdout + done.stderr

    return run


@pytest.mark.operations
class TestServer:
    def test_it_starts_the_number_that_it_shows(self, output: Callable[..., str]) -> None:
        found = output("counted:create_app", "--workers=3", SANIC_WORKER_WORKERS="2")
        lines = found.splitlines()
        assert lines.index("3") < lines.index("3 3 3 False")
        assert "mode: production, w/ 3 workers" in found

    @pytest.mark.native
    def test_with_a_range_it_starts_the_least_number(self, output: Callable[..., str]) -> None:
        found = output("counted:app", SANIC_WORKER_WORKERS="2..4")
        assert "2 2..4 2 False" in found.splitlines()
        assert "mode: production, w/ 2 workers" in found
        assert "runs 2 of 2..4 workers" in found

    def test_fast_is_auto(self, output: Callable[..., str]) -> None:
        found = output("counted:app", "--fast", SANIC_WORKER_WORKERS="9")
        assert "goin' fast" in found
        assert f"{AVAILABLE} {AVAILABLE} {AVAILABLE} True" in found.splitlines()

    @pytest.mark.parametrize(
        ("call", "expected"),
        [
            ("worker.install(workers=3); app.run(port={port}, workers=2)", "3 3 3 False"),
            ("worker.install(); app.run(port={port}, workers=2)", "2 None 2 False"),
            ("worker.install(workers=3); app.run(port={port}, fast=True)", "3 3 3 True"),
        ],
    )
    def test_the_setting_overrides_the_application(
        self, output: Callable[..., str], call: str, expected: str
    ) -> None:
        assert expected in output(call=call).splitlines()

    def test_sanic_refuses_a_number_beside_fast(self, output: Callable[..., str]) -> None:
        call = (
            "worker.install()\n    try: app.run(workers=2, fast=True)\n    except RuntimeError as error: "
            "print(error)"
        )
        assert "You cannot use both fast=True and workers=X" in output(call=call)

    def test_a_single_process_ignores_it(self, output: Callable[..., str]) -> None:
        call = (
            "worker.install(); app.after_server_start(lambda app: app.stop()); "
            "app.run(port={port}, single_process=True)"
        )
        assert "mode: production, single worker" in output(call=call, SANIC_WORKER_WORKERS="3")
