"""The working directory is deleted while the server runs."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path

import pytest
from support.running import House, errors, listening, logged, until

pytestmark = pytest.mark.slow


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Enter a working directory for the length of a test."""
    path = tmp_path / "work"
    path.mkdir()
    monkeypatch.chdir(path)
    return path


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_starts_succeed_once_the_directory_exists_again(
    method: str, tmp_path: Path, work: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {
        "restart_policy": "always",
        "backoff_initial": 0.2,
        "backoff_max": 0.2,
        "max_consecutive_failures": 1000,
    }
    house = House(tmp_path, "serves", number=2, method=method, **settings)

    def act() -> None:
        first, second = house.said("ready", 2)
        house.all_acked()
        work.rmdir()
        os.kill(first.pid, signal.SIGKILL)
        until(lambda: any("/work'" in line for line in texts(caplog)), "an error that names it")
        assert any("Create it again, or restart the server" in line for line in texts(caplog))
        assert house.entry(second.name)["state"] == "ACKED"
        work.mkdir()
        logged(caplog, "The working directory was deleted and created again.")
        assert house.said("ready", 3)[-1].name == first.name
        assert Path(f"/proc/{house.said('ready', 3)[-1].pid}/cwd").resolve() == work
        assert Path.cwd() == work

    with listening(caplog):
        house.run(act)


def test_a_forked_process_starts_without_the_directory(
    tmp_path: Path, work: Path, caplog: pytest.LogCaptureFixture
) -> None:
    house = House(tmp_path, "serves", restart_policy="always")

    def act() -> None:
        first = house.said("ready")[0]
        house.all_acked()
        work.rmdir()
        os.kill(first.pid, signal.SIGKILL)
        house.said("ready", 2)
        assert errors(caplog) == [line for line in errors(caplog) if "killed by SIGKILL" in line]

    with listening(caplog):
        house.run(act)


def texts(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the errors of the log, with the exceptions that are shown."""
    shown = logging.Formatter()
    return [shown.format(record) for record in [*caplog.records] if record.levelno >= logging.ERROR]
