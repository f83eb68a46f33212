"""Starts a child and notices its exit: the ``Popen`` classes of managed processes.

Those of ``multiprocessing`` start a child in the session of the main process, with its signal mask. They
consider a child alive if another thread has collected its exit status, and wait for a fork server without a
deadline.
"""

from __future__ import annotations

import io
import os
from contextlib import suppress
from multiprocessing import popen_fork, popen_spawn_posix, reduction, resource_tracker, spawn, util
from multiprocessing.connection import wait as wait_for
from multiprocessing.context import set_spawning_popen
from threading import RLock, Thread
from typing import Any

from worker._child.descriptors import SHORTAGES, Descriptor, close_all
from worker._child.exits import exit_child, forget_exit_functions
from worker._child.preload.conditions import Conditions, Preparation
from worker._spawn.program import start_program

__all__ = [
    "ForkPopen",
    "SpawnPopen",
    "WatchedPopen",
    "feed",
    "pickled",
    "tracker_fd",
]

# The exit code for multiprocessing if the real one is unknown: it needs one.
UNKNOWN = 255


class WatchedPopen(popen_fork.Popen):
    """A child that is watched by a pidfd, where the system has them, and whose exit status may be lost.

    Attributes:
        pidfd: The descriptor that becomes readable at its exit; ``None`` if the system has none.
        status_is_lost: Whether it has exited with an unknown status.
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
        if self.pidfd is None:
            # Without it, the sentinel has to suffice.
            with suppress(OSError):
                self._open_pidfd()

    def _open_pidfd(self) -> None:
        """Open a pidfd, unless the child has exited already or the system has none.

        Raises:
            OSError: No further descriptor can be opened now.
        """
        try:
            self.pidfd = Descriptor(os.pidfd_open(self.pid))
        except AttributeError:
            return
        except OSError as error:
            if error.errno in SHORTAGES:
                raise
            return
        self._closes_pidfd = util.Finalize(self, self.pidfd.close)

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        """Return the exit code; ``None`` while the child runs; 255 if it is unknown."""
        with self._lock:
            if self.returncode is None and (self.pidfd is None or wait_for([self._end], 0)):
                self._collect()
            return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for the exit, at most ``timeout`` seconds; return as :meth:`poll` does."""
        if self.returncode is None:
            wait_for([self._end], timeout)
        return self.poll()

    def close(self) -> None:
        """Close the file descriptors."""
        super().close()
        if self.pidfd is not None:
            self._closes_pidfd()

    @property
    def _end(self) -> int:
        """The descriptor that becomes readable at the exit."""
        return self.sentinel if self.pidfd is None else self.pidfd.fileno()

    def _collect(self) -> None:
        """Collect the child if it has exited."""
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            # The status was collected elsewhere: SIGCHLD is ignored, or a thread waits for any child.
            self._lose_status()
        else:
            if pid == self.pid:
                self.returncode = os.waitstatus_to_exitcode(status)

    def _lose_status(self) -> None:
        if self.returncode is None:
            self.status_is_lost = True
            self.returncode = UNKNOWN


class ForkPopen(WatchedPopen):
    """A forked child. Unlike the standard library's, it closes its pipes if the system refuses the fork."""

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
                exit_child(code)
        close_all(status, main_ended)
        self.finalizer = util.Finalize(self, close_all, (self.sentinel, main_lives))


class SpawnPopen(WatchedPopen):
    """A child in an interpreter of its own, which leads its session from the first instruction."""

    method = "spawn"
    DupFd = popen_spawn_posix.Popen.DupFd

    def __init__(self, process_obj: Any) -> None:
        self._fds: list[int] = []
        super().__init__(process_obj)

    def duplicate_for_child(self, fd: int) -> int:
        """Pass a descriptor to the child, where it has the same number."""
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
        # To the child, the end of the data means the end of the main process.
        self.finalizer = util.Finalize(self, close_all, (self.sentinel, data_end))
        feed(data_end, data)


def pickled(popen: Any, process: Any, conditions: Conditions | None = None) -> memoryview:
    """Return the pickled data that an interpreter needs to become a process of ``multiprocessing``.

    Args:
        popen (Popen): Takes the descriptors in the data.
        process (Process): The process object.
        conditions (Conditions | None): What a child of a preload process takes over. Defaults to ``None``:
            the interpreter is started for this process.
    """
    buffer = io.BytesIO()
    preparation: Any = spawn.get_preparation_data(process.name)
    if conditions is not None:
        preparation = Preparation(preparation, conditions)
    set_spawning_popen(popen)
    try:
        reduction.dump(preparation, buffer)
        reduction.dump(process, buffer)
    finally:
        set_spawning_popen(None)
    return memoryview(buffer.getvalue())


def tracker_fd() -> int:
    """Return the descriptor of the resource tracker, starting it if needed."""
    fd: int = resource_tracker.getfd()  # type: ignore[assignment]
    return fd


def feed(fd: int, data: memoryview) -> None:
    """Write data to a child without blocking, even if it reads slowly or never."""
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


def _pipe(opened: list[int]) -> tuple[int, int]:
    ends = os.pipe()
    opened.extend(ends)
    return ends
