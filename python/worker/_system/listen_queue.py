"""Counts the connections that wait in the listening sockets of the server until a worker accepts them.

The kernel reports the queue of each socket by its inode (``sock_diag(7)``). To another process than the main
process, the server's sockets are those that both the main process and a worker hold.
"""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Collection, Iterator
from contextlib import suppress

__all__ = ["ListenQueue", "queue_length"]

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
REQUEST_DUMP = 0x301
LISTENING = 1 << 10
UNIX_SHOW_QUEUE = 0x10
UNIX_QUEUE = 4
# The kernel answers at once. The limit holds for a sandbox that does not answer at all, seconds.
TIMEOUT = 0.2
_HEADER = struct.Struct("=IHHII")
_SOCKET = re.compile(r"socket:\[(\d+)\]")


class ListenQueue:
    """The accept queues of the server's listening sockets."""

    def __init__(self) -> None:
        self._pids = (0, 0)
        self._inodes: frozenset[int] = frozenset()

    def length(self, main: int, server: int) -> int | None:
        """Return how many connections wait to be accepted, over TCP and unix sockets.

        Args:
            main (int): The pid of the main process.
            server (int): The pid of any running server.

        Returns:
            int | None: The sum over all sockets; ``None`` if the kernel does not tell.
        """
        if (main, server) != self._pids or not self._inodes:
            # A server that has just begun may not have its sockets yet.
            self._inodes = _sockets_of(main) & _sockets_of(server)
            self._pids = (main, server)
        return queue_length(self._inodes)


def queue_length(inodes: Collection[int]) -> int | None:
    """Return how many connections wait to be accepted in the sockets with these inodes.

    Returns:
        int | None: The sum over all sockets; ``None`` if there are none, or the kernel does not tell.
    """
    if not inodes:
        return None
    try:
        found = [queue for inode, queue in _listening() if inode in inodes]
    except OSError:
        return None
    return sum(found) if found else None


def _sockets_of(pid: int) -> frozenset[int]:
    """Return the inodes of the sockets that a process holds; empty if they cannot be read."""
    found = set()
    with suppress(OSError):
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                match = _SOCKET.fullmatch(os.readlink(f"/proc/{pid}/fd/{descriptor}"))
                if match:
                    found.add(int(match[1]))
    return frozenset(found)


def _listening() -> Iterator[tuple[int, int]]:
    """Yield the inode and the queue of each listening socket of this network namespace.

    Raises:
        OSError: The kernel refuses to answer.
    """
    for family in (socket.AF_INET, socket.AF_INET6):
        request = struct.pack("=BBBxI48x", family, socket.IPPROTO_TCP, 0, LISTENING)
        for body in _dump(request):
            queue, _, _, inode = struct.unpack_from("=IIII", body, 56)
            yield inode, queue
    request = struct.pack("=BBHIIIII", socket.AF_UNIX, 0, 0, LISTENING, 0, UNIX_SHOW_QUEUE, 0, 0)
    for body in _dump(request):
        inode, attributes = struct.unpack_from("=I", body, 4)[0], body[16:]
        while len(attributes) >= 8:
            length, kind = struct.unpack_from("=HH", attributes)
            if kind == UNIX_QUEUE:
                yield inode, struct.unpack_from("=I", attributes, 4)[0]
            attributes = attributes[max(4, (length + 3) & ~3) :]


def _dump(request: bytes) -> Iterator[bytes]:
    """Yield the answers to one request for all sockets of a family; none for a family without support."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG) as sock:
        sock.settimeout(TIMEOUT)
        sock.send(
            _HEADER.pack(_HEADER.size + len(request), SOCK_DIAG_BY_FAMILY, REQUEST_DUMP, 1, 0) + request
        )
        while True:
            data = sock.recv(1 << 16)
            while len(data) >= _HEADER.size:
                length, kind, *_ = _HEADER.unpack_from(data)
                # The end of the answers, or an error.
                if kind != SOCK_DIAG_BY_FAMILY:
                    return
                yield data[_HEADER.size : length]
                data = data[max(_HEADER.size, (length + 3) & ~3) :]
