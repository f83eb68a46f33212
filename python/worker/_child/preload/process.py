"""The loop of the preload process: imports, then a fork for each request of the main process."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any, NoReturn

from worker._child.descriptors import close_all
from worker._child.preload.threads import count_threads, ends_threads
from worker._child.signals import HANDLED, OPTIONAL, may_take

__all__ = [
    "CHECK",
    "FORK",
    "HAS_THREADS",
    "LOAD",
    "NUMBER",
    "READY",
    "TITLE",
    "serve",
]

# The requests of the main process, and the answer when the imports are done.
FORK = b"fork"
LOAD = b"load"
CHECK = b"check"
TITLE = b"title"
READY = b"ready"
# A pid or an exit code. A negative pid is the errno of a fork that failed, or the number below.
NUMBER = struct.Struct("q")
# Instead of a pid: other threads run here. A lock that one of them holds would stay locked in a child.
HAS_THREADS = -(1 << 32)
# The largest number of descriptors in one message on Linux.
MAX_FDS = 253


def serve(channel: int, held: int, main: int, modules: Sequence[str]) -> NoReturn:
    """Import modules, then obey the main process until that is gone.

    Args:
        channel (int): The descriptor of the socket to the main process.
        held (int): The descriptor of a pipe that the main process alone holds open.
        main (int): The pid of the main process.
        modules (Sequence[str]): The modules to import, and functions to call, as ``module:function``. Those
            that are missing or fail are skipped: the children do it again, and report the error.
    """
    process = _Process(channel, held, main)
    # It would look again and again at the objects of all modules, of which hardly any is garbage.
    gc.disable()
    for entry in modules:
        name, _, function = entry.partition(":")
        with suppress(ImportError, RuntimeError):
            module = import_module(name)
            if function:
                getattr(module, function)()
    gc.enable()
    process.run()


class _Process:
    def __init__(self, channel: int, held: int, main: int) -> None:
        self._channel = socket.socket(fileno=channel)
        self._held = held
        _end_with_writer(held)
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
        # The files of the imported modules, as they were then.
        self._files: dict[str, tuple[int, ...]] = {}
        os.set_blocking(self._exits, False)
        os.set_blocking(self._notify, False)
        # The mask and the handlers of a child, which differ from those of this process.
        self._mask: set[int] = set()
        self._handlers: dict[int, Any] = {}
        self._take_signals()

    def run(self) -> NoReturn:
        _freeze()
        self._send(READY)
        self._files = _imported_files()
        poll = select.poll()
        for fd in (self._channel.fileno(), self._exits, *self._watch):
            poll.register(fd, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if self._exits in ready:
                os.read(self._exits, 4096)
                self._report_exits()
            if not ready.isdisjoint(self._watch):
                os._exit(0)
            if self._channel.fileno() in ready:
                self._obey()

    def _obey(self) -> None:
        try:
            message, fds, flags, _ = socket.recv_fds(self._channel, 16, MAX_FDS, socket.MSG_CMSG_CLOEXEC)
        except ConnectionError:
            os._exit(0)
        if flags & socket.MSG_CTRUNC or not message:
            # The main process is gone, or has sent more descriptors than this process may open.
            os._exit(0)
        if message == FORK:
            self._fork(fds)
        elif message == LOAD:
            self._answer(self._load(fds[0]))
        elif message == CHECK:
            self._answer({"changed": next((file for file in self._files if self._has_changed(file)), "")})
        elif message == TITLE:
            from worker._child.titles import PRELOAD, set_title

            set_title(PRELOAD)
        else:
            os._exit(1)

    def _take_signals(self) -> None:
        """Notice the exits of children, and survive other signals; keep what a child has instead."""
        self._mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        # A signal to all processes of a service must not end this one before its children: it alone knows how
        # they exit. A program that the application starts at its import does not inherit a handler.
        for signum in (signal.SIGCHLD, *HANDLED):
            handler = signal.getsignal(signum)
            if handler is not _ignore:
                self._handlers[signum] = handler
            if signum == signal.SIGCHLD or (handler is not signal.SIG_IGN and may_take(signum)):
                signal.signal(signum, _ignore)
        # Not ``default_int_handler``: a child that has not begun ends without a traceback.
        if self._handlers[signal.SIGINT] is signal.default_int_handler:
            self._handlers[signal.SIGINT] = signal.SIG_DFL
        signal.set_wakeup_fd(self._notify, warn_on_full_buffer=False)

    def _give_signals(self, signums: Iterable[int]) -> None:
        """Give signals the handlers that they have in a child, and block those that it blocks."""
        for signum in signums:
            # The application may have set one that Python does not know, by faulthandler.
            if signal.getsignal(signum) is _ignore:
                signal.signal(signum, self._handlers[signum])
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def _load(self, fd: int) -> dict[str, Any]:
        """Import the application; return the answer for the main process."""
        from worker._child.preload import application

        # The application finds and sets the handlers of a spawned process.
        self._give_signals((signal.SIGCHLD, *OPTIONAL))
        with open(fd, "rb") as data:
            answer = application.load(data, self._main_ended())
        self._take_signals()
        gc.collect()
        _freeze()
        return answer

    def _main_ended(self) -> int:
        """Return a descriptor that shows the end of the main process."""
        return self._watch[0] if self._watch else self._held

    def _has_changed(self, file: str) -> bool:
        return _identity(file) != self._files[file]

    def _answer(self, answer: dict[str, Any]) -> None:
        # Imported on use, as is all that the main process does without when it starts this one.
        import json

        self._send(json.dumps(answer).encode())

    def _send(self, message: bytes) -> None:
        # The main process may be gone. The next wait shows it.
        with suppress(OSError):
            self._channel.send(message)

    def _fork(self, fds: list[int]) -> None:
        status = fds.pop(1)
        if count_threads() > 1 and not ends_threads():
            _write(status, HAS_THREADS)
            close_all(status, *fds)
            return
        # Until the child has its own handlers, a signal stays pending.
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
        try:
            pid = os.fork()
            if pid == 0:
                self._become_child(status, *fds)
        except OSError as error:
            _write(status, -(error.errno or errno.EAGAIN))
            close_all(status, *fds)
            return
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
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
        """Undo the state of the preload process in a child, then run the main process's process object."""
        from multiprocessing import forkserver, resource_tracker, spawn

        from worker._child.exits import exit_child, leave_shared
        from worker._child.preload import application

        code = 1
        try:
            os.setsid()
            signal.set_wakeup_fd(-1)
            self._give_signals(self._handlers)
            self._channel.close()
            close_all(status, self._exits, self._notify, self._held, *self._watch, *self._status_of.values())
            # The application may have kept `parent_process()`, with this number, since its import.
            sentinel = os.dup2(data, self._main_ended(), inheritable=False)
            leave_shared()
            resource_tracker._resource_tracker._fd = tracker  # type: ignore[attr-defined]
            forkserver._forkserver._inherited_fds = [*inherited]  # type: ignore[attr-defined]
            application.restore()
            _await_data(data)
            code = spawn._main(data, sentinel)
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            exit_child(code)


def _end_with_writer(held: int) -> None:
    """Let the kernel kill the group of this process when the main process closes a pipe, or is gone.

    An import may take long, or hang, and this process looks at nothing meanwhile. What the application has
    started at its import ends, too.
    """
    # A system without it lacks the names, or refuses them: there the end is noticed after the import.
    with suppress(AttributeError, OSError):
        fcntl.fcntl(held, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(held, fcntl.F_SETOWN, -os.getpid() if os.getpgrp() == os.getpid() else os.getpid())
        fcntl.fcntl(held, fcntl.F_SETFL, fcntl.fcntl(held, fcntl.F_GETFL) | os.O_ASYNC)


def _ignore(signum: int, frame: Any) -> None:
    """Do nothing at a signal."""


def _imported_files() -> dict[str, tuple[int, ...]]:
    """Return the files of all imported modules, with their present identities."""
    specs = [getattr(module, "__spec__", None) for module in [*sys.modules.values()]]
    files = {spec.origin for spec in specs if spec is not None and spec.has_location}
    return {file: _identity(file) for file in files if file}


def _identity(file: str) -> tuple[int, ...]:
    """Return the fields of a file that differ after it was changed or replaced; empty if there is no file."""
    try:
        found = os.stat(file)
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino


def _freeze() -> None:
    """Keep the garbage collector of the children from the objects that exist by now.

    It would write to each of them, so a child would get a copy of each page.
    """
    gc.freeze()


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
