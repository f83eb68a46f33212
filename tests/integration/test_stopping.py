"""The end of a server: by each signal, to the main process, its group and all at once; early; and when it
hangs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGTERM, Signals

import pytest
from support.modes import WORKERS_IMPORT

from .harness import Server
from .tools import STOCK, wait_until

Run = Callable[..., Server]


@pytest.mark.parametrize(
    ("number", "to", "method"),
    [
        (SIGTERM, "main", "spawn"),
        (SIGINT, "main", "fork"),
        (SIGTERM, "group", "fork"),
        (SIGINT, "group", "spawn"),
        (SIGTERM, "all", "spawn"),
        (SIGINT, "all", "fork"),
    ],
)
def test_a_signal_stops_all_in_order(run: Run, number: Signals, to: str, method: str) -> None:
    server = run("apps.cluster:app", start_method=method).wait_ready()
    server.settled(2)
    server.wait_events("after_server_start", 2)
    assert server.stop(number, to) == 0
    for event in ("before_server_stop", "after_server_stop"):
        assert sorted(found.process for found in server.events(event)) == [
            "Sanic-Server-0-0",
            "Sanic-Server-1-0",
        ]
    assert server.output.events[-1].name == "main_process_stop"
    assert len(server.events("main_process_stop")) == 1
    assert f"Received signal {number.name}. Shutting down." in server.log("out")
    assert "Server Stopped" in server.log("out")
    assert server.log("err") == ""


@pytest.mark.modes(*WORKERS_IMPORT)
@pytest.mark.parametrize(("number", "to"), [(SIGTERM, "main"), (SIGTERM, "group"), (SIGINT, "group")])
def test_a_signal_while_workers_import(run: Run, number: Signals, to: str) -> None:
    server = run("apps.slow:app")
    server.wait_events("importing", 2)
    server.signal(number, to)
    assert server.wait() == 0
    assert server.log("err") == ""


@pytest.mark.ours
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_a_lost_stop_is_sent_again(run: Run, method: str) -> None:
    server = run("apps.cluster:app", start_method=method, env={"LOSE": "1"})
    server.wait_events("losing", 2)
    server.signal(SIGTERM)
    server.wait_events("lost", 2)
    assert server.wait() == 0
    assert len(server.events("after_server_stop")) == 2
    assert server.log("err") == ""


def test_an_application_stops_the_server(run: Run) -> None:
    server = run("apps.cluster:app").wait_ready()
    server.settled(2)
    server.wait_events("after_server_start", 2)
    server.post("/m/terminate")
    assert server.wait() == 0
    assert len(server.events("after_server_stop")) == 2
    assert server.log("err") == ""


@pytest.mark.parametrize("number", [SIGTERM, SIGINT])
def test_a_second_signal_kills_workers_that_hang(run: Run, number: Signals) -> None:
    server = run("apps.cluster:app", env={"HANG": "1"}).wait_ready()
    server.settled(2)
    with closing(HTTPConnection("127.0.0.1", server.port)) as connection:
        connection.request("GET", "/block")
        server.wait_events("blocked")
        server.signal(number)
        server.wait_line(f"Received signal {number.name}")
        server.wait_events("hanging")
        assert server.exit_code is None
        server.signal(number)
        server.wait_line("Shutdown interrupted. Killing.")
        # A request was cut off.
        assert server.wait() == (1 if STOCK else 4)
    # They were killed at once, and not when they had had all their time.
    assert "did not exit within" not in server.log()
    wait_until(lambda: not server.processes(), "all processes gone")
    assert server.events("after_server_stop") == []


@pytest.mark.ours
@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_no_process_outlives_the_main_process(run: Run, method: str) -> None:
    server = run("apps.cluster:app", start_method=method).wait_ready()
    server.settled(2)
    server.wait_events("after_server_start", 2)
    server.signal(SIGKILL)
    assert server.wait() == -SIGKILL
    wait_until(lambda: not server.processes(), "all processes gone")
    assert len(server.events("after_server_stop")) == 2


@pytest.mark.ours
def test_a_signal_during_the_exit_of_the_interpreter_is_harmless(run: Run) -> None:
    """The server has stopped by itself; only the end of the interpreter is left."""
    server = run("apps.cluster:app").wait_ready()
    server.post("/m/terminate", {})
    server.wait_line("Server Stopped")
    while server.exit_code is None and is_handled(server.pid, SIGTERM):
        pass
    server.signal(SIGTERM)
    assert server.wait() == 0


def is_handled(pid: int, signum: Signals) -> bool:
    """Whether a process has a handler for a signal."""
    handled = Path(f"/proc/{pid}/status").read_text().partition("SigCgt:")[2].split()[0]
    return bool(int(handled, 16) >> signum - 1 & 1)
