"""``Monitor``: no message makes a wait long, or delays the report of an exit."""

from __future__ import annotations

import fcntl
import os
import pickle
import signal
import socket
import struct
import termios
from multiprocessing.connection import Connection
from typing import Any

import pytest
from support.processes import LONG, Children, frame, until

from worker._core.messages import Exited, Received, Restart, Stop

# The most messages that a wait returns.
ENOUGH = 250
TINY = frame(pickle.dumps(None, 2))


def of(name: str, sender: int) -> Received:
    return Received(Restart((name,), ""), sender)


@pytest.fixture(autouse=True)
def roomy(publisher: Connection) -> None:
    """The channel holds more than a wait takes."""
    with socket.socket(fileno=os.dup(publisher.fileno())) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * 1024 * 1024)


@pytest.mark.parametrize("begun", [0, 20_000, 70_000])
def test_a_wait_returns_a_limited_number_of_messages(
    monitor: Any, publisher: Connection, children: Children, gate: tuple[int, int], begun: int
) -> None:
    """The limit holds for small messages too, and for any unfinished one of another writer."""

    def begin() -> None:
        os.write(publisher.fileno(), frame(b"\x80" * 100_000)[:begun])
        os.write(gate[1], b".")
        signal.pause()

    if begun:
        children.fork(begin)
        os.read(gate[0], 1)
        while is_behind(publisher):
            assert monitor.wait(0) == []
    os.write(publisher.fileno(), TINY * 20_000)
    stop = Received(Stop(), os.getpid())
    seen = 0
    while seen < 20_000:
        events = monitor.wait(LONG)
        assert events == [stop] * min(ENOUGH, 20_000 - seen)
        seen += len(events)
    assert monitor.wait(0) == []


def is_behind(publisher: Connection) -> bool:
    """Whether the channel has unread bytes."""
    (queued,) = struct.unpack("i", fcntl.ioctl(publisher.fileno(), termios.TIOCOUTQ, b"\0" * 4))
    return bool(queued)


def test_a_wait_without_messages_leaves_them_unread(
    monitor: Any, publisher: Connection, children: Children
) -> None:
    for _ in range(ENOUGH + 50):
        publisher.send("a:")
    assert monitor.wait(0, False) == []
    assert monitor.wait(LONG) == [of("a", os.getpid())] * ENOUGH
    assert monitor.wait(0, messages=False) == []
    assert monitor.wait(LONG) == [of("a", os.getpid())] * 50

    pid = children.fork(int)
    monitor.watch("w", pid, None)
    assert monitor.wait(None, False) == [Exited("w", pid, 0)]
    monitor.wake()
    assert monitor.wait(None, False) == []


def test_messages_of_exited_processes_are_always_read(
    monitor: Any, publisher: Connection, children: Children
) -> None:
    def write() -> None:
        for _ in range(3):
            publisher.send("last:")

    def write_and_be_cut_short() -> None:
        publisher.send("words:")
        os.write(publisher.fileno(), TINY[:5])

    for _ in range(400):
        publisher.send("before:")
    pids = [children.fork(each) for each in (write, write_and_be_cut_short)]
    children.settle(*pids)
    for _ in range(400):
        publisher.send("after:")
    for pid in pids:
        monitor.watch(str(pid), pid, None)

    events = monitor.wait(None, False)
    torn = next(event for event in events if not isinstance(event, (Received, Exited)))
    assert (torn.sender, torn.sample) == (pids[1], TINY[:5])
    events.remove(torn)
    assert sorted(events[:4], key=lambda event: event.sender) == sorted(
        [of("last", pids[0])] * 3 + [of("words", pids[1])], key=lambda event: event.sender or 0
    )
    assert events[4:] == [Exited(str(pid), pid, 0) for pid in pids]

    assert monitor.wait(0, False) == []
    names = [event.command.names[0] for event in until(monitor, 800)]
    assert names == ["before"] * 400 + ["after"] * 400
