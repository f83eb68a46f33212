"""A fork server: a process that has imported what every server needs, from which servers are forked.

Unlike that of ``multiprocessing`` it is a child like any other: it leads its own session, ends with main, and
is gone before main exits. It is reached by a socket pair, which needs no directory, and main waits for it at
most as long as :data:`ANSWER_TIMEOUT`: one that is stopped or gone holds nothing up.
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
from worker._child.exits import forget_exit_functions, leave
from worker._spawn.popen import (
    WatchedPopen,
    feed,
    pickled,
    start_program,
    tracker_fd,
)

__all__ = ["ForkServer", "ForkServerError", "ForkServerGoneError", "ForkServerPopen", "serve"]

# How long main waits for an answer of a fork server that is ready, seconds.
ANSWER_TIMEOUT = 3.0
# How long it waits where servers come from nowhere else, until the fork server has imported its modules.
READY_TIMEOUT = 10.0

ENDED = "it has ended"
READY = b"ready"
FORK = b"fork"
# A pid or an exit code. A negative pid: the errno of a fork that failed.
NUMBER = struct.Struct("q")
# As many as one message can carry on Linux.
MAX_FDS = 253


class ForkServerError(Exception):
    """A fork server cannot be made, or does not do what it is for. The text is the reason."""


class ForkServerGoneError(ForkServerError):
    """A fork server that was ready is gone: another one may do better."""


class ForkServer:
    """Main's side of a fork server; it starts with this object.

    Args:
        preload (Sequence[str]): The modules that it imports.

    Raises:
        ForkServerError: It could not be started.
    """

    def __init__(self, preload: Sequence[str]) -> None:
        try:
            if getattr(sys, "frozen", False):
                raise ForkServerError("a frozen program has no interpreter to start it with")
            self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                try:
                    self.pid = start_program(_command(theirs.fileno(), preload), [theirs.fileno()])
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
        # What comes first, if it never gets ready.
        self._first = ENDED
        self._stop = util.Finalize(None, self._end, exitpriority=0)

    def is_ready(self, timeout: float = 0.0) -> bool:
        """Whether it has imported its modules.

        Args:
            timeout (float): How long to wait for that, seconds. Defaults to 0.

        Raises:
            ForkServerGoneError: It has ended.
            ForkServerError: It has ended before it was ready.
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
        """Have a child forked, which waits for its data.

        Args:
            fds (Sequence[int]): The descriptors that it is to have besides.

        Returns:
            tuple[int, int, int]: Its pid; what its exit code is read from; where its data is written to.

        Raises:
            ForkServerGoneError: The fork server has ended.
            ForkServerError: It was not forked. Nothing of it is left when the fork server is gone.
        """
        opened: list[int] = []
        try:
            if not self.is_ready(READY_TIMEOUT):
                raise ForkServerError(f"it was not ready within {READY_TIMEOUT:g} s")
            for _ in range(2):
                opened.extend(os.pipe())
            status, status_end, data_end, data = opened
            socket.send_fds(self._socket, [FORK], [data_end, status_end, tracker_fd(), *fds])
            # The server has copies: with both closed here, the end of the other side is seen.
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
        """Let main wait no longer until it is ready; called by a signal handler."""
        if self._is_awaited:
            self._first = "a stop was asked for"
            self._socket.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        """Kill it, and wait for its end."""
        self._stop()

    def _end(self) -> None:
        if not self._has_ended():
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        # Of a process that is killed there is nothing to wait for. Somebody else may have collected it.
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
        process_obj (Process): What it is to run.
        server (ForkServer): Where it comes from.
        fails (Callable): Called with the reason when the fork server does not tell an exit code in time.

    Raises:
        ForkServerError: It was not forked.
    """

    method = "forkserver"
    DupFd = popen_forkserver.Popen.DupFd

    def __init__(self, process_obj: Any, server: ForkServer, fails: Callable[[str], None]) -> None:
        self._fds: list[int] = []
        self._server = server
        self._fails = fails
        super().__init__(process_obj)

    def duplicate_for_child(self, fd: int) -> int:
        """Hand a descriptor on; return which of them it is."""
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
            # The fork server is gone, and knew the code alone. Without a pidfd its child may live on.
            if self.pidfd is None and _exists(self.pid):
                return
            code = None
        else:
            if code is None:
                self._fails(f"it told no exit code within {ANSWER_TIMEOUT:g} s")
        if code is None:
            self._lose_status()
        else:
            self.returncode = code


def read_number(fd: int) -> int | None:
    """Read a number that a fork server writes; ``None`` if it does not come in time.

    Raises:
        EOFError: The fork server is gone.
    """
    # Less than PIPE_BUF: it comes whole.
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


def _command(fd: int, preload: Sequence[str]) -> list[str | bytes]:
    program = (
        f"import sys; sys.path[:] = {sys.path!r}; "
        f"from worker._spawn.fork_server import serve; serve({fd}, {os.getpid()}, {[*preload]!r})"
    )
    flags: list[str] = util._args_from_interpreter_flags()  # type: ignore[attr-defined]
    executable: str | bytes = spawn.get_executable()
    return [executable, *flags, "-c", program]


# The other side: what follows runs in the fork server.


def serve(channel: int, main: int, preload: Sequence[str]) -> NoReturn:
    """Import modules, then fork what main asks for, until main is gone.

    Args:
        channel (int): The descriptor of the socket that main has the other end of.
        main (int): The pid of main.
        preload (Sequence[str]): What to import; a module that is not there is passed over.
    """
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
            # The end of the channel has to do.
            pass
        if os.getppid() != main:
            os._exit(1)
        self._exits, self._notify = os.pipe()
        self._status_of: dict[int, int] = {}
        os.set_blocking(self._exits, False)
        os.set_blocking(self._notify, False)
        # A child has these from main, and is to have them as main has.
        self._mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        self._on_child = signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._notify, warn_on_full_buffer=False)
        # A child that is told to stop while it imports the application ends without a traceback.
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
            # Main is gone, or has sent more than this process may open.
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
        """Undo in a child what it has of the fork server, then be the process that main has described."""
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
            leave(code)


def _await_data(fd: int) -> None:
    """Wait for the first data of main; end the process if main has given it up."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    ((_, events),) = poll.poll()
    if not events & select.POLLIN:
        os._exit(1)


def _write(fd: int, number: int) -> None:
    # Main may have given it up.
    with suppress(OSError):
        os.write(fd, NUMBER.pack(number))
