"""The decisions about an upgrade, and a successor that is started, told to stop, killed and collected."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from worker._supervisor.duties.upgrade import TakeOver, Upgrade
from worker._supervisor.duties.upgrade_policy import WAITING_PARENTS, Verdict, judge, why_refused
from worker._supervisor.model import ServerPhase
from worker._system.handover import GONE, Predecessor, Successor

RUNS: dict[str, Any] = {
    "is_running": True,
    "is_stopping": False,
    "pid": 4242,
    "parent": "systemd",
    "is_exclusive": False,
    "has_sockets": True,
}


@pytest.mark.parametrize(
    ("facts", "verdict"),
    [
        ({}, Verdict()),
        ({"is_ready": True}, Verdict(succeeds=True)),
        # One that has exited serves no more, and one is enough where the server stops.
        (
            {"is_ready": True, "exit_text": "SIGKILL"},
            Verdict(failure="it exited before its workers served: SIGKILL"),
        ),
        ({"is_ready": True, "is_stopping": True}, Verdict(failure="the server is stopping")),
        # It has come in time if it has come by the look that finds it late.
        ({"is_ready": True, "is_overdue": True}, Verdict(succeeds=True)),
        (
            {"is_overdue": True, "overdue_after": 30.0},
            Verdict(failure="its workers did not all serve within 30 s (WorkerManager.THRESHOLD)"),
        ),
    ],
)
def test_what_becomes_of_an_upgrade(facts: dict[str, Any], verdict: Verdict) -> None:
    usual: dict[str, Any] = {"exit_text": "", "is_ready": False, "is_stopping": False}
    assert judge(**usual | facts) == verdict


def test_a_server_that_runs_may_be_upgraded() -> None:
    assert why_refused(**RUNS) == ""


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"other": 77}, "the main process of an upgrade still runs [77]"),
        ({"is_running": False}, "the server is still starting"),
        ({"is_running": False, "is_stopping": True}, "the server is stopping"),
        ({"is_stopping": True}, "the server is stopping"),
        ({"is_candidate": True}, "the main process before this one still is the server"),
        ({"pid": 1}, "this process is PID 1"),
        ({"is_exclusive": True}, "two processes cannot listen on a port for HTTP/3"),
        ({"has_sockets": False}, "this process has bound no socket"),
        ({"may_write_pid": False}, "the user of this process may not write in the directory of the pid file"),
        ({"is_awaited": True, "parent": "sh"}, "the parent process, sh, takes the end"),
        ({"is_awaited": True, "parent": ""}, "the parent process, of the container, takes the end"),
        *(
            ({"parent": name}, f"the parent process, {name}, takes the end")
            for name in sorted(WAITING_PARENTS)
        ),
    ],
)
def test_a_refusal_names_its_reason(facts: dict[str, Any], reason: str) -> None:
    assert why_refused(**RUNS | facts).startswith(reason)


@pytest.fixture
def ends() -> Iterator[tuple[Successor, Predecessor]]:
    """The channel between two main processes, both of which are this one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    successor, predecessor = Successor(os.getpid(), ours), Predecessor(os.getpid(), theirs)
    yield successor, predecessor
    successor.close()
    predecessor.close()


def test_a_successor_that_stops_withdraws(ends: tuple[Successor, Predecessor]) -> None:
    """It has told that it is ready, and the predecessor has not looked since."""
    successor, predecessor = ends
    supervisor: Any = SimpleNamespace(phase=ServerPhase.STOPPING)
    duty = TakeOver(supervisor, supervisor, predecessor)
    predecessor.send("ready", sockets=["a"])
    duty.perform(0.0)
    assert duty.due_at == math.inf
    attempt: Any = SimpleNamespace(successor=successor, sockets=None, deadline=0.0, limit=1.0)
    Upgrade._receive(supervisor, attempt, 0.0)
    assert attempt.sockets is None
    assert successor.receive() is GONE
