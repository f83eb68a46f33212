"""The main process's handle of a preload process: a child that has imported modules, and forks workers.

Unlike the fork server of ``multiprocessing``, it is a child like any other: it leads its own session, ends
with the main process, and has exited before the main process does. It is reached by a socket pair, which
needs no directory. The main process waits for an answer at most :data:`ANSWER_TIMEOUT`, and no longer at all
once the preload process is stopped or gone.

The command starts one before Sanic is imported, so this module imports little.
"""

from __future__ import annotations

import atexit
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any, Protocol
from weakref import WeakSet

from worker._child.descriptors import SHORTAGES, Descriptor, close_all, close_in_children, forget
from worker._child.preload.conditions import Conditions
from worker._child.preload.process import CHECK, FORK, HAS_THREADS, LOAD, NUMBER, READY, TITLE
from worker._child.signals import name_of
from worker._spawn.preload import conditions
from worker._spawn.program import start_program

__all__ = [
    "ANSWER_TIMEOUT",
    "BEGAN",
    "NAME",
    "WATCHED",
    "Fork",
    "ImportFailedError",
    "OutdatedError",
    "PreloadError",
    "PreloadProcess",
    "StopAskedError",
    "UnsafeError",
    "readable",
]

# About when this process began, on the monotonic clock.
BEGAN = time.monotonic()

# How long the main process waits for an answer of a preload process that is ready, seconds.
ANSWER_TIMEOUT = 1.0
# How often it looks meanwhile whether a signal has stopped the preload process, seconds.
STOP_INTERVAL = 0.02

NAME = "Sanic-Preload"
# The begin of the keys of the watches for exits.
WATCHED = f"{NAME} ["
STOPPED = "it was stopped by a signal"
MAX_ANSWER = 65536


class PreloadError(Exception):
    """A preload process cannot be started, or does not work. The text is the reason."""


class ImportFailedError(PreloadError):
    """The code of the application has raised an error when it was imported."""


class UnsafeError(PreloadError):
    """The application was imported, but its processes cannot be forked."""


class OutdatedError(PreloadError):
    """The main process has changed conditions that its children could not take over."""


class StopAskedError(PreloadError):
    """The wait for it was interrupted, because a stop was requested."""


class Fork(Protocol):
    """A child of a preload process."""

    returncode: int | None


class PreloadProcess:
    """The main process's side of a preload process. Making this object starts it.

    Args:
        modules (Sequence[str]): The modules that it imports.

    Attributes:
        pid: Its pid.
        started_at: When it was started, on the monotonic clock.
        has_application: Whether it imports the application, or has done so.
        report: The answer to :meth:`load`; empty before.
        loaded_in: The conditions in which it imports the application, if that has begun before the main
            process has imported it; else ``None``.
        forks: The children that it has forked.
        is_silent: Whether it has missed a deadline.

    Raises:
        PreloadError: It could not be started.
    """

    def __init__(self, modules: Sequence[str]) -> None:
        try:
            if getattr(sys, "frozen", False):
                raise PreloadError("a frozen program has no interpreter to start it with")
            with ExitStack() as failed, ExitStack() as started:
                self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                failed.callback(self._socket.close)
                started.callback(theirs.close)
                held, holding = os.pipe()
                started.callback(os.close, held)
                # Its end is that of the preload process, even if that imports and looks at nothing.
                self._holding = Descriptor(holding)
                failed.callback(self._holding.close)
                self._conditions = conditions.fixed(conditions.read_status())
                command = _command(theirs.fileno(), held, modules)
                self.pid = start_program(command, [theirs.fileno(), held], {"SANIC_WORKER_NAME": NAME})
                failed.pop_all()
        except OSError as error:
            raise PreloadError(str(error)) from error
        close_in_children(self._socket)
        self._socket.setblocking(False)
        self.pidfd: Descriptor | None = None
        with suppress(OSError, AttributeError):
            self.pidfd = Descriptor(os.pidfd_open(self.pid))
        self.started_at = time.monotonic()
        self.has_application = False
        self.report: dict[str, Any] = {}
        self.loaded_in: object = None
        self.forks: WeakSet[Fork] = WeakSet()
        self.is_silent = False
        self._awaited = [READY]
        self._changed = ""
        self._is_closed = False
        self._interruptible = False
        self._is_interrupted = False
        atexit.register(self.stop)

    def __str__(self) -> str:
        return f"The preload process [{self.pid}]"

    @property
    def key(self) -> str:
        """The key of the watch for its exit."""
        return f"{WATCHED}{self.pid}]"

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when it is ready, or has ended."""
        return self._socket.fileno()

    @property
    def is_ready(self) -> bool:
        """Whether it has imported all that it was to import, as far as is known."""
        return not self._awaited

    def set_title(self) -> None:
        """Let it give itself a title."""
        # Without a title it works as well.
        with suppress(OSError):
            self._socket.send(TITLE)

    def load(self, data: bytes) -> None:
        """Let it import the application, which takes a while.

        Args:
            data (bytes): The preparation of a spawned process, then an ``Application``, both pickled.

        Raises:
            PreloadError: It has ended.
        """
        fd = os.memfd_create("sanic-worker-preload")
        try:
            with open(fd, "wb", closefd=False) as file:
                file.write(data)
            os.lseek(fd, 0, os.SEEK_SET)
            socket.send_fds(self._socket, [LOAD], [fd])
        except OSError as error:
            raise PreloadError(str(error)) from error
        finally:
            os.close(fd)
        self._awaited.append(LOAD)
        self.has_application = True
        self._conditions |= conditions.variables()

    def update(self, timeout: float = 0.0) -> bool:
        """Take note of its answers; return whether it is ready.

        Args:
            timeout (float): How long to wait for that, seconds. Defaults to 0.

        Raises:
            PreloadError: It has ended or is stopped, or cannot import the application.
        """
        # Imported on use: it is of no use before the first answer.
        import json

        deadline = time.monotonic() + timeout
        while self._awaited:
            self._interruptible = timeout > 0
            try:
                if not self._answers(self._socket.fileno(), deadline - time.monotonic()):
                    return False
            finally:
                self._interruptible = False
            message = b""
            with suppress(OSError):
                message = self._socket.recv(MAX_ANSWER)
            if not message:
                if self._is_interrupted:
                    raise StopAskedError("a stop was asked for before it was ready")
                raise PreloadError(f"{self._ending()} before it was ready")
            request = self._awaited.pop(0)
            if request == LOAD:
                self.report = json.loads(message)
            elif request == CHECK:
                self._changed = json.loads(message)["changed"]
        if self.has_ended():
            raise PreloadError(self._ending())
        if error := self.report.get("error"):
            raise ImportFailedError(f"the application cannot be imported: {error}")
        if unsafe := self.report.get("unsafe"):
            raise UnsafeError(_described(unsafe))
        return True

    def changed_file(self) -> str:
        """Return the path of a file that has changed since it was imported; empty if there is none.

        It must be ready.

        Raises:
            PreloadError: It does not answer.
        """
        try:
            self._socket.send(CHECK)
        except OSError as error:
            raise PreloadError(self._ending()) from error
        self._awaited.append(CHECK)
        if not self.update(ANSWER_TIMEOUT):
            self.is_silent = True
            raise PreloadError(f"it gave no answer within {ANSWER_TIMEOUT:g} s")
        return self._changed

    def fork(self, fds: Sequence[int]) -> tuple[int, int, int]:
        """Let it fork a child, which then waits for its data.

        Args:
            fds (Sequence[int]): The descriptor of the resource tracker, and further ones for the child.

        Returns:
            tuple[int, int, int]: The pid; a descriptor to read the exit code from, and one to write data to.

        Raises:
            PreloadError: No child was forked. One that is forked too late gets no data, and exits.
            OSError: No child was forked, but it works: a process or the system is short of something.
        """
        opened: list[int] = []
        with ExitStack() as failed:
            failed.callback(lambda: close_all(*opened))
            try:
                if self.is_stopped():
                    raise PreloadError(STOPPED)
                for _ in range(2):
                    opened.extend(os.pipe())
                status, status_end, data_end, data = opened
                socket.send_fds(self._socket, [FORK], [data_end, status_end, *fds])
                # It has copies. With both closed here, the end of the other side can be noticed.
                for _ in range(2):
                    os.close(opened.pop(1))
                pid = self.read_number(status)
                if pid == HAS_THREADS:
                    raise PreloadError("it runs other threads, so that no child can be forked from it")
            except (EOFError, ConnectionError) as error:
                raise PreloadError(self._ending()) from error
            except OSError as error:
                if error.errno in SHORTAGES:
                    raise
                raise PreloadError(str(error)) from error
            if pid < 0:
                raise OSError(-pid, os.strerror(-pid))
            failed.pop_all()
        return pid, status, data

    def read_number(self, fd: int) -> int:
        """Return a number that it writes. One that has missed a deadline is waited for no more.

        Args:
            fd (int): The descriptor to read from.

        Raises:
            PreloadError: The number does not arrive in time.
            EOFError: It has ended.
        """
        if not self._answers(fd, 0.0 if self.is_silent else ANSWER_TIMEOUT):
            self.is_silent = True
            raise PreloadError(f"it gave no answer within {ANSWER_TIMEOUT:g} s")
        # The number is shorter than PIPE_BUF, so it arrives as a whole.
        data = os.read(fd, NUMBER.size)
        if not data:
            raise EOFError
        number: int = NUMBER.unpack(data)[0]
        return number

    def _answers(self, fd: int, timeout: float) -> bool:
        """Return whether a descriptor can be read within ``timeout`` seconds.

        Raises:
            PreloadError: The preload process is stopped, and does not write to it.
        """
        deadline = time.monotonic() + timeout
        while not readable(fd, min(STOP_INTERVAL, deadline - time.monotonic())):
            if self.is_stopped():
                raise PreloadError(STOPPED)
            if time.monotonic() >= deadline:
                return False
        return True

    def is_stopped(self) -> bool:
        """Return whether a signal has stopped it (SIGSTOP)."""
        with suppress(ChildProcessError):
            # WNOWAIT leaves the report for the next call.
            return os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
        return False

    def interrupt(self) -> None:
        """End the wait of the main process until it is ready; called by a signal handler."""
        if self._interruptible:
            self._is_interrupted = True
            self._socket.shutdown(socket.SHUT_RDWR)

    def outdated(self) -> str:
        """Return the names of the conditions that the main process has changed since it started this process.

        A child forked from it could not take them over; see :mod:`worker._spawn.preload.conditions`.

        Raises:
            OSError: No further descriptor can be opened now.
        """
        return self._outdated(conditions.read_status())

    def conditions_of_child(self) -> Conditions:
        """Return the conditions that a child is given at a fork.

        Raises:
            OutdatedError: The main process has changed others, too.
            OSError: No further descriptor can be opened now.
        """
        status = conditions.read_status()
        if names := self._outdated(status):
            raise OutdatedError(f"the main process has since changed {names}")
        return conditions.present(status)

    def _outdated(self, status: Mapping[str, str]) -> str:
        now = conditions.fixed(status)
        if self.has_application:
            now |= conditions.variables()
        return conditions.changed(self._conditions, now)

    def has_ended(self) -> bool:
        """Return whether it has exited, as far as the system tells."""
        return self.pidfd is not None and readable(self.pidfd.fileno(), 0)

    def _ending(self) -> str:
        """Return how it has ended, in words."""
        ended = None
        # Its end of the socket is closed a moment before it can be waited for.
        if self.pidfd is not None and readable(self.pidfd.fileno(), ANSWER_TIMEOUT):
            with suppress(ChildProcessError):
                # WNOWAIT leaves the report for :meth:`stop`.
                ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return "it has ended"
        if ended.si_code == os.CLD_EXITED:
            return f"it exited with code {ended.si_status}"
        return f"it was killed by {name_of(ended.si_status)}"

    def has_forks(self) -> bool:
        """Return whether a child of it runs, whose exit code only it will know."""
        return any(fork.returncode is None for fork in self.forks)

    def stop(self) -> None:
        """Kill it, and wait for its exit. Further calls do nothing."""
        if self._is_closed:
            return
        self._hang_up()
        # A killed process exits at once.
        flags = 0
        if not self.has_ended():
            try:
                os.kill(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            except PermissionError:
                # This process has changed its user. The other one ends soon, because its channel is closed.
                flags = os.WNOHANG
        # Another thread may have collected it.
        with suppress(ChildProcessError):
            os.waitpid(self.pid, flags)
        if self.pidfd is not None:
            self.pidfd.close()

    def leave(self) -> None:
        """Leave it alone in a forked copy of the main process, which is not its parent."""
        if not self._is_closed:
            self._hang_up()
            if self.pidfd is not None:
                self.pidfd.close()

    def _hang_up(self) -> None:
        self._is_closed = True
        atexit.unregister(self.stop)
        with suppress(ValueError):
            forget(self._socket)
        self._socket.close()
        self._holding.close()


def _described(findings: Sequence[Mapping[str, Any]]) -> str:
    """Return in words why processes of the application cannot be forked."""
    first, *others = findings
    more = f", and {len(others)} more" if others else ""
    line = f", line {first['line']}" if first["line"] else ""
    return f"{first['text']} (module {first['module']}{line}){more}"


def readable(fd: int, timeout: float) -> bool:
    """Return whether a descriptor, or its end, can be read within ``timeout`` seconds."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(max(0.0, timeout) * 1000))


def _command(fd: int, held: int, modules: Sequence[str]) -> list[str | bytes]:
    # The function of multiprocessing would import all of it.
    from subprocess import _args_from_interpreter_flags  # type: ignore[attr-defined]

    # The import system ignores other objects, such as a ``Path``, which cannot be written here.
    entries: list[object] = [*sys.path]
    paths = [entry for entry in entries if isinstance(entry, str)]
    program = (
        f"import sys; sys.path[:] = {paths!r}; "
        f"from worker._child.preload.process import serve; serve({fd}, {held}, {os.getpid()}, {[*modules]!r})"
    )
    return [conditions.executable(), *_args_from_interpreter_flags(), "-c", program]
