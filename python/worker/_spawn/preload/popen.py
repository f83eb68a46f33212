"""A child of a preload process, as ``multiprocessing`` sees it."""

from __future__ import annotations

import errno
import os
from multiprocessing import popen_forkserver, util
from typing import Any

from worker._child.descriptors import close_all
from worker._spawn.popen import WatchedPopen, feed, pickled, tracker_fd
from worker._spawn.preload.preloads import preloads
from worker._spawn.preload.process import PreloadError, PreloadProcess, readable

__all__ = ["READY_TIMEOUT", "PreloadPopen", "fork"]

# How long a start waits where all processes come from the preload process, seconds.
READY_TIMEOUT = 10.0


class PreloadPopen(WatchedPopen):
    """A child of a preload process.

    Args:
        process_obj (Process): The process object of the child.
        preload (PreloadProcess): The preload process, which is ready.

    Raises:
        PreloadError: The child was not forked.
        OSError: The same, but the preload process works: this process or the system is short of something.
    """

    method = "forkserver"
    DupFd = popen_forkserver.Popen.DupFd

    def __init__(self, process_obj: Any, preload: PreloadProcess) -> None:
        self._fds: list[int] = []
        self._preload = preload
        super().__init__(process_obj)

    def duplicate_for_child(self, fd: int) -> int:
        """Pass a descriptor to the child; return its index."""
        self._fds.append(fd)
        return len(self._fds) - 1

    def _launch(self, process_obj: Any) -> None:
        data = pickled(self, process_obj, self._preload.conditions_of_child())
        self.pid, self._status, data_end = self._preload.fork([tracker_fd(), *self._fds])
        self.finalizer = util.Finalize(self, close_all, (self._status, data_end))
        try:
            self._open_pidfd()
        except OSError:
            # Without its data, the child exits.
            self.finalizer()
            raise
        # The other descriptor becomes readable at the end of the preload process, too.
        self.sentinel = self._status if self.pidfd is None else self.pidfd.fileno()
        self._preload.forks.add(self)
        feed(data_end, data)

    def _collect(self) -> None:
        if self.pidfd is None and not readable(self._status, 0):
            return
        try:
            self.returncode = self._preload.read_number(self._status)
        except PreloadError:
            self._lose_status()
        except (OSError, EOFError):
            # Only the preload process knew the code, and is gone. Without a pidfd, its child may still run.
            if self.pidfd is not None or not _exists(self.pid):
                self._lose_status()


def fork(process_obj: Any, *, wait: float = 0.0) -> PreloadPopen | None:
    """Fork a process from the current preload process.

    Args:
        process_obj (ManagedProcess): The process object.
        wait (float): How long to wait until the preload process is ready, seconds. Defaults to 0.

    Returns:
        PreloadPopen | None: The child; ``None`` if there is no preload process that can fork it now.
    """
    try:
        preload = preloads.ready(wait)
        if preload is not None:
            process_obj.is_preloaded = True
            return PreloadPopen(process_obj, preload)
    except PreloadError as error:
        preloads.fail(error)
    except OSError:
        # It may last, and is reported then: the process cannot be spawned either.
        pass
    return None


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return error.errno == errno.EPERM
    return True
