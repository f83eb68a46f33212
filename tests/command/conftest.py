"""The inspector and the command of the tests of the client."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from support.fake_inspector import FakeInspector
from support.running import environment

from worker import cli

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no other server of this machine be found."""
    for variable in ("HOST", "PORT", "API_KEY", "TLS_KEY", "TLS_CERT"):
        monkeypatch.delenv(f"SANIC_INSPECTOR_{variable}", raising=False)
    monkeypatch.delenv("SANIC_WORKER_INSPECTOR_UNIX", raising=False)
    monkeypatch.setattr("worker.cli.inspect.address.directories", list)


@pytest.fixture
def inspector() -> Iterator[FakeInspector]:
    with FakeInspector() as found:
        yield found


@contextmanager
def running(command: list[str], **streams: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a command, which is killed at the end if it still runs."""
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True, **streams) as client:
        try:
            yield client
        finally:
            client.kill()


def exit_code(*args: str) -> Any:
    """Run a command; return its exit code."""
    try:
        cli.main([*args])
    except SystemExit as ended:
        return ended.code
    return 0


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a command; it returns the exit code, stdout and stderr."""

    def run(*args: str) -> tuple[int, str, str]:
        code = exit_code(*args)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run
