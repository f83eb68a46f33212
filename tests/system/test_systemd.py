"""The messages to a service manager, each sent to a real socket."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from worker._system import systemd

# Stands for the pid of the test process, which differs from one to the next of those that run side by side.
OWN = "its own"
DATAGRAM = socket.AF_UNIX, socket.SOCK_DGRAM


@pytest.fixture
def address() -> Iterator[str]:
    """Make a short path: the address of a unix socket has room for about a hundred bytes."""
    with TemporaryDirectory() as directory:
        yield f"{directory}/notify"


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "FDSTORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(systemd, "_taken", {})
    monkeypatch.setattr(systemd, "_pid", 0)


def given(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    """Take an environment with these variables."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    systemd.take_environment()


def test_a_message_reaches_a_socket_with_a_path(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(socket.socket(*DATAGRAM)) as receiver:
        receiver.bind(address)
        given(monkeypatch, NOTIFY_SOCKET=address)
        assert systemd.is_notified()
        assert systemd.notify(READY=1, STATUS="2 of 2\nworkers ")
        assert receiver.recv(4096) == b"READY=1\nSTATUS=2 of 2 workers"
    assert "NOTIFY_SOCKET" not in os.environ


def test_a_message_reaches_an_abstract_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(socket.socket(*DATAGRAM)) as receiver:
        receiver.bind("")
        name = receiver.getsockname().decode(errors="surrogateescape")
        given(monkeypatch, NOTIFY_SOCKET=f"@{name[1:]}")
        assert systemd.notify(STOPPING=1)
        assert receiver.recv(4096) == b"STOPPING=1"


def test_descriptors_are_sent_along(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(socket.socket(*DATAGRAM)) as receiver, open(tmp_path / "file", "w+b") as file:
        receiver.bind(address)
        given(monkeypatch, NOTIFY_SOCKET=address, FDSTORE="3")
        assert systemd.store_limit() == 3
        assert systemd.notify([file.fileno()], FDSTORE=1, FDNAME="web")
        text, rights, _, _ = receiver.recvmsg(4096, socket.CMSG_SPACE(8))
        assert text == b"FDSTORE=1\nFDNAME=web"
        (received,) = array.array("i", rights[0][2])
        try:
            assert os.path.sameopenfile(received, file.fileno())
        finally:
            os.close(received)


@pytest.mark.parametrize("wrong", ["/nonexistent/x", "relative", "vsock:2:1234", "@" + "x" * 200, "a\1b"])
def test_a_wrong_address_is_logged_once(
    wrong: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    given(monkeypatch, NOTIFY_SOCKET=wrong)
    assert not systemd.notify(READY=1)
    assert not systemd.notify(READY=1)
    assert len([line for line in caplog.messages if "Cannot notify the service manager" in line]) == 1


def test_a_service_manager_that_does_not_read_delays_little(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systemd, "TIMEOUT", 0.01)
    with closing(socket.socket(*DATAGRAM)) as receiver:
        receiver.bind(address)
        given(monkeypatch, NOTIFY_SOCKET=address)
        sent = 0
        while systemd.notify(STATUS="x" * 500):
            sent += 1
            assert sent < 10_000
        assert sent > 0


def test_without_a_socket_nothing_is_sent() -> None:
    systemd.take_environment()
    assert not systemd.is_notified()
    assert not systemd.notify(READY=1)
    assert systemd.watchdog_seconds() is None
    assert systemd.store_limit() == 0
    assert systemd.environment() == {}


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [
        ("30000000", OWN, 30.0),
        ("500000", "", 0.5),
        ("30000000", "1", None),
        ("0", "", None),
        ("soon", "", None),
        ("", "", None),
    ],
)
def test_the_watchdog_is_that_of_this_process(
    usec: str, pid: str, seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = str(os.getpid()) if pid is OWN else pid
    given(monkeypatch, NOTIFY_SOCKET="/run/notify", WATCHDOG_USEC=usec, WATCHDOG_PID=pid)
    assert systemd.watchdog_seconds() == seconds
    expected = {"NOTIFY_SOCKET": "/run/notify"}
    if seconds is not None:
        expected |= {"WATCHDOG_USEC": usec, "WATCHDOG_PID": "0"}
    elif pid == "1":
        expected |= {"WATCHDOG_PID": "1"}
    elif pid:
        expected |= {"WATCHDOG_PID": pid}
    assert systemd.environment() == expected


def test_a_forked_child_does_not_notify(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, NOTIFY_SOCKET=address)
    other = os.getpid() + 1
    monkeypatch.setattr(os, "getpid", lambda: other)
    assert not systemd.is_notified()
