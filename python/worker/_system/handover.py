"""The hand-over from one main process to the next one: the channel between both, and its messages.

The main process that is to be replaced, the *predecessor*, starts its *successor*. That inherits the
listening sockets (:mod:`worker._system.activation`) and an end of the channel, whose descriptor
:data:`VARIABLE` names. Each message is a JSON object in a packet of its own::

    successor    {"stage": "begun"}                          its manager runs
    successor    {"stage": "ready", "sockets": ["<name>"]}   its servers all serve, on these sockets
    predecessor  {"stage": "yours", "operation": {...}}      it stops: the successor is the server now; the
                                                             operation, as the inspector shows it

The end of the channel is the end of the process at its other end. Two versions of this package may talk to
each other: unknown messages and members are ignored.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress
from signal import SIGKILL
from typing import Any

from worker._system import pid_file, proc, systemd

__all__ = [
    "GONE",
    "VARIABLE",
    "Channel",
    "Predecessor",
    "Successor",
    "is_awaited",
    "is_candidate",
    "join",
    "predecessor",
    "start_directory",
    "start_environment",
]

VARIABLE = "SANIC_WORKER_PREDECESSOR"
"""Names the predecessor to its successor, which removes it: ``<pid>:<descriptor>``."""

# The variables that are meant for one process alone.
PERSONAL = (VARIABLE, *systemd.PERSONAL)
MAX_BYTES = 65536
GONE: Mapping[str, Any] = {"stage": "gone"}
"""Stands for the end of the channel."""

_predecessor: Predecessor | None = None
_directory = ""
_environment: dict[str, str] = {}


class Channel:
    """One end of the channel.

    Args:
        sock (socket): The socket. The channel closes it.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock

    def send(self, stage: str, **fields: Any) -> bool:
        """Send a message; return whether the other process may receive it."""
        try:
            self._sock.send(json.dumps({"stage": stage, **fields}).encode())
        except OSError:
            return False
        return True

    def receive(self) -> Mapping[str, Any]:
        """Return the next message: empty if there is none yet, :data:`GONE` if no more can come."""
        try:
            data = self._sock.recv(MAX_BYTES)
        except BlockingIOError:
            return {}
        except OSError:
            return GONE
        if not data:
            return GONE
        with suppress(ValueError):
            message = json.loads(data)
            if isinstance(message, dict):
                return message
        return {}

    def close(self) -> None:
        """Close this end."""
        self._sock.close()


class Successor(Channel):
    """The new main process, as its predecessor sees it.

    Args:
        pid (int): Its pid.
        sock (socket): The predecessor's end of the channel.
        is_child (bool): Whether it is a child of the predecessor. Defaults to ``True``.

    Attributes:
        exit_code: As in :class:`multiprocessing.Process`; ``None`` while it runs, and if it is unknown.
        has_exited: Whether it has exited.
    """

    def __init__(self, pid: int, sock: socket.socket, *, is_child: bool = True) -> None:
        super().__init__(sock)
        self.pid = pid
        self._is_child = is_child
        self.exit_code: int | None = None
        self.has_exited = False

    def poll(self) -> bool:
        """Return whether it has exited, and collect it then."""
        if not self._is_child:
            self.has_exited = self.has_exited or proc.state(self.pid) in proc.EXITED
        elif not self.has_exited:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                # Another thread waits for any child, or SIGCHLD is ignored.
                self.has_exited = True
            else:
                if pid == self.pid:
                    self.has_exited, self.exit_code = True, os.waitstatus_to_exitcode(status)
        return self.has_exited

    def end(self) -> None:
        """Kill it, and collect it. Its children end with it."""
        self.signal(SIGKILL)
        with suppress(ChildProcessError):
            if not self.has_exited and self._is_child:
                os.waitpid(self.pid, 0)
        self.has_exited = True

    def signal(self, signum: int) -> None:
        """Send it a signal, unless it has exited."""
        if not self.poll():
            with suppress(ProcessLookupError):
                os.kill(self.pid, signum)


class Predecessor(Channel):
    """The main process that is to be replaced, as its successor sees it.

    Args:
        pid (int): Its pid.
        sock (socket): The successor's end of the channel.

    Attributes:
        has_ceded: Whether the successor is the server: it owns the sockets, the files and the service.
    """

    def __init__(self, pid: int, sock: socket.socket) -> None:
        super().__init__(sock)
        self.pid = pid
        self.has_ceded = False


def join() -> None:
    """Join the channel to the predecessor, if this process was started as a successor.

    It also keeps how this process was started. The first call in a main process counts.
    """
    global _predecessor, _directory
    if _directory:
        return
    _directory = _named_directory()
    _environment.update(_original_environment())
    pid, _, fd = os.environ.pop(VARIABLE, "").partition(":")
    if not (pid.isdecimal() and fd.isdecimal() and _is_channel(int(fd), int(pid))):
        return
    os.set_inheritable(int(fd), False)
    _predecessor = Predecessor(int(pid), socket.socket(fileno=int(fd)))
    pid_file.follow(_predecessor.pid)
    # The predecessor could not know the pid when it made this environment.
    for name in (systemd.LISTEN_PID, systemd.WATCHDOG_PID):
        if name in os.environ:
            os.environ[name] = str(os.getpid())


def predecessor() -> Predecessor | None:
    """Return the predecessor of this process; ``None`` if it was started otherwise."""
    return _predecessor


def is_candidate() -> bool:
    """Return whether a predecessor still is the server, and this process is to take its place."""
    return _predecessor is not None and not _predecessor.has_ceded


def is_awaited() -> bool:
    """Return whether the container, or a service of systemd, is known to end with this process."""
    if systemd.is_notified() or _predecessor is not None:
        return False
    parent = os.getppid()
    # A parent outside of the PID namespace is 0. The first process of a container, such as a script, shares
    # its session with the processes that it starts itself, and not with the orphans that it gets.
    is_of_container = parent == 0 or (parent == 1 and os.getsid(0) == os.getsid(1))
    return is_of_container or _environment.get("SYSTEMD_EXEC_PID") == str(os.getpid())


def start_directory() -> str:
    """Return the working directory in which this process was started, by the name that it had."""
    return _directory or os.getcwd()


def start_environment() -> dict[str, str]:
    """Return the environment in which this process was started, without what was meant for it alone."""
    return {name: value for name, value in _environment.items() if name not in PERSONAL}


def _named_directory() -> str:
    """Return the working directory. A shell knows it by the symlink that may lead to a new release later."""
    try:
        here, named = os.getcwd(), os.environ.get("PWD", "")
        return named if os.path.isabs(named) and os.path.samefile(named, here) else here
    except OSError:
        return "/"


def _original_environment() -> dict[str, str]:
    try:
        with open("/proc/self/environ", "rb") as file:
            pairs = [entry.partition(b"=") for entry in file.read().split(b"\0") if entry]
    except OSError:
        return dict(os.environ)
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}


def _is_channel(fd: int, pid: int) -> bool:
    """Return whether a descriptor is the channel to a process. A grandchild may have its variable alone."""
    try:
        with socket.socket(fileno=os.dup(fd)) as sock:
            is_packet = (sock.family, sock.type) == (socket.AF_UNIX, socket.SOCK_SEQPACKET)
            size = struct.calcsize("3i")
            peer, *_ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
            return is_packet and peer == pid
    except OSError:
        return False
