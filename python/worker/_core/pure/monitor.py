"""The monitor in plain Python: one wait for messages, exits and wakeups.

The stub of the native core documents the public names; the comments in this file give reasons. Python cannot
give one guarantee of the native core: if a signal handler raises between two bytecodes of
:meth:`Monitor.wait`, and not in its poll, the bytes just read may be lost.
"""

from __future__ import annotations

import array
import errno
import math
import os
import select
import socket
import stat
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import final

from worker._core.messages import Corrupt, Event, Exited, Received
from worker._core.pure.control import MAX_PENDING, Fault, Framer, decode

__all__ = ["Monitor"]

# The size of a read while no larger message is under way, bytes: some hundreds of messages.
_READ = 16 * 1024
# The most bytes and messages that one wait takes. A flood of messages must not delay an exit or a signal.
_TAKE = 128 * 1024
_ENOUGH = 250

# The constructor of a record is slow. The most frequent class is made as `copy` does it.
_new = object.__new__
_set_command, _set_sender = (vars(Received)[name].__set__ for name in Received.__match_args__)

_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid
_FOREVER_MS = (1 << 31) - 1
_CLOSED = "the monitor is closed"
_IN_USE = "the monitor is in use: wait, watch, unwatch and close are for one thread at a time"


class _Socket:
    """A Unix stream socket: no read mixes the bytes of two senders, and each read names its sender."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    @classmethod
    def over(cls, fd: int) -> _Socket | None:
        if not (hasattr(socket, "SO_PASSCRED") and stat.S_ISSOCK(os.fstat(fd).st_mode)):
            return None
        # The flag declares it as non-blocking already. With a default timeout set, `socket` would otherwise
        # make it so, for every process that shares the channel.
        sock = socket.fromfd(fd, socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        fits = False
        try:
            domain = sock.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN)
            kind = sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
            if (domain, kind) == (socket.AF_UNIX, socket.SOCK_STREAM):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
                fits = True
        finally:
            if not fits:
                sock.close()
        return cls(sock) if fits else None

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self, size: int) -> tuple[bytes, int | None]:
        data, ancillary, _, _ = self._socket.recvmsg(
            size, socket.CMSG_SPACE(_CREDENTIALS.size), socket.MSG_DONTWAIT
        )
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                # 0: written before the option was set, or by a process that has no pid here.
                return data, _CREDENTIALS.unpack(content)[0] or None
        return data, None

    def close(self) -> None:
        self._socket.close()


class _Stream:
    """Any other descriptor that can be polled and read: one stream, its senders unknown."""

    def __init__(self, fd: int) -> None:
        self._fd = os.dup(fd)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)

    def fileno(self) -> int:
        return self._fd

    def read(self, size: int) -> tuple[bytes, int | None]:
        # O_NONBLOCK would affect every process that shares the channel. Poll before each read instead.
        if not self._poll.poll(0):
            raise BlockingIOError
        return os.read(self._fd, size), None

    def close(self) -> None:
        os.close(self._fd)


@dataclass(slots=True)
class _Watch:
    """A process that is watched.

    ``key`` is ``None`` for the sender of an unfinished frame that is not watched by a name. ``fd`` is
    ``None`` for a process that had exited before it could be watched. The monitor owns a pidfd, not a
    sentinel. ``drained`` is set when a process has exited and all its bytes were taken from the channel.
    """

    key: str | None
    pid: int
    fd: int | None
    is_pidfd: bool = False
    exited: bool = False
    drained: bool = False


@final
class Monitor:
    _closed = True  # until it is whole

    def __init__(self, fd: int, notify_fd: int | None = None) -> None:
        self._turn = threading.Lock()
        self._watches: list[_Watch] = []
        self._framers: dict[int | None, Framer] = {}
        self._messages: list[Event] = []
        self._exits: list[Event] = []
        self._stash: deque[tuple[bytes, int | None]] = deque()
        self._end: str | None = None
        # The caller owns the fd, and its number may be reused for another file. Read a duplicate.
        self._pipe: _Socket | _Stream | None = _Socket.over(fd) or _Stream(fd)
        self._notify_fd: int | None = None
        try:
            self._notify_fd = None if notify_fd is None else os.dup(notify_fd)
            self._waker, self._woken = socket.socketpair()
        except BaseException:
            self._close_pipe()
            if self._notify_fd is not None:
                os.close(self._notify_fd)
            raise
        self._waker.setblocking(False)
        self._woken.setblocking(False)
        self._closed = False

    def __del__(self) -> None:
        self.close()

    @property
    def wakeup_fd(self) -> int:
        if self._closed:
            raise ValueError(_CLOSED)
        return self._waker.fileno()

    def watch(self, key: str, pid: int, sentinel: int | None) -> None:
        with self._alone():
            if any(watch.key == key for watch in self._watches):
                raise ValueError(f"{key!r} is watched already")
            self._watches.append(_open_watch(key, pid, sentinel))

    def unwatch(self, key: str) -> None:
        with self._alone():
            for watch in self._watches:
                if watch.key == key:
                    self._forget(watch)
                    return
            raise KeyError(key)

    def wait(self, timeout: float | None, messages: bool = True) -> list[Event]:
        if timeout is not None and math.isnan(timeout):
            raise ValueError("the timeout is not a number")
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        with self._alone():
            while True:
                self._watch_unfinished_senders()
                ready = self._poll(deadline)
                woken = not ready.isdisjoint((self._woken.fileno(), self._notify_fd))
                if woken:
                    self._clear_wakeups()
                self._collect(ready, messages)
                if woken or self._messages or self._exits or time.monotonic() >= deadline:
                    events, self._messages, self._exits = self._messages + self._exits, [], []
                    return events

    def wake(self) -> None:
        if self._closed:
            raise ValueError(_CLOSED)
        # A full buffer means that a wakeup is under way.
        with suppress(BlockingIOError):
            self._waker.send(b"\0")

    def close(self) -> None:
        if self._closed:
            return
        with self._alone():
            self._closed = True
            self._waker.close()
            self._woken.close()
            if self._notify_fd is not None:
                os.close(self._notify_fd)
            self._close_pipe()
            while self._watches:
                self._forget(self._watches[-1])

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._turn.acquire(blocking=False):
            raise RuntimeError(_IN_USE)
        try:
            if self._closed:
                raise ValueError(_CLOSED)
            yield
        finally:
            self._turn.release()

    def _poll(self, deadline: float) -> set[int]:
        poll = select.poll()
        poll.register(self._woken, select.POLLIN)
        if self._notify_fd is not None:
            poll.register(self._notify_fd, select.POLLIN)
        if self._pipe is not None:
            poll.register(self._pipe, select.POLLIN)
        for watch in self._watches:
            if watch.fd is None:
                deadline = 0.0
            else:
                poll.register(watch.fd, select.POLLIN)
        if self._messages or self._exits or self._stash:
            deadline = 0.0
        left = min(max(0.0, deadline - time.monotonic()) * 1000, _FOREVER_MS)
        return {fd for fd, _ in poll.poll(math.ceil(left))}

    def _clear_wakeups(self) -> None:
        with suppress(BlockingIOError):
            while self._woken.recv(4096):
                pass
        if self._notify_fd is not None:
            with suppress(BlockingIOError):
                os.read(self._notify_fd, 4096)

    def _collect(self, ready: set[int], messages: bool) -> None:
        for watch in self._watches:
            watch.exited = watch.fd is None or watch.fd in ready
        if any(watch.exited and not watch.drained for watch in self._watches):
            self._stash_all()
            for watch in self._watches:
                watch.drained = watch.exited
        if messages:
            self._take(self._pipe is not None and self._pipe.fileno() in ready)
        else:
            self._receive_from({watch.pid for watch in self._watches if watch.drained})
        self._report_exits()

    def _stash_all(self) -> None:
        """Take all bytes from the channel, to be cut later.

        All that an exited process had written is taken then, and messages of others cannot delay its exit.
        """
        left = _queued(self._pipe.fileno()) if self._pipe is not None else 0
        while left > 0 and (received := self._receive()) is not None:
            left -= len(received[0])
            self._stash.append(received)

    def _take(self, readable: bool) -> None:
        """Cut stashed bytes, then those in the channel, until there is enough for one wait."""
        budget = _TAKE
        while budget > 0 and len(self._messages) < _ENOUGH:
            received = self._stash.popleft() if self._stash else self._receive() if readable else None
            if received is None:
                break
            data, sender = received
            budget -= len(data)
            if self._cut(data, sender, _ENOUGH - len(self._messages)):
                # The framer holds the rest.
                self._stash.appendleft((b"", sender))
        if not self._stash:
            self._end_pipe()

    def _receive_from(self, pids: set[int]) -> None:
        """Cut only the stashed bytes of these senders."""
        for data, sender in [one for one in self._stash if one[1] is None or one[1] in pids]:
            self._cut(data, sender, math.inf)
        if pids:
            others = (one for one in self._stash if one[1] is not None and one[1] not in pids)
            self._stash = deque(others)

    def _cut(self, data: bytes, sender: int | None, enough: float) -> bool:
        """Cut bytes into events, until there are enough; return whether more events may follow from them."""
        framer = self._framers.setdefault(sender, Framer())
        items = framer.cut(data, enough)
        self._messages += [_event(item, sender) for item in items]
        if framer.is_idle:
            del self._framers[sender]
        else:
            self._limit_pending()
        return len(items) >= enough

    def _limit_pending(self) -> None:
        """Drop the largest unfinished frames, until all together fit."""
        while sum(framer.pending for framer in self._framers.values()) > MAX_PENDING:
            sender, framer = max(self._framers.items(), key=lambda item: item[1].pending)
            if (fault := framer.skip()) is not None:
                self._messages.append(_event(fault, sender))

    def _receive(self) -> tuple[bytes, int | None] | None:
        """Read once; at the end of the channel, close it."""
        if self._pipe is None:
            return None
        long = any(framer.pending >= _READ for framer in self._framers.values())
        try:
            data, sender = self._pipe.read(_TAKE if long else _READ)
        except BlockingIOError:
            return None
        except OSError as exc:
            self._end = os.strerror(exc.errno or 0)
        else:
            if data:
                return data, sender
            self._end = "it has no writer any more"
        self._close_pipe()
        return None

    def _report_exits(self) -> None:
        """Report the exits of processes whose messages have all been cut."""
        senders = {sender for _, sender in self._stash}
        for watch in list(self._watches):
            if watch.drained and not senders & {watch.pid, None}:
                self._abandon(watch.pid)
                if watch.key is not None:
                    self._exits.append(Exited(watch.key, watch.pid, _exit_code(watch)))
                self._forget(watch)

    def _end_pipe(self) -> None:
        if self._end is None:
            return
        for sender in list(self._framers):
            self._abandon(sender)
        self._messages.append(Corrupt(f"the pipe was closed: {self._end}", b""))
        self._end = None

    def _close_pipe(self) -> None:
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            pipe.close()

    def _abandon(self, sender: int | None) -> None:
        framer = self._framers.pop(sender, None)
        if framer is not None and (fault := framer.abandon()) is not None:
            self._messages.append(_event(fault, sender))

    def _watch_unfinished_senders(self) -> None:
        """Watch the sender of each unfinished frame, and no other process without a key."""
        for watch in [watch for watch in self._watches if watch.key is None]:
            if watch.pid not in self._framers:
                self._forget(watch)
        watched = {watch.pid for watch in self._watches}
        for sender in self._framers:
            if sender is not None and sender not in watched:
                with suppress(OSError):
                    self._watches.append(_open_watch(None, sender, None))

    def _forget(self, watch: _Watch) -> None:
        self._watches.remove(watch)
        if watch.fd is not None and watch.is_pidfd:
            os.close(watch.fd)


def _open_watch(key: str | None, pid: int, sentinel: int | None) -> _Watch:
    if pid < 1:
        raise ValueError(f"no process has the pid {pid}")
    try:
        if not hasattr(os, "pidfd_open"):
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        return _Watch(key, pid, os.pidfd_open(pid), is_pidfd=True)
    except ProcessLookupError:
        return _Watch(key, pid, None)
    except OSError:
        if sentinel is None or sentinel < 0:
            raise
        return _Watch(key, pid, sentinel)


def _queued(fd: int) -> int:
    """Return how many bytes can be read from ``fd`` now."""
    from fcntl import ioctl
    from termios import FIONREAD

    size = array.array("i", [0])
    with suppress(OSError):
        ioctl(fd, FIONREAD, size)
    return size[0]


def _exit_code(watch: _Watch) -> int | None:
    if watch.fd is None or not watch.is_pidfd:
        return None
    try:
        # WNOWAIT leaves the child to be reaped by its Process object.
        status = os.waitid(os.P_PIDFD, watch.fd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except OSError:
        return None
    if status is None:
        return None
    return status.si_status if status.si_code == os.CLD_EXITED else -status.si_status


def _event(item: bytes | Fault, sender: int | None) -> Event:
    if type(item) is bytes:
        received = _new(Received)
        _set_command(received, decode(item))
        _set_sender(received, sender)
        return received
    assert isinstance(item, Fault)
    return Corrupt(item.reason, item.sample, sender)
