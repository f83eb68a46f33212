"""Sanic Extensions write to the state with every request, and to the control channel."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from datetime import datetime
from http.client import HTTPConnection
from pathlib import Path

import pytest

from .harness import Server
from .tools import wait_until

pytest.importorskip("sanic_ext", reason="Sanic Extensions are there in `make test-sanic-lts`")

HASTE = {"SANIC_WORKER_GRACEFUL_TIMEOUT": "1"}


def test_each_request_is_counted_in_the_state(run: Callable[..., Server]) -> None:
    server = run("apps.extended:app", workers=1).wait_ready()
    (name,) = server.settled(1)
    before = server.table()[name]["request_count"]
    for _ in range(50):
        server.get("/whoami")
    assert server.table()[name]["request_count"] == before + 51
    # Its endpoint shows the same, made safe for JSON.
    shown = server.get("/__health__/")
    assert shown["Sanic-HealthMonitor-0"]["server"] is False
    assert shown[name]["request_count"] == before + 52
    assert datetime.fromisoformat(shown[name]["start_at"]).utcoffset() is not None
    assert server.stop() == 0
    assert "Traceback" not in server.log("err")


def test_the_health_monitor_replaces_a_worker_that_hangs(run: Callable[..., Server]) -> None:
    # The reports reach the monitor only by a fork.
    server = run("apps.extended:app", env=HASTE, start_method="fork").wait_ready()
    before = {name: entry["pid"] for name, entry in server.settled(2).items()}

    def replaced() -> list[str]:
        return [name for name, entry in server.settled(2).items() if entry["pid"] != before[name]]

    with closing(HTTPConnection("127.0.0.1", server.port)) as connection:
        connection.request("GET", "/hang")
        # The other worker stays: it has reported all the time.
        (name,) = wait_until(replaced, "another process for the one that hangs")
    hung = Path(f"/proc/{before[name]}")
    wait_until(lambda: not hung.exists(), "the end of the process that hangs")
    assert server.stop() == 0
