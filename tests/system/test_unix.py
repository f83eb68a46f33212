"""Unix sockets: a socket in use is kept, and a server removes only its own."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from worker._system import unix

MODE = 0o600


@pytest.fixture
def path() -> Iterator[str]:
    """Make a short path: the address of a unix socket has room for about a hundred bytes."""
    with TemporaryDirectory() as directory:
        yield f"{directory}/socket"
    unix._bound.clear()


@pytest.fixture
def keep() -> Iterator[ExitStack]:
    """Close, at the end, each object that was entered."""
    with ExitStack() as stack:
        yield stack


def other(path: str, keep: ExitStack, kind: int = socket.SOCK_STREAM, backlog: int = 5) -> socket.socket:
    """The socket of another server."""
    sock = keep.enter_context(socket.socket(socket.AF_UNIX, kind))
    sock.bind(path)
    if kind != socket.SOCK_DGRAM:
        sock.listen(backlog)
    return sock


def refusal(path: str) -> OSError:
    """Return the error of binding to a path that is in use; the file there stays."""
    before = os.lstat(path)
    with pytest.raises(OSError, match="Address already in use by another server") as caught:
        unix.bind(path, MODE, 5)
    assert caught.value.errno == errno.EADDRINUSE
    assert os.lstat(path) == before
    unix.remove(path)
    assert os.path.exists(path)
    return caught.value


def test_a_free_path_is_bound_and_removed(path: str, keep: ExitStack) -> None:
    sock = keep.enter_context(unix.bind(path, MODE, 5))
    assert stat.S_IMODE(os.stat(path).st_mode) == MODE
    assert sock.getsockname()
    client = keep.enter_context(socket.socket(socket.AF_UNIX))
    client.connect(path)
    unix.remove(path)
    assert not os.path.exists(path)
    unix.remove(path)
    unix.remove(None)


def test_a_socket_in_use_is_kept(path: str, keep: ExitStack) -> None:
    listening = other(path, keep)
    assert path in str(refusal(path))
    listening.close()
    keep.enter_context(unix.bind(path, MODE, 5))


def test_a_socket_with_a_full_backlog_is_kept(path: str, keep: ExitStack) -> None:
    other(path, keep, backlog=0)
    for _ in range(3):
        client = keep.enter_context(socket.socket(socket.AF_UNIX))
        client.setblocking(False)
        client.connect_ex(path)
    refusal(path)


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_a_socket_of_another_type_is_kept(path: str, kind: int, keep: ExitStack) -> None:
    other(path, keep, kind)
    refusal(path)


def test_a_second_bind_in_one_process_is_refused(path: str, keep: ExitStack) -> None:
    keep.enter_context(unix.bind(path, MODE, 5))
    with pytest.raises(OSError, match="in use"):
        unix.bind(path, MODE, 5)
    unix.remove_all()
    assert not os.path.exists(path)


def test_a_file_that_is_no_socket_is_refused(path: str) -> None:
    Path(path).write_text("precious")
    with pytest.raises(FileExistsError, match="not a socket"):
        unix.bind(path, MODE, 5)
    with pytest.raises(FileNotFoundError, match="folder does not exist"):
        unix.bind(f"{path}s/socket", MODE, 5)
    unix.remove(path)
    assert Path(path).read_text() == "precious"


def test_a_socket_of_another_server_is_not_removed(path: str, keep: ExitStack) -> None:
    keep.enter_context(unix.bind(path, MODE, 5))
    os.unlink(path)
    keep.enter_context(other(path, keep))
    unix.remove(path)
    unix.remove_all()
    assert os.path.exists(path)


def test_only_a_socket_without_a_listener_is_stale(path: str, keep: ExitStack) -> None:
    unix.remove_stale(path)
    listening = other(path, keep)
    unix.remove_stale(path)
    assert os.path.exists(path)
    listening.close()
    unix.remove_stale(path)
    assert not os.path.exists(path)
    Path(path).write_text("precious")
    unix.remove_stale(path)
    assert Path(path).read_text() == "precious"
