"""``Monitor``: unfinished messages take a bounded amount of memory."""

from __future__ import annotations

import os
import re
import select
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from support.processes import LONG, Children, frame, until

from worker._core.messages import Corrupt, Opaque, Received, Restart

pytestmark = pytest.mark.slow

MIB = 1024 * 1024


def send_in_two(connection: Connection, size: int, half: int, gate: int) -> None:
    """Write a frame without its end, and the end when the gate is opened; then write a command."""
    part, rest = frame(bytes(size))[:-100], bytes(100)
    for start in range(0, len(part), MIB):
        os.write(connection.fileno(), part[start : start + MIB])
    os.write(half, b"x")
    os.read(gate, 1)
    os.write(connection.fileno(), rest)
    connection.send("after:")


def memory_in_use() -> int:
    """Return the resident memory of this process, bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_unfinished_frames_share_one_memory_limit(
    monitor: Any, publisher: Connection, children: Children, gate: tuple[int, int]
) -> None:
    """The largest is dropped, to its end and no further; a whole message passes between the others."""
    size, bound, count = 15 * MIB, 64 * MIB, 16
    before, largest_use = memory_in_use(), 0
    events: list[Any] = []
    deadline = monotonic() + LONG
    reading, half = os.pipe()
    with open(reading, "rb", buffering=0) as halves, open(half, "wb", buffering=0):
        senders = {children.fork(send_in_two, publisher, size, half, gate[0]) for _ in range(count)}
        while count:
            assert monotonic() < deadline
            events += monitor.wait(0.01)
            largest_use = max(largest_use, memory_in_use() - before)
            if select.select([halves], [], [], 0)[0]:
                count -= len(halves.read(count))
    # The allocator may keep some more.
    assert largest_use < 2.5 * bound < len(senders) * size
    # Four of them are left, and each is larger than this one when room is made for it.
    whole = children.fork(publisher.send_bytes, bytes(16 * MIB))
    while not any(event.sender == whole for event in events):
        events += until(monitor, 1)
    os.write(gate[1], b"x" * len(senders))
    while len(events) < 2 * len(senders) + 1:
        events += until(monitor, 1)
    dropped = [event.sender for event in events if isinstance(event, Corrupt)]
    assert len(dropped) == len(set(dropped)) == len(senders) - 3
    for sender in senders:
        first, second = (event for event in events if event.sender == sender)
        assert second == Received(Restart(("after",), ""), sender)
        if sender in dropped:
            what = rf"\d+ bytes of an unfinished frame of {size} bytes"
            assert re.fullmatch(rf"{what}; unfinished frames may take {bound} bytes together", first.reason)
        else:
            assert first == Received(Opaque(bytes(size)), sender)
    assert Received(Opaque(bytes(16 * MIB)), whole) in events
