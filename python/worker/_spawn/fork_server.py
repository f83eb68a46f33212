"""A fork server: a process that has imported the modules of every server, from which servers are forked.

Unlike that of ``multiprocessing``, it is a child like any other: it leads its own session, ends with the main
process, and has exited before the main process does. It is reached by a socket pair, which needs no
directory. The main process waits for an answer at most :data:`ANSWER_TIMEOUT`, so a fork server that is
stopped or gone does not block it.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from multiprocessing import forkserver, popen_forkserver, resource_tracker, spawn, util
from multiprocessing.connection import wait as wait_for
from typing import Any, NoReturn

from worker._child.descriptors import Descriptor, close_all, close_in_children, forget
from worker._child.exits import exit_child, forget_exit_functions
from worker._child.titles import set_title
from worker._spawn.popen import (
    WatchedPopen,
    feed,
    pickled,
    start_program,
    tracker_fd,
)

__all__ = ["ForkServer", "ForkServerError", "ForkServerGoneError", "ForkServerPopen", "serve"]

# How long the main process waits for an answer of a fork server that is ready, seconds.
ANSWER_TIMEOUT = 3.0
# How long it waits until the fork server has imported its modules, where it does not spawn instead, seconds.
READY_TIMEOUT = 10.0

ENDED = "it has ended"
READY = b"ready"
FORK = b"fork"
# A pid or an exit code. A negative pid is the errno of a fork that failed.
NUMBER = struct.Struct("q")
# The largest number of descriptors in one message on Linux.
MAX_FDS = 253


class ForkServerError(Exception):
    """A fork server cannot be started, or does not work. The text is the reason."""


class ForkServerGoneError(ForkServerError):
    """A fork server that was ready has ended: another one may work."""


class ForkServer:
    """The main process's side of a fork server. Making this object starts it.

    Args:
        preload (Sequence[str]): The modules that the fork server imports.
        title (str): The title that it gives itself. Defaults to none.

    Raises:
        ForkServerError: The fork server could not be started.
    """

    def __init__(self, preload: Sequence[str], title: str = "") -> None:
        try:
            if getattr(sys, "frozen", False):
                raise ForkServerError("a frozen program has no interpreter to start it with")
            self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                try:
                    self.pid = start_program(_command(theirs.fileno(), preload, title), [theirs.fileno()])
                except BaseException:
                    self._socket.close()
                    raise
        except OSError as error:
            raise ForkServerError(str(error)) from error
        close_in_children(self._socket)
        self._socket.setblocking(False)
        self._pidfd: Descriptor | None = None
        with suppress(OSError, AttributeError):
            self._pidfd = Descriptor(os.pidfd_open(self.pid))
        self._is_ready = False
        self._is_awaited = False
        # The reason to give if it never gets ready.
        self._first = ENDED
        self._stop = util.Finalize(None, self._end, exitpriority=0)

    def is_ready(self, timeout: float = 0.0) -> bool:
        """Return whether the fork server has imported its modules.

        Args:
            timeout (float): How long to wait for that, seconds. Defaults to 0.

        Raises:
            ForkServerGoneError: The fork server has ended.
            ForkServerError: The fork server has ended before it was ready.
        """
        if self._is_ready:
            if self._has_ended():
                raise ForkServerGoneError(ENDED)
        else:
            self._is_awaited = timeout > 0
            if wait_for([self._socket], timeout):
                with suppress(OSError):
                    self._is_ready = self._socket.recv(len(READY)) == READY
                if not self._is_ready:
                    raise ForkServerError(f"{self._first} before it was ready")
            self._is_awaited = False
        return self._is_ready

    def fork(self, fds: Sequence[int]) -> tuple[int, int, int]:
        """Let the fork server fork a child, which then waits for its data.

        Args:
            fds (Sequence[int]): Further descriptors for the child.

        Returns:
            tuple[int, int, int]: The pid; a descriptor to read the exit code from, and one to write data to.

        Raises:
            ForkServerGoneError: The fork server has ended.
            ForkServerError: No child was forked. One that is forked too late gets no data, and exits.
        """
        opened: list[int] = []
        try:
            if not self.is_ready(READY_TIMEOUT):
                raise ForkServerError(f"it was not ready within {READY_TIMEOUT:g} s")
            for _ in range(2):
                opened.extend(os.pipe())
            status, status_end, data_end, data = opened
            socket.send_fds(self._socket, [FORK], [data_end, status_end, tracker_fd(), *fds])
            # The server has copies. With both closed here, the end of the other side can be noticed.
            for _ in range(2):
                os.close(opened.pop(1))
            pid = read_number(status)
            if pid is None:
                raise ForkServerError(f"it gave no answer within {ANSWER_TIMEOUT:g} s")
            if pid < 0:
                raise OSError(-pid, os.strerror(-pid))
        except (EOFError, ConnectionError) as error:
            close_all(*opened)
            raise ForkServerGoneError(ENDED) from error
        except OSError as error:
            close_all(*opened)
            raise ForkServerError(str(error)) from error
        except ForkServerError:
            close_all(*opened)
            raise
        return pid, status, data

    def interrupt(self) -> None:
        """End the wait of the main process until the fork server is ready; called by a signal handler."""
        if self._is_awaited:
            self._first = "a stop was asked for"
            self._socket.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        """Kill the fork server, and wait for its exit."""
        self._stop()

    def _end(self) -> None:
        if not self._has_ended():
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        # A killed process exits at once. Another thread may have collected it.
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        with suppress(ValueError):
            forget(self._socket)
        self._socket.close()
        if self._pidfd is not None:
            self._pidfd.close()

    def _has_ended(self) -> bool:
        return self._pidfd is not None and bool(wait_for([self._pidfd.fileno()], 0))


class ForkServerPopen(WatchedPopen):
    """A child of a fork server.

    Args:
        process_obj (Process): The process object of the child.
        server (ForkServer): The fork server.
        fails (Callable): Called with the reason if the fork server does not report an exit code in time.

    Raises:
        ForkServerError: The child was not forked.
    """

    method = "forkserver"
    DupFd = popen_forkserver.Popen.DupFd

    def __init__(self, process_obj: Any, server: ForkServer, fails: Callable[[str], None]) -> None:
        self._fds: list[int] = []
        self._server = server
        self._fails = fails
        super().__init__(process_obj)

    def duplicate_for_child(self, fd: int) -> int:
        """Pass a descriptor to the child; return its index."""
        self._fds.append(fd)
        return len(self._fds) - 1

    def _launch(self, process_obj: Any) -> None:
        data = pickled(self, process_obj)
        self.pid, self.sentinel, data_end = self._server.fork(self._fds)
        self.finalizer = util.Finalize(self, close_all, (self.sentinel, data_end))
        feed(data_end, data)

    def _collect(self) -> None:
        if self.pidfd is None and (not wait_for([self.sentinel], 0)):
            return
        try:
            code = read_number(self.sentinel)
        except (OSError, EOFError):
            # Only the fork server knew the code, and it is gone. Without a pidfd, its child may still run.
            if self.pidfd is None and _exists(self.pid):
                return
            code = None
        else:
            if code is None:
                self._fails(f"it reported no exit code within {ANSWER_TIMEOUT:g} s")
        if code is None:
            self._lose_status()
        else:
            self.returncode = code


def read_number(fd: int) -> int | None:
    """Return a number that a fork server writes; ``None`` if it does not arrive in time.

    Raises:
        EOFError: The fork server has ended.
    """
    # It is shorter than PIPE_BUF, so it arrives as a whole.
    if not wait_for([fd], ANSWER_TIMEOUT):
        return None
    data = os.read(fd, NUMBER.size)
    if not data:
        raise EOFError
    number: int = NUMBER.unpack(data)[0]
    return number


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return error.errno == errno.EPERM
    return True


def _command(fd: int, preload: Sequence[str], title: str) -> list[str | bytes]:
    program = (
        f"import sys; sys.path[:] = {sys.path!r}; "
        f"from worker._spawn.fork_server import serve; serve({fd}, {os.getpid()}, {[*preload]!r}, {title!r})"
    )
    flags: list[str] = util._args_from_interpreter_flags()  # type: ignore[attr-defined]
    executable: str | bytes = spawn.get_executable()
    return [executable, *flags, "-c", program]


# The other side: the code below runs in the fork server.


def serve(channel: int, main: int, preload: Sequence[str], title: str) -> NoReturn:
    """Import modules, then fork a child for each request of the main process, until that is gone.

    Args:
        channel (int): The descriptor of the socket to the main process.
        main (int): The pid of the main process.
        preload (Sequence[str]): The modules to import. Missing ones are skipped.
        title (str): The title of this process; empty for none.
    """
    if title:
        set_title(title)
    for name in preload:
        with suppress(ImportError):
            import_module(name)
    _Server(socket.socket(fileno=channel), main).run()


class _Server:
    def __init__(self, channel: socket.socket, main: int) -> None:
        self._channel = channel
        self._watch: list[int] = []
        try:
            self._watch.append(os.pidfd_open(main))
        except ProcessLookupError:
            os._exit(1)
        except (AttributeError, OSError):
            # Without a pidfd, the end of the channel has to suffice.
            pass
        if os.getppid() != main:
            os._exit(1)
        self._exits, self._notify = os.pipe()
        self._status_of: dict[int, int] = {}
        os.set_blocking(self._exits, False)
        os.set_blocking(self._notify, False)
        # A child gets these of the main process.
        self._mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        self._on_child = signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._notify, warn_on_full_buffer=False)
        # A child that is stopped while it imports the application ends without a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def run(self) -> NoReturn:
        self._channel.send(READY)
        while True:
            ready = wait_for([self._channel, self._exits, *self._watch])
            if self._exits in ready:
                os.read(self._exits, 4096)
                self._report_exits()
            if any(watch in ready for watch in self._watch):
                os._exit(0)
            if self._channel in ready:
                self._obey()

    def _obey(self) -> None:
        message, fds, flags, _ = socket.recv_fds(self._channel, len(FORK), MAX_FDS, socket.MSG_CMSG_CLOEXEC)
        if message != FORK or flags & socket.MSG_CTRUNC:
            # The main process is gone, or has sent more descriptors than this process may open.
            os._exit(0)
        status = fds.pop(1)
        try:
            pid = os.fork()
        except OSError as error:
            _write(status, -(error.errno or errno.EAGAIN))
            close_all(status, *fds)
            return
        if pid == 0:
            self._become_child(status, *fds)
        self._status_of[pid] = status
        _write(status, pid)
        close_all(*fds)

    def _report_exits(self) -> None:
        for pid, status in list(self._status_of.items()):
            ended, code = os.waitpid(pid, os.WNOHANG)
            if ended:
                del self._status_of[pid]
                _write(status, os.waitstatus_to_exitcode(code))
                os.close(status)

    def _become_child(self, status: int, data: int, tracker: int, *inherited: int) -> NoReturn:
        """Undo the state of the fork server in a child, then run the process object of the main process."""
        code = 1
        try:
            os.setsid()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, self._on_child)
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
            self._channel.close()
            close_all(status, self._exits, self._notify, *self._watch, *self._status_of.values())
            forget_exit_functions()
            resource_tracker._resource_tracker._fd = tracker  # type: ignore[attr-defined]
            forkserver._forkserver._inherited_fds = [*inherited]  # type: ignore[attr-defined]
            _await_data(data)
            code = spawn._main(data, os.dup(data))
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            exit_child(code)


def _await_data(fd: int) -> None:
    """Wait for the first data of the main process; exit if that has given the child up."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    ((_, events),) = poll.poll()
    if not events & select.POLLIN:
        os._exit(1)


def _write(fd: int, number: int) -> None:
    # The main process may have given the child up.
    with suppress(OSError):
        os.write(fd, NUMBER.pack(number))
