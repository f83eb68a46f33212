"""``Monitor``: messages are received whole and with their sender, regardless of other writers and their
exits.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import select
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
from support.processes import LONG, Children, die, frame, until

from worker._core.messages import Corrupt, Exited, Opaque, Received, Restart, Scale, Stop, Terminate

ALLOWED = f"a frame has 0 to {16 * 1024 * 1024}"
ENDED = Corrupt("the pipe was closed: it has no writer any more", b"")


def send_texts(connection: Connection, name: str, count: int, size: int) -> None:
    for number in range(count):
        connection.send(f"{name}{number}:{name * size}")


def test_messages_are_decoded_in_order(monitor: Any, publisher: Connection) -> None:
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


def test_messages_sent_before_the_monitor_are_received(
    core: ModuleType, ends: tuple[Connection, Connection]
) -> None:
    publisher, subscriber = ends
    publisher.send("a:")
    monitor = core.Monitor(subscriber.fileno())
    [received] = monitor.wait(LONG)
    monitor.close()
    assert received.command == Restart(("a",), "")
    assert received.sender in (None, os.getpid())


def test_a_partial_frame_is_kept_until_it_is_whole(monitor: Any, publisher: Connection) -> None:
    whole = frame(pickle.dumps("a:"))
    for byte in whole[:-1]:
        os.write(publisher.fileno(), bytes([byte]))
        assert monitor.wait(0) == []
    os.write(publisher.fileno(), whole[-1:])
    assert monitor.wait(LONG) == [Received(Restart(("a",), ""), os.getpid())]


def test_a_bad_header_costs_no_valid_frame(monitor: Any, publisher: Connection) -> None:
    publisher.send("a:")
    os.write(publisher.fileno(), b"\xff\xff\xff\0")
    publisher.send("b:")
    reason = f"a header announces -256 bytes, {ALLOWED}"
    assert monitor.wait(LONG) == [
        Received(Restart(("a",), ""), os.getpid()),
        Corrupt(reason, b"\xff\xff\xff\0", os.getpid()),
        Received(Restart(("b",), ""), os.getpid()),
    ]


def test_interleaved_frames_of_several_writers_are_received(
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


def test_malformed_data_affects_only_its_own_writer(
    monitor: Any, publisher: Connection, children: Children
) -> None:
    whole = frame(pickle.dumps("good:"))
    half = children.fork(os.write, publisher.fileno(), b"\0\0\1\0half")
    children.settle(half)
    os.write(publisher.fileno(), whole[:9])
    bad = children.fork(os.write, publisher.fileno(), b"\xff\xff\xff\xf0")
    children.settle(bad)
    os.write(publisher.fileno(), whole[9:])
    unfinished = "4 bytes of an unfinished frame of 256 bytes; its writer is gone"
    assert until(monitor, 3) == [
        Corrupt(f"a header announces -16 bytes, {ALLOWED}", b"\xff\xff\xff\xf0", bad),
        Received(Restart(("good",), ""), os.getpid()),
        Corrupt(unfinished, b"\0\0\1\0half", half),
    ]


def test_messages_of_a_process_are_reported_before_its_exit(
    monitor: Any, publisher: Connection, children: Children
) -> None:
    pid = children.fork(send_texts, publisher, "m", 20, 1000)
    children.settle(pid)
    monitor.watch("w", pid, None)
    events = monitor.wait(LONG)
    assert [event.command.names[0] for event in events[:-1]] == [f"m{number}" for number in range(20)]
    assert events[-1] == Exited("w", pid, 0)


def fill(connection: Connection) -> int:
    """Write as many bytes as the buffers hold."""
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
    *received, exited = until_exit(monitor)
    assert exited == Exited("w", pid, len(received))
    assert len(received) * 16_000 > 256 * 1024


def until_exit(monitor: Any) -> list[Any]:
    events: list[Any] = []
    while not (events and isinstance(events[-1], Exited)):
        events += monitor.wait(LONG)
    return events


@pytest.mark.parametrize("last_words", [0, 3])
def test_an_exit_waits_only_for_messages_of_its_process(
    monitor: Any, publisher: Connection, children: Children, last_words: int
) -> None:
    with socket.socket(fileno=os.dup(publisher.fileno())) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * 1024 * 1024)

    def write() -> None:
        for _ in range(last_words):
            publisher.send("dead:")

    for _ in range(1000):
        publisher.send("before:")
    pid = children.fork(write)
    children.settle(pid)
    for _ in range(1000):
        publisher.send("after:")
    monitor.watch("w", pid, None)
    events = monitor.wait(LONG) if not last_words else until_exit(monitor)
    dead, (before, after) = (
        Received(Restart(("dead",), ""), pid),
        (Received(Restart((name,), ""), os.getpid()) for name in ("before", "after")),
    )
    assert events[-1] == Exited("w", pid, 0)
    assert events.count(dead) == last_words
    assert last_words <= events.count(after) < 1000
    assert (events.count(before) == 1000) is bool(last_words)
    left = 2000 - events.count(before) - events.count(after)
    assert len(until(monitor, left)) == left


@pytest.mark.slow
def test_exits_lose_no_message_of_other_processes(
    monitor: Any, publisher: Connection, children: Children
) -> None:
    """Another process writes all the time, so the channel is never empty."""

    def write() -> None:
        for number in range(20_000):
            publisher.send(f"{number}:")

    children.fork(write)
    names: list[str] = []
    dead = 0
    while len(names) < 20_000:
        if dead <= len(names) // 100:
            pid = children.fork(int)
            monitor.watch(str(pid), pid, None)
            dead += 1
        for event in monitor.wait(LONG):
            assert isinstance(event, (Received, Exited))
            if isinstance(event, Received):
                names += event.command.names
    assert names == [str(number) for number in range(20_000)]
    assert dead > 20


def test_a_wait_reads_at_most_a_default_buffer(monitor: Any, publisher: Connection) -> None:
    with socket.socket(fileno=os.dup(publisher.fileno())) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * 1024 * 1024)
    count = fill(publisher)
    first = monitor.wait(LONG)
    assert 0 < len(first) < count
    assert len(first) + len(until(monitor, count - len(first))) == count


def test_partial_data_of_a_killed_writer_is_reported_before_its_exit(
    monitor: Any, publisher: Connection, children: Children
) -> None:
    sample = struct.pack("!i", 100_000) + b"partial"

    def write() -> None:
        publisher.send("a:")
        os.write(publisher.fileno(), sample)
        die()

    pid = children.fork(write)
    children.settle(pid)
    monitor.watch("w", pid, None)
    reason = "7 bytes of an unfinished frame of 100000 bytes; its writer is gone"
    assert monitor.wait(LONG) == [
        Received(Restart(("a",), ""), pid),
        Corrupt(reason, sample, pid),
        Exited("w", pid, -signal.SIGKILL),
    ]
    publisher.send("b:")
    assert monitor.wait(LONG) == [Received(Restart(("b",), ""), os.getpid())]


def test_a_large_frame_cut_short_by_a_kill_is_reported(
    monitor: Any, publisher: Connection, children: Children
) -> None:
    def write() -> None:
        os.write(publisher.fileno(), struct.pack("!i", 4_000_000))
        for _ in range(100):
            os.write(publisher.fileno(), b"k" * 10_000)
        die()

    pid = children.fork(write)
    monitor.watch("w", pid, None)
    reason = "1000000 bytes of an unfinished frame of 4000000 bytes; its writer is gone"
    assert until(monitor, 2) == [
        Corrupt(reason, struct.pack("!i", 4_000_000) + b"k" * 60, pid),
        Exited("w", pid, -signal.SIGKILL),
    ]


def test_partial_data_of_an_unwatched_writer_is_reported(
    monitor: Any, publisher: Connection, children: Children, gate: tuple[int, int]
) -> None:
    def grandchild() -> None:
        os.close(gate[1])
        os.write(publisher.fileno(), struct.pack("!i", 50) + struct.pack("!i", os.getpid()))
        os.read(gate[0], 1)

    def child() -> None:
        with Children() as own:
            own.settle(own.fork(grandchild))

    children.fork(child)
    [writer] = until_kept(monitor, gate)
    assert writer.reason == "4 bytes of an unfinished frame of 50 bytes; its writer is gone"
    assert struct.pack("!i", writer.sender) == writer.sample[4:]
    assert writer.sender not in (os.getpid(), None)


def until_kept(monitor: Any, gate: tuple[int, int]) -> list[Any]:
    """Read the writer's bytes, which make no event; then let it end."""
    assert monitor.wait(0.1) == []
    os.write(gate[1], b".")
    return until(monitor, 1)


def test_an_unwatched_writer_is_released_after_its_frame(
    monitor: Any, publisher: Connection, children: Children, gate: tuple[int, int]
) -> None:
    whole = frame(pickle.dumps("a:"))

    def write() -> None:
        os.write(publisher.fileno(), whole[:7])
        os.read(gate[0], 1)
        os.write(publisher.fileno(), whole[7:])
        os.read(gate[0], 1)

    before = set(os.listdir("/proc/self/fd"))
    pid = children.fork(write)
    assert until_kept(monitor, gate) == [Received(Restart(("a",), ""), pid)]
    assert monitor.wait(0) == []
    assert set(os.listdir("/proc/self/fd")) == before
    os.write(gate[1], b".")
    children.settle(pid)
    assert monitor.wait(0) == []


def test_an_unfinished_frame_is_reported_after_an_unwatch(
    monitor: Any, publisher: Connection, children: Children, gate: tuple[int, int]
) -> None:
    def write() -> None:
        os.write(publisher.fileno(), b"\0\0\0\x09abc")
        os.read(gate[0], 1)

    pid = children.fork(write)
    monitor.watch("w", pid, None)
    assert monitor.wait(0.1) == []
    monitor.unwatch("w")
    reason = "3 bytes of an unfinished frame of 9 bytes; its writer is gone"
    assert until_kept(monitor, gate) == [Corrupt(reason, b"\0\0\0\x09abc", pid)]


def test_descriptors_received_with_a_message_are_closed(monitor: Any, publisher: Connection) -> None:
    with socket.socket(fileno=os.dup(publisher.fileno())) as sender:
        socket.send_fds(sender, [frame(pickle.dumps("a:"))], [publisher.fileno()] * 3)
    before = set(os.listdir("/proc/self/fd"))
    assert monitor.wait(LONG) == [Received(Restart(("a",), ""), os.getpid())]
    assert set(os.listdir("/proc/self/fd")) == before


def test_the_end_of_the_pipe_is_reported_once(monitor: Any, publisher: Connection) -> None:
    publisher.send("a:")
    os.write(publisher.fileno(), b"\0\0\0\x09abc")
    publisher.close()
    assert monitor.wait(LONG) == [
        Received(Restart(("a",), ""), os.getpid()),
        Corrupt(
            "3 bytes of an unfinished frame of 9 bytes; its writer is gone", b"\0\0\0\x09abc", os.getpid()
        ),
        ENDED,
    ]
    used = process_time()
    assert monitor.wait(0.3) == []
    assert process_time() - used < 0.1, "the end of the pipe is polled over and over"


def test_exits_are_reported_after_the_end_of_the_pipe(
    monitor: Any, publisher: Connection, children: Children
) -> None:
    publisher.close()
    assert monitor.wait(LONG) == [ENDED]
    pid = children.fork(lambda: 5)
    monitor.watch("w", pid, None)
    assert monitor.wait(LONG) == [Exited("w", pid, 5)]


def test_an_error_of_the_pipe_is_reported_as_its_end(
    monitor: Any, ends: tuple[Connection, Connection]
) -> None:
    publisher, subscriber = ends
    subscriber.send("nobody reads this")
    publisher.close()
    assert monitor.wait(LONG) == [Corrupt("the pipe was closed: Connection reset by peer", b"")]
    assert monitor.wait(0) == []


def plain_pipe(_: Path) -> tuple[int, int]:
    return os.pipe()


def fifo(folder: Path) -> tuple[int, int]:
    os.mkfifo(folder / "fifo")
    reading = os.open(folder / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    return reading, os.open(folder / "fifo", os.O_WRONLY)


def tcp(_: Path) -> tuple[int, int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        writing = socket.create_connection(server.getsockname())
        reading, _ = server.accept()
    return reading.detach(), writing.detach()


@pytest.fixture(params=[plain_pipe, fifo, tcp])
def others(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[int, int]]:
    """Return the two ends of a connection that is no Unix socket."""
    reading, writing = request.param(tmp_path)
    yield reading, writing
    os.close(reading)
    os.close(writing)


def test_other_pipes_are_read_without_a_sender(
    core: ModuleType, others: tuple[int, int], children: Children
) -> None:
    reading, writing = others
    monitor = core.Monitor(reading)
    whole = frame(pickle.dumps("a:"))
    os.write(writing, whole + whole[:5])
    assert monitor.wait(LONG) == [Received(Restart(("a",), ""))]
    assert monitor.wait(0) == []
    pid = children.fork(os.write, writing, whole[5:])
    children.settle(pid)
    # The network may deliver the bytes after the exit.
    assert select.select([reading], [], [], LONG)[0]
    monitor.watch("w", pid, None)
    assert until(monitor, 2) == [Received(Restart(("a",), "")), Exited("w", pid, len(whole) - 5)]
    os.write(writing, whole[:5])
    assert monitor.wait(0) == []
    os.dup2(reading, writing)
    unfinished = f"1 bytes of an unfinished frame of {len(whole) - 4} bytes; its writer is gone"
    assert until(monitor, 2) == [Corrupt(unfinished, whole[:5]), ENDED]
    monitor.close()


@pytest.mark.parametrize("flags", [0, os.O_NONBLOCK])
@pytest.mark.parametrize("duplex", [True, False])
def test_the_flags_of_the_pipe_are_unchanged(core: ModuleType, duplex: bool, flags: int) -> None:
    subscriber, publisher = Pipe(duplex)
    with publisher, subscriber:
        fcntl.fcntl(subscriber, fcntl.F_SETFL, flags)
        before = fcntl.fcntl(subscriber, fcntl.F_GETFL)
        socket.setdefaulttimeout(5)
        try:
            monitor = core.Monitor(subscriber.fileno())
        finally:
            socket.setdefaulttimeout(None)
        publisher.send("a:")
        assert len(monitor.wait(LONG)) == 1
        assert monitor.wait(0) == []
        assert fcntl.fcntl(subscriber, fcntl.F_GETFL) == before
        monitor.close()
