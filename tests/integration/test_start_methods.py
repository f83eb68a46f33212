"""Every start method of multiprocessing."""

from __future__ import annotations

from collections.abc import Callable
from signal import SIGINT

import pytest

from .harness import Server
from .tools import STOCK

Run = Callable[..., Server]


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_start_request_restart_and_stop(run: Run, method: str) -> None:
    server = run("apps.cluster:app", start_method=method).wait_ready()
    before = server.settled(2)
    # A worker that is stopped before it serves has no listeners to run.
    server.wait_events("after_server_start", 2)
    me = server.get("/whoami")
    assert me["pid"] == before[me["name"]]["pid"]
    assert me["worker_process"] == "true"
    if not STOCK:
        assert me["multiplexer"].partition(".")[0] == "worker"
    who = server.post("/m/restart", {"zero_downtime": True})["name"]
    server.wait_events("after_server_start", 2, process=who)
    server.wait_events("after_server_stop", process=who)
    assert server.settled(2)[who]["pid"] != before[who]["pid"]
    assert server.stop(SIGINT, to="main" if STOCK else "group") == 0
    assert len(server.events("after_server_stop")) == 3
    assert server.log("err") == ""
