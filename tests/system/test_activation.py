"""Sockets that a service manager passes: which application takes which."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from tempfile import TemporaryDirectory
from urllib.parse import quote

import pytest

from worker._system import activation, unix

# Where the test passes its descriptors: the numbers from 3 on are in use here.
BASE = 700


@pytest.fixture
def keep() -> Iterator[ExitStack]:
    """Close, at the end, all sockets of the test and of the module."""
    with ExitStack() as stack:
        stack.callback(setattr, activation, "_inherited", None)
        stack.callback(unix._bound.clear)
        stack.callback(activation.close_all)
        yield stack


@pytest.fixture
def folder() -> Iterator[str]:
    with TemporaryDirectory() as directory:
        yield directory


def tcp(keep: ExitStack, host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    return keep.enter_context(socket.create_server((host, port)))


def at_path(keep: ExitStack, path: str) -> socket.socket:
    sock = keep.enter_context(socket.socket(socket.AF_UNIX))
    sock.bind(path)
    sock.listen(5)
    return sock


def passed(
    monkeypatch: pytest.MonkeyPatch, sockets: Sequence[socket.socket], names: str = "", pid: int | None = None
) -> None:
    """Pass sockets to this process as a service manager does."""
    monkeypatch.setattr(activation, "FIRST", BASE)
    for number, sock in enumerate(sockets, BASE):
        os.dup2(sock.fileno(), number)
    monkeypatch.setenv("LISTEN_PID", str(pid or os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", str(len(sockets)))
    monkeypatch.setenv("LISTEN_FDNAMES", names)


def port_of(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])


def test_sockets_are_taken_once_and_not_inherited(keep: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    passed(monkeypatch, [tcp(keep), tcp(keep)], "web:admin")
    assert [one.name for one in activation.inherited()] == ["web", "admin"]
    assert not any(os.get_inheritable(one.sock.fileno()) for one in activation.inherited())
    assert not {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} & set(os.environ)
    assert activation.inherited() is activation.inherited()


def test_sockets_of_another_process_are_not_taken(keep: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    passed(monkeypatch, [], pid=1)
    assert activation.inherited() == []
    assert "LISTEN_PID" not in os.environ


def test_the_address_comes_first(keep: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tcp(keep), tcp(keep)
    passed(monkeypatch, [first, second], "app:other")
    found = activation.take("localhost", port_of(second), name="app")
    assert found is not None
    assert found.sock.getsockname() == second.getsockname()
    assert found.is_shared


def test_then_comes_the_port(keep: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tcp(keep), tcp(keep, "0.0.0.0")
    passed(monkeypatch, [first, second], "app:other")
    found = activation.take("127.0.0.1", port_of(second), name="app")
    assert found is not None
    assert found.name == "other"


def test_then_comes_the_name(keep: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    passed(monkeypatch, [tcp(keep), tcp(keep)], "web:admin")
    found = activation.take("127.0.0.1", 1, name="admin")
    assert found is not None
    assert found.name == "admin"
    assert activation.take("127.0.0.1", 1, name="admin", is_only=False) is None


def test_the_only_socket_is_for_the_only_application(
    keep: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed(monkeypatch, [tcp(keep)])
    assert activation.take("127.0.0.1", 1) is None
    assert activation.take("127.0.0.1", 1, is_only=True) is not None


def test_a_socket_that_is_passed_without_a_name_is_not_one_of_a_main_process_before(
    keep: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would be shut down for its holder, and an upgrade would not find it."""
    passed(monkeypatch, [tcp(keep)])
    found = activation.take("127.0.0.1", 1, is_only=True)
    assert found is not None
    assert not found.is_bound_here
    # As the next main process gets it.
    names = activation.environment()["LISTEN_FDNAMES"]
    monkeypatch.setattr(activation, "_inherited", None)
    with found.sock.dup() as sock:
        found.close()
        passed(monkeypatch, [sock], names)
    assert activation.take("127.0.0.1", 1, is_only=True) is not None


def test_a_unix_socket_is_taken_by_its_path(
    keep: ExitStack, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"{folder}/socket"
    passed(monkeypatch, [tcp(keep), at_path(keep, path)])
    found = activation.take("127.0.0.1", 8000, path=path)
    assert found is not None
    assert activation.address(found.sock) == path
    unix.remove_all()
    assert os.path.exists(path)


def test_a_socket_of_a_main_process_before_is_for_its_address_alone(
    keep: ExitStack, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its configuration may have changed meanwhile."""
    path = f"{folder}/soc:ket"
    bound = keep.enter_context(unix.bind(path, 0o600, 5))
    names = [activation.Listener(tcp(keep)).name, activation.Listener(bound, path=path).name]
    assert names[1] == "sanic-worker=" + quote(path)
    other, mine = tcp(keep), bound
    passed(monkeypatch, [other, mine], ":".join(names))
    unix.keep(path)
    assert activation.take("127.0.0.1", 1, is_only=True) is None
    found = activation.take("127.0.0.1", 8000, path=path, is_only=True)
    assert found is not None
    assert not found.is_shared
    assert activation.release() == names[:1]
    unix.remove_all()
    assert not os.path.exists(path)


def test_a_shared_socket_is_closed_and_goes_on_elsewhere(
    keep: ExitStack, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"{folder}/socket"
    ours = activation.listen(activation.Listener(unix.bind(path, 0o600, 5), path=path))
    theirs = keep.enter_context(ours.sock.dup())
    ours.share()
    ours.shutdown(socket.SHUT_RDWR)
    ours.close()
    unix.remove_all()
    keep.enter_context(socket.socket(socket.AF_UNIX)).connect(path)
    keep.enter_context(theirs.accept()[0])
    assert activation.listeners() == []


def test_a_socket_that_is_not_shared_refuses_connections(keep: ExitStack) -> None:
    ours = activation.listen(activation.Listener(tcp(keep)))
    theirs = keep.enter_context(ours.sock.dup())
    ours.shutdown(socket.SHUT_RDWR)
    ours.close()
    with keep.enter_context(socket.socket()) as client, suppress(ConnectionResetError):
        assert client.connect_ex(theirs.getsockname()) != 0


def test_a_descriptor_that_does_not_listen_is_left_alone(
    keep: ExitStack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    datagram = keep.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    reader, writer = os.pipe()
    keep.callback(os.close, writer)
    keep.callback(os.close, reader)
    passed(monkeypatch, [datagram, tcp(keep), tcp(keep)], "log")
    os.dup2(reader, BASE + 1)
    for number in (BASE, BASE + 1):
        keep.callback(os.close, number)
    assert [one.name for one in activation.inherited()] == ["unknown"]
    assert "does not listen" in caplog.text
    assert "is no socket" in caplog.text


@pytest.mark.parametrize("count", ["", "-1", "many", "0"])
def test_a_wrong_count_passes_nothing(count: str, keep: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    passed(monkeypatch, [])
    monkeypatch.setenv("LISTEN_FDS", count)
    assert activation.inherited() == []


def test_sockets_are_passed_on_by_their_names(keep: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    passed(monkeypatch, [tcp(keep)], "web")
    activation.take(None, None, name="web")
    own = activation.listen(activation.Listener(tcp(keep)))
    assert activation.environment() == {
        "LISTEN_PID": "0",
        "LISTEN_FDS": "2",
        "LISTEN_FDNAMES": f"web:{own.name}",
    }
    assert ":" not in own.name
