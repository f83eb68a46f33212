"""Finds in a preload process what the import of the application has left there, and forks must not share.

The kernel knows all of it: threads, processes, descriptors, timers and shared memory, whichever library made
them. A trace function gives each its place. It observes the statements of the application's own modules, so
an import of a library takes no longer, and nothing of it is left for the workers.
"""

from __future__ import annotations

import asyncio
import builtins
import fcntl
import gc
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from types import FrameType
from typing import Any, NamedTuple

from worker._child.preload.threads import count_threads, listed, tasks, try_fork
from worker._system import proc

__all__ = ["Descriptor", "Finding", "Watch", "is_reopenable"]

# As many calls are observed. An import with more of them would take noticeably longer.
CALLS = 100_000

# So many free numbers of descriptors are looked at: a statement may close one below those that it has left.
FREE = 8

LIBRARIES = ("site-packages", "dist-packages")
OURS = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
STANDARD = os.path.dirname(os.path.abspath(os.__file__))
# Devices that any number of processes may use at once.
HARMLESS = {f"/dev/{name}" for name in ("full", "null", "random", "urandom", "zero")}
TIMERS = ("ITIMER_PROF", "ITIMER_REAL", "ITIMER_VIRTUAL")
KINDS = {
    "anon_inode:[eventfd]": "an eventfd",
    "anon_inode:[eventpoll]": "an epoll descriptor",
    "anon_inode:[io_uring]": "an io_uring",
    "anon_inode:[timerfd]": "a timer descriptor",
    "anon_inode:inotify": "an inotify descriptor",
}


class Finding(NamedTuple):
    """One reason why no worker can be forked from this process.

    Attributes:
        text: What was found.
        module: The module whose statement made it.
        line: The line of the statement; 0 if it is not known.
    """

    text: str
    module: str
    line: int


class Place(NamedTuple):
    """A statement of the application."""

    module: str
    line: int


class Descriptor(NamedTuple):
    """An open descriptor, and the target by which the kernel names it."""

    fd: int
    target: str


class Watch:
    """Observes an import: a context manager.

    Args:
        on_import (Callable): Called at the begin, and when a module was imported.

    Attributes:
        module: The module of the application: the place of all that no statement is known for.
    """

    def __init__(self, on_import: Callable[[], None]) -> None:
        self.module = "__main__"
        self._on_import = on_import
        self._tasks = tasks()
        self._descriptors = descriptors()
        self._processes = processes()
        self._mappings = _shared_mappings()
        self._seen = _fingerprint()
        # By the pid of a process, the number of a thread, the name of a timer, or the descriptor.
        self._places: dict[int | str | Descriptor, Place] = {}
        # The statements that are being executed: each has imported the module of the next one.
        self._stack: list[Place] = []
        self._budget = CALLS
        self._import: Any = None
        self._trace: Any = None

    def __enter__(self) -> Watch:
        self._on_import()
        self._import, self._trace = builtins.__import__, sys.gettrace()
        builtins.__import__ = self._import_module
        sys.settrace(self._on_call)
        return self

    def __exit__(self, *error: object) -> None:
        sys.settrace(self._trace)
        builtins.__import__ = self._import
        self._look()

    @property
    def opened(self) -> set[Descriptor]:
        """The descriptors that were opened, and are open."""
        return descriptors() - self._descriptors

    def find(self) -> list[Finding]:
        """Return what forks must not share, one finding for each statement."""
        if self.opened or threading.active_count() > 1:
            # Objects that nothing refers to may still hold some.
            gc.collect()
        texts: dict[Place, list[str]] = {}
        for place, text in self._find():
            found = texts.setdefault(place, [])
            if text not in found:
                found.append(text)
        return [Finding(f"the import has left {', '.join(found)}", *place) for place, found in texts.items()]

    def kill_processes(self) -> None:
        """Kill the processes that the import has started: without its application, nothing ends them."""
        for pid in processes() - self._processes:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)

    def _find(self) -> Iterator[tuple[Place, str]]:
        unknown = Place(self.module, 0)
        opened, threads = self.opened, self._threads()
        if threads:
            if not try_fork():
                yield unknown, "fork handlers in which a child hangs"
            left = self._threads()
            # Some libraries end their threads for a fork, then start others.
            anew = {text for tid, text in left.items() if tid not in threads}
            for tid, text in sorted(threads.items()):
                if tid in left or text in anew:
                    yield self._places.get(tid, unknown), text
            for text in sorted(anew.difference(threads.values())):
                yield unknown, text
            opened = opened if left else self.opened
        for pid in sorted(processes() - self._processes):
            yield self._places.get(pid, unknown), f"the process {proc.name(pid)!r}"
        for name in timers():
            yield self._places.get(name, unknown), f"the timer {name}"
        texts = [(one, text) for one in sorted(opened) if (text := describe(one))]
        has_loop = any("epoll" in text for _, text in texts) and _has_loop()
        for descriptor, text in texts:
            is_of_loop = has_loop and "epoll" in text
            yield self._places.get(descriptor, unknown), "an event loop" if is_of_loop else text
        for target in sorted(_shared_mappings() - self._mappings):
            yield unknown, f"memory that all processes share ({target})"

    def _threads(self) -> dict[int, str]:
        """Return a description of each thread that the import has started."""
        names = {thread.native_id: thread.name for thread in threading.enumerate()}
        return {
            tid: f"the thread {names[tid]!r}" if tid in names else f"the native thread {_command(tid)!r}"
            for tid in tasks() - self._tasks
        }

    def _on_call(self, frame: FrameType, event: str, argument: Any) -> Any:
        self._budget -= 1
        if self._budget <= 0:
            # The application computes a lot: the lines of the rest are not known.
            self._stack.clear()
            sys.settrace(None)
            return None
        if frame.f_code.co_name != "<module>" or not self._is_own(_name(frame), frame.f_code.co_filename):
            return None
        self._stack.append(Place(_name(frame), frame.f_lineno))
        seen: set[int] = set()

        def on_line(frame: FrameType, event: str, argument: Any) -> Any:
            # In a loop, each line counts once.
            if event == "return":
                self._look()
                if self._stack:
                    self._stack.pop()
            elif event == "line" and frame.f_lineno not in seen:
                self._look()
                seen.add(frame.f_lineno)
                if self._stack:
                    self._stack[-1] = Place(_name(frame), frame.f_lineno)
            return on_line

        return on_line

    def _import_module(self, name: str, *args: Any, **kwargs: Any) -> Any:
        trace, level = sys.gettrace(), kwargs.get("level", args[3] if len(args) > 3 else 0)
        if trace is not None and not level and not self._is_own_package(name.partition(".")[0]):
            sys.settrace(None)
        try:
            return self._import(name, *args, **kwargs)
        finally:
            self._on_import()
            sys.settrace(trace if self._budget > 0 else None)

    def _look(self) -> None:
        """Note the present statement as the place of all that is new."""
        seen = _fingerprint()
        if seen != self._seen:
            self._seen = seen
            new: set[int | str | Descriptor] = {*(tasks() - self._tasks), *self.opened, *timers()}
            new |= processes() - self._processes
            for one in new if self._stack else ():
                self._places.setdefault(one, self._stack[-1])

    def _is_own(self, name: str, path: str) -> bool:
        return name.partition(".")[0] == self.module.partition(".")[0] or is_own(path)

    def _is_own_package(self, name: str) -> bool:
        return name == self.module.partition(".")[0] or _is_own_package(name)


def processes() -> set[int]:
    """Return the pids of the children of this process that have not exited."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return set()
    found = set()
    for task in tasks():
        with suppress(OSError), open(f"/proc/self/task/{task}/children", encoding="ascii") as file:
            found |= {int(pid) for pid in file.read().split()}
    return {pid for pid in found if proc.state(pid) not in ("", "Z")}


def timers() -> list[str]:
    """Return the names of the timers that will send a signal: a forked child does not have them."""
    return [name for name in TIMERS if signal.getitimer(getattr(signal, name))[0]]


def descriptors() -> set[Descriptor]:
    """Return the open descriptors above 2."""
    found = set()
    for number in listed("/proc/self/fd"):
        # The one that has listed the directory is closed by now.
        with suppress(OSError):
            found.add(Descriptor(number, os.readlink(f"/proc/self/fd/{number}")))
    return {one for one in found if one.fd > 2}


def is_reopenable(descriptor: Descriptor) -> bool:
    """Return whether a child can open a file anew, instead of sharing the position with others.

    That is a regular file or a directory, only read, or written at its end, and not locked.
    """
    flags = fcntl.fcntl(descriptor.fd, fcntl.F_GETFL)
    mode = os.fstat(descriptor.fd).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        return False
    access = flags & os.O_ACCMODE
    reads, appends = access == os.O_RDONLY, access == os.O_WRONLY and flags & os.O_APPEND
    with open(f"/proc/self/fdinfo/{descriptor.fd}", encoding="ascii", errors="replace") as file:
        return bool(reads or appends) and "\nlock:" not in file.read()


def describe(descriptor: Descriptor) -> str:
    """Return a description of a descriptor that forks must not share; empty if they may."""
    target = descriptor.target
    with suppress(OSError):
        if target in HARMLESS or is_reopenable(descriptor):
            return ""
    if target.startswith("/dev/nvidia"):
        return f"CUDA ({target})"
    kind = target.partition(":")[0]
    if kind in ("socket", "pipe"):
        return f"a {kind}"
    return KINDS.get(target, f"the open file {target}")


@cache
def is_own(path: str) -> bool:
    """Return whether a file belongs to the application, and not to a library or to Python."""
    path = os.path.abspath(path)
    return not (
        path.startswith((f"{STANDARD}/", f"{OURS}/"))
        or "<" in path
        or any(f"/{name}/" in path for name in LIBRARIES)
    )


@cache
def _is_own_package(name: str) -> bool:
    if name in sys.stdlib_module_names:
        return False
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):
        return True
    if spec is None:
        return False
    return any(is_own(path) for path in (spec.origin, *(spec.submodule_search_locations or ())) if path)


def _name(frame: FrameType) -> str:
    name = str(frame.f_globals.get("__name__", ""))
    return "__main__" if name == "__mp_main__" else name


def _fingerprint() -> tuple[Any, ...]:
    """Return values that differ when something to be found has come or gone, at little cost."""
    free: list[int] = []
    try:
        with suppress(OSError):
            free.extend(os.dup(0) for _ in range(FREE))
    finally:
        for fd in free:
            os.close(fd)
    return free, tasks() if count_threads() > 1 else set(), processes(), timers()


def _command(tid: int) -> str:
    with suppress(OSError), open(f"/proc/self/task/{tid}/comm", encoding="utf-8", errors="replace") as file:
        return file.read().strip()
    return str(tid)


def _shared_mappings() -> set[str]:
    """Return the names of the memory that a forked child would share, and write to."""
    found = set()
    with suppress(OSError), open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
        for line in file:
            address, access, _, _, _, *name = line.split(maxsplit=5)
            if access.startswith("rw") and access.endswith("s"):
                found.add(name[0].strip() if name else address)
    return found


def _has_loop() -> bool:
    loops = [one for one in gc.get_objects() if isinstance(one, asyncio.AbstractEventLoop)]
    return any(not loop.is_closed() for loop in loops)
