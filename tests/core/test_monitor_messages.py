"""``Monitor``: what comes down the pipe, from whom, and in one piece whoever else writes or dies."""

from __future__ import annotations

import fcntl
import os
import pickle
import signal
import socket
import struct
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from time import process_time
from types import ModuleType
from typing import Any

import pytest

from worker.messages import Corrupt, Exited, Opaque, Received, Restart, Scale, Stop, Terminate

from .processes import LONG, Children, die, frame, until

ME = os.getpid()
ENDED = Corrupt("the pipe was closed: it has no writer any more", b"")


def send_texts(connection: Connection, name: str, count: int, size: int) -> None:
    for number in range(count):
        connection.send(f"{name}{number}:{name * size}")


def begin_frame(connection: Connection, size: int, begun: bytes) -> None:
    os.write(connection.fileno(), struct.pack("!i", size) + begun)


def test_what_is_sent_comes_in_order_and_is_understood(monitor: Any, publisher: Connection) -> None:
    for message in ("a:", None, "__TERMINATE_EARLY__", "__SCALE__:3", ("i", 1), ""):
        publisher.send(message)
    publisher.send_bytes(b"any bytes")
    publisher.send_bytes(b"")
    commands = [
        Restart(("a",), ""),
        Stop(),
        Terminate(True),
        Scale(3),
        Opaque(bytes(pickle.dumps(("i", 1)))),
        Stop(),
        Opaque(b"any bytes"),
        Opaque(b""),
    ]
    assert monitor.wait(LONG) == [Received(command, os.getpid()) for command in commands]
    assert monitor.wait(0) == []


def test_what_was_sent_before_is_not_lost(core: ModuleType, ends: tuple[Connection, Connection]) -> None:
    publisher, subscriber = ends
    publisher.send("a:")
    monitor = core.Monitor(subscriber.fileno())
    [received] = monitor.wait(LONG)
    monitor.close()
    assert received.command == Restart(("a",), "")
    assert received.sender in (None, os.getpid())


def test_a_frame_is_kept_until_it_is_whole(monitor: Any, publisher: Connection) -> None:
    whole = frame(pickle.dumps("a:"))
    for byte in whole[:-1]:
        os.write(publisher.fileno(), bytes([byte]))
        assert monitor.wait(0) == []
    os.write(publisher.fileno(), whole[-1:])
    assert monitor.wait(LONG) == [Received(Restart(("a",), ""), os.getpid())]


def test_a_bad_header_costs_what_is_no_frame(monitor: Any, publisher: Connection) -> None:
    publisher.send("a:")
    os.write(publisher.fileno(), b"\xff\xff\xff\0")
    publisher.send("b:")
    reason = f"a header announces -256 bytes, a frame has 0 to {16 * 1024 * 1024}"
    assert monitor.wait(LONG) == [
        Received(Restart(("a",), ""), os.getpid()),
        Corrupt(reason, b"\xff\xff\xff\0", os.getpid()),
        Received(Restart(("b",), ""), os.getpid()),
    ]


def test_writers_that_interleave_do_not_harm_each_other(
    monitor: Any, publisher: Connection, children: Children
) -> None:
    large = {name: children.fork(send_texts, publisher, name, 10, 300_000) for name in "abc"}
    small = {name: children.fork(send_texts, publisher, name, 200, 1) for name in "xy"}
    wanted = {
        pid: [Restart((f"{name}{number}",), name * size) for number in range(count)]
        for writers, count, size in ((large, 10, 300_000), (small, 200, 1))
        for name, pid in writers.items()
    }
    got: dict[int, list[Any]] = {pid: [] for pid in wanted}
    for event in until(monitor, 430):
        got[event.sender].append(event.command)
    assert got == wanted


def test_a_bad_writer_harms_itself_alone(
    monitor: Any, publisher: Connection, children: Children
) -> None:
    # Each writes half a frame; then the first writes what is none, and the second the other half.
    whole = frame(pickle.dumps("good:"))
    begun = children.fork(os.write, publisher.fileno(), b"\0\0\1\0half")
    assert monitor.wait(0.01) == [] or True
    children.settle(begun)
    os.write(publisher.fileno(), whole[:9])
    bad = children.fork(os.write, publisher.fileno(), b"\xff\xff\xff\xf0")
    children.settle(bad)
    os.write(publisher.fileno(), whole[9:])
    events = until(monitor, 3)
    assert Received(Restart(("good",), ""), os.getpid()) in events
    assert {event.sender for event in events} == {os.getpid(), begun, bad}


def test_what_a_process_wrote_comes_with_or_before_its_exit(
    monitor: Any, publisher: Connection, children: Children
) -> None:
    pid = children.fork(send_texts, publisher, "m", 20, 1000)
    children.settle(pid)
    monitor.watch("w", pid, None)
    events = monitor.wait(LONG)
    assert [event.command.names[0] for event in events[:-1]] == [f"m{number}" for number in range(20)]
    assert events[-1] == Exited("w", pid, 0)


def fill(connection: Connection) -> int:
    """Write as much as the buffers hold."""
    fcntl.fcntl(connection, fcntl.F_SETFL, os.O_NONBLOCK)
    part = frame(bytes(16_000))
    count = 0
    while True:
        try:
            assert os.write(connection.fileno(), part) == len(part)
        except BlockingIOError:
            return count
        count += 1


def test_larger_buffers_do_not_hide_messages_behind_an_exit(
    monitor: Any, publisher: Connection, children: Children
) -> None:
    with socket.socket(fileno=os.dup(publisher.fileno())) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * 1024 * 1024)
    pid = children.fork(fill, publisher)
    children.settle(pid)
    monitor.watch("w", pid, None)
    *received, exited = monitor.wait(LONG)
    assert exited == Exited("w", pid, len(received))
    assert len(received) * 16_000 > 256 * 1024


def test_no_more_than_is_held_by_default_is_taken_at_once(monitor: Any, publisher: Connection) -> None:
    with socket.socket(fileno=os.dup(publisher.fileno())) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * 1024 * 1024)
    count = fill(publisher)
    first = monitor.wait(LONG)
    assert 0 < len(first) < count
    assert len(first) + len(until(monitor, count - len(first))) == count


def test_what_a_killed_writer_left_is_told_before_its_exit(
    monitor: Any, publisher: Connection, children: Children
) -> None:
    def write() -> None:
        publisher.send("a:")
        begin_frame(publisher, 100_000, b"partial")
        die()

    pid = children.fork(write)
    children.settle(pid)
    monitor.watch("w", pid, None)
    reason = "7 bytes of an unfinished frame of 100000 bytes; its writer is gone"
    sample = struct.pack("!i", 100_000) + b"partial"
    assert monitor.wait(LONG) == [
        Received(Restart(("a",), ""), pid),
        Corrupt(reason, sample, pid),
        Exited("w", pid, -signal.SIGKILL),
    ]
    publisher.send("b:")
    assert monitor.wait(LONG) == [Received(Restart(("b",), ""), os.getpid())]


def test_a_large_frame_that_is_cut_short_by_a_kill(
    monitor: Any, publisher: Connection, children: Children
) -> None:
    # The writer blocks in the middle of its frame, as nobody reads, and is killed there.
    pid = children.fork(publisher.send, "k" * 4_000_000)
    monitor.watch("w", pid, None)
    assert monitor.wait(0.05) == []
    os.kill(pid, signal.SIGKILL)
    corrupt, exited = until(monitor, 2)
    assert corrupt.reason.endswith("; its writer is gone")
    assert corrupt.sender == pid
    assert len(corrupt.sample) == 64
    assert exited == Exited("w", pid, -signal.SIGKILL)


def test_a_writer_that_nobody_watches_is_missed(
    monitor: Any, publisher: Connection, children: Children
) -> None:
    told, tell = os.pipe()
    gate, opened = os.pipe()

    def grandchild() -> None:
        os.read(gate, 1)
        die()

    def child() -> None:
        with Children() as own:
            pid = own.fork(grandchild)
            begin = struct.pack("!i", 50) + b"abc"
            os.write(tell, pid.to_bytes(4, "big"))
            own.settle(pid)
        del begin

    def writes_then_waits() -> None:
        begin_frame(publisher, 50, b"abc")
        grandchild()

    def forks() -> None:
        with Children() as own:
            pid = own.fork(writes_then_waits)
            os.write(tell, pid.to_bytes(4, "big"))
            own.settle(pid)

    del child
    try:
        children.fork(forks)
        writer = int.from_bytes(os.read(told, 4), "big")
        assert monitor.wait(0.05) == []
        os.write(opened, b".")
        assert until(monitor, 1) == [
            Corrupt(
                "3 bytes of an unfinished frame of 50 bytes; its writer is gone",
                struct.pack("!i", 50) + b"abc",
                writer,
            )
        ]
    finally:
        for fd in (told, tell, gate, opened):
            os.close(fd)
