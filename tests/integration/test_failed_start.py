"""A worker that does not start: the server ends soon with 1, names worker and reason, and kills no other
process.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.modes import WORKERS_IMPORT

from .harness import Server
from .output import tracebacks
from .tools import HERE, MODULE, free_port

BROKEN = str(HERE / "apps" / "broken.py")
# A worker that neither exits nor gets ready would have 30 s.
SOON = 20.0


@pytest.fixture(
    params=[pytest.param("import", marks=pytest.mark.modes(*WORKERS_IMPORT)), "listener", "exit", "kill"]
)
def failed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Server]]:
    """A shell script starts a server of two workers, one of which fails as named first."""
    port = free_port()
    # A module is imported anew only by a worker that does not inherit it.
    method = "spawn" if request.param in ("import", "listener") else "fork"
    env = {"FAIL": request.param, "START_METHOD": method}
    script = f'"{sys.executable}" -m {MODULE} apps.broken:app -H 127.0.0.1 -p {port} --workers=2 --no-motd'
    command = ["sh", "-c", f"{script}; echo after=$?; echo on"]
    with Server(command, cwd=tmp_path, port=port, env=env) as server:
        yield request.param, server


def test_a_worker_that_fails_to_start_ends_the_server(failed: tuple[str, Server]) -> None:
    how, server = failed
    (death,) = server.wait_events("dying")
    ended = server.wait_line(r"after=\d+")
    assert ended.text == "after=1"
    assert ended.at - death.at < SOON
    assert server.wait() == 0
    assert server.log("out").splitlines()[-1] == "on"
    assert len(server.events("dying")) == 1

    errors = server.log("err")
    assert "Sanic-Server-1-0" in errors
    why = {"import": "broken on purpose", "listener": "broken on purpose", "exit": r"3", "kill": "SIGKILL"}[
        how
    ]
    assert any(why in line for line in errors.splitlines())
    # The user's own error may be shown with a traceback; no other line is one.
    assert all(trace and trace[-1] == BROKEN for trace in tracebacks(errors)), errors
    if how in ("exit", "kill"):
        assert tracebacks(errors) == []
        assert any("Sanic-Server-1-0" in line and why in line for line in errors.splitlines())
