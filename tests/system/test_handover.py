"""The channel between two main processes, and a successor that finds its end of it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from support.running import environment

from worker._system import handover
from worker._system.handover import GONE, VARIABLE, Channel, Successor


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    first, second = map(Channel, pair)
    yield first, second
    first.close()
    second.close()


def test_messages_arrive_one_by_one(ends: tuple[Channel, Channel]) -> None:
    first, second = ends
    assert second.receive() == {}
    assert first.send("begun")
    assert first.send("ready", sockets=["a", "b"])
    assert second.receive() == {"stage": "begun"}
    assert second.receive() == {"stage": "ready", "sockets": ["a", "b"]}
    assert second.receive() == {}


def test_the_end_of_the_other_process_comes_after_its_messages(ends: tuple[Channel, Channel]) -> None:
    first, second = ends
    first.send("ready")
    first.close()
    assert second.receive() == {"stage": "ready"}
    assert second.receive() is GONE
    assert second.receive() is GONE
    assert not second.send("yours")


@pytest.mark.parametrize("data", [b"[]", b"{", b"\xff", b'"ready"'])
def test_other_messages_are_ignored(data: bytes) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        channel = Channel(theirs)
        ours.send(data)
        assert channel.receive() == {}
        channel.close()


def successor(code: str) -> Successor:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        pid = os.posix_spawn(sys.executable, [sys.executable, "-c", code], os.environ)
    return Successor(pid, ours)


def test_the_exit_of_a_successor_is_collected_once() -> None:
    started = successor("raise SystemExit(3)")
    os.waitid(os.P_PID, started.pid, os.WEXITED | os.WNOWAIT)
    assert started.poll()
    assert started.exit_code == 3
    assert started.poll()
    # Its pid may be that of another process by now.
    started.signal(signal.SIGKILL)
    started.close()


def test_a_successor_that_is_killed_is_collected() -> None:
    started = successor("import signal; signal.pause()")
    assert not started.poll()
    started.end()
    assert started.has_exited
    with pytest.raises(ProcessLookupError):
        os.kill(started.pid, 0)
    started.close()


PROGRAM = """
import os
from worker._system import handover
handover.join()
found = handover.predecessor()
print(found and found.pid, os.environ.get("LISTEN_PID") == str(os.getpid()), sorted(
    name for name in (*os.environ, *handover.start_environment()) if name in handover.PERSONAL))
if found:
    assert not os.get_inheritable(found._sock.fileno())
    found.send("begun")
"""


@pytest.mark.parametrize("is_channel", [True, False])
def test_a_successor_finds_its_end(is_channel: bool) -> None:
    """The variable may come to a process without the descriptor, where its number is another one's."""
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET if is_channel else socket.SOCK_STREAM)
    with pair[0] as ours, pair[1] as theirs:
        fd = theirs.fileno()
        variables = {VARIABLE: f"{os.getpid()}:{fd}", "LISTEN_PID": "0", "WATCHDOG_PID": "0"}
        ended = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env=environment(variables),
            pass_fds=[fd],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        variables_left = ["LISTEN_PID", "WATCHDOG_PID"]
        if is_channel:
            assert ended.stdout == f"{os.getpid()} True {variables_left}\n"
            assert Channel(ours).receive() == {"stage": "begun"}
        else:
            assert ended.stdout == f"None False {variables_left}\n"


def test_this_process_has_no_predecessor() -> None:
    assert handover.predecessor() is None


@pytest.mark.parametrize("is_this_process", [True, False])
def test_a_service_of_systemd_ends_with_the_process_that_systemd_started(
    is_this_process: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = os.getpid() if is_this_process else os.getppid()
    monkeypatch.setitem(handover._environment, "SYSTEMD_EXEC_PID", str(started))
    assert handover.is_awaited() is is_this_process
