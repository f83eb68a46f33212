"""How main starts a child and learns of its end: the ``Popen`` classes of our processes.

Those of ``multiprocessing`` start a child in main's own session, with main's signal mask; they take a child
whose exit status somebody else has collected for alive, and wait for a fork server without a deadline.
"""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from multiprocessing import popen_fork, popen_spawn_posix, reduction, resource_tracker, spawn, util
from multiprocessing.connection import wait as wait_for
from multiprocessing.context import set_spawning_popen
from threading import RLock, Thread
from typing import Any

from worker._child.descriptors import Descriptor, close_all, inheritable
from worker._child.exits import forget_exit_functions, leave
from worker._child.signals import REQUESTS, at_default, original_mask

__all__ = [
    "ForkPopen",
    "SpawnPopen",
    "WatchedPopen",
    "feed",
    "held_by_spawn",
    "pickled",
    "start_program",
]

# What multiprocessing is told where nobody knows the exit status: it has to be told something.
UNKNOWN = 255


class WatchedPopen(popen_fork.Popen):
    """A child whose end is told by its pidfd where there is one, and whose exit status may be lost.

    Attributes:
        pidfd: What becomes readable at its end; ``None`` if the system has none to give.
        status_is_lost: Whether it has ended and nobody knows its exit status.
    """

    pid: int
    sentinel: int
    returncode: int | None
    pidfd: Descriptor | None

    def __init__(self, process_obj: Any) -> None:
        self.pidfd = None
        self.status_is_lost = False
        self._lock = RLock()
        super().__init__(process_obj)
        try:
            self.pidfd = Descriptor(os.pidfd_open(self.pid))
        except (AttributeError, OSError):
            # It is gone already, or the sentinel has to do.
            return
        self._closes_pidfd = util.Finalize(self, self.pidfd.close)

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        """Return the exit code; ``None`` while it runs; 255 if nobody knows."""
        with self._lock:
            if self.returncode is None and (self.pidfd is None or wait_for([self._end], 0)):
                self._collect()
            return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for its end, at most ``timeout`` seconds; return as :meth:`poll` does."""
        if self.returncode is None:
            wait_for([self._end], timeout)
        return self.poll()

    def close(self) -> None:
        """Let go of the file descriptors."""
        super().close()
        if self.pidfd is not None:
            self._closes_pidfd()

    @property
    def _end(self) -> int:
        """What becomes readable at its end."""
        return self.sentinel if self.pidfd is None else self.pidfd.fileno()

    def _collect(self) -> None:
        """Collect it if it has ended."""
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            # Somebody else has: main ignores SIGCHLD, or a thread waits for any child.
            self._lose_status()
        else:
            if pid == self.pid:
                self.returncode = os.waitstatus_to_exitcode(status)

    def _lose_status(self) -> None:
        if self.returncode is None:
            self.status_is_lost = True
            self.returncode = UNKNOWN


class ForkPopen(WatchedPopen):
    """A forked child. Where the system refuses the fork, the standard library's own leaks its pipes."""

    def _launch(self, process_obj: Any) -> None:
        opened: list[int] = []
        try:
            self.sentinel, status = _pipe(opened)
            main_ended, main_lives = _pipe(opened)
            self.pid = os.fork()
        except BaseException:
            close_all(*opened)
            raise
        if self.pid == 0:
            code = 1
            try:
                forget_exit_functions()
                close_all(self.sentinel, main_lives)
                code = process_obj._bootstrap(parent_sentinel=main_ended)
            finally:
                leave(code)
        close_all(status, main_ended)
        self.finalizer = util.Finalize(self, close_all, (self.sentinel, main_lives))


class SpawnPopen(WatchedPopen):
    """A child in an interpreter of its own, which leads its session from the first instruction on."""

    method = "spawn"
    DupFd = popen_spawn_posix.Popen.DupFd

    def __init__(self, process_obj: Any) -> None:
        self._fds: list[int] = []
        super().__init__(process_obj)

    def duplicate_for_child(self, fd: int) -> int:
        """Hand a descriptor on; it has the same number in the child."""
        self._fds.append(fd)
        return fd

    def _launch(self, process_obj: Any) -> None:
        data = pickled(self, process_obj)
        tracker = tracker_fd()
        opened: list[int] = []
        try:
            self.sentinel, status = _pipe(opened)
            child_end, data_end = _pipe(opened)
            command = spawn.get_command_line(tracker_fd=tracker, pipe_handle=child_end)
            self.pid = start_program(command, [*self._fds, tracker, child_end, status])
        except BaseException:
            close_all(*opened)
            raise
        close_all(child_end, status)
        # The child takes the end of the data for the end of main.
        self.finalizer = util.Finalize(self, close_all, (self.sentinel, data_end))
        feed(data_end, data)


def pickled(popen: Any, process: Any) -> memoryview:
    """Pickle what a new interpreter needs to become a process, as ``multiprocessing`` expects it."""
    buffer = io.BytesIO()
    preparation = spawn.get_preparation_data(process.name)
    set_spawning_popen(popen)
    try:
        reduction.dump(preparation, buffer)
        reduction.dump(process, buffer)
    finally:
        set_spawning_popen(None)
    return memoryview(buffer.getvalue())


def tracker_fd() -> int:
    """Return the descriptor that leads to the resource tracker, which is started if need be."""
    fd: int = resource_tracker.getfd()  # type: ignore[assignment]
    return fd


def feed(fd: int, data: memoryview) -> None:
    """Write data to a child that may be slow to read, or never read, without waiting for it."""
    os.set_blocking(fd, False)
    try:
        while data:
            data = data[os.write(fd, data) :]
    except BlockingIOError:
        os.set_blocking(fd, True)
        Thread(target=_feed_rest, args=(os.dup(fd), data), name="feed", daemon=True).start()
    except BrokenPipeError:
        # A child that has ended is reported elsewhere.
        pass


def _feed_rest(fd: int, data: memoryview) -> None:
    with suppress(BrokenPipeError), open(fd, "wb", buffering=0) as pipe:
        while data:
            data = data[pipe.write(data) :]


def start_program(command: list[Any], fds: Iterable[int]) -> int:
    """Start a program in a session of its own, with the signals that main was started with.

    Args:
        command (list[str]): The interpreter and its arguments.
        fds (Iterable[int]): The descriptors above 2 that it is to have; no others.

    Returns:
        int: Its pid.

    Raises:
        OSError: It could not be started.
    """
    passed = {*fds}
    # A descriptor that is duplicated onto itself loses its close-on-exec flag, in the child alone: no program
    # that another thread starts meanwhile inherits it.
    actions: list[tuple[int, ...]] = [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in sorted(passed)]
    actions += [(os.POSIX_SPAWN_CLOSE, fd) for fd in inheritable() if fd not in passed]
    return os.posix_spawn(
        command[0],
        command,
        os.environ,
        file_actions=actions,
        setsid=_sets_session(),
        setsigmask=original_mask() | held_by_spawn(),
        setsigdef=at_default(),
    )


def held_by_spawn() -> frozenset[int]:
    """Return the signals that a spawned child has blocked, and unblocks when it leads its session.

    None, unless CPython was built with a libc that cannot give the child its session. Those that reach all of
    main's group would then end the child half-way.
    """
    return frozenset() if _sets_session() else frozenset((signal.SIGINT, *REQUESTS)) - original_mask()


@cache
def _sets_session() -> bool:
    """Whether this CPython can start a program in a session of its own."""
    try:
        os.posix_spawn("/", ["/"], {}, setsid=True)
    except NotImplementedError:
        return False
    except OSError:
        # A directory cannot be run.
        pass
    return True


def _pipe(opened: list[int]) -> tuple[int, int]:
    ends = os.pipe()
    opened.extend(ends)
    return ends
