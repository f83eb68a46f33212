"""Collects the stacks of a process, of which any part may be stuck, in steps that never wait.

1. The interpreter of the process tells its stacks itself: threads, tasks and requests.
2. If C code holds the GIL, a signal makes :mod:`faulthandler` dump the threads.
3. Of a process that is stopped or frozen, and of one without these two, the kernel tells what its threads do.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Literal, NamedTuple, Protocol

from worker._system import DUMP_FILE, proc

__all__ = ["STEP", "Collection", "Stacks", "State", "Way"]

STEP = 0.02
"""The time from one step of a collection to the next, seconds."""

# How long the interpreter of a process may take to answer, and the dump to be written, seconds.
ANSWER, DUMP = 0.5, 1.0
# The dump has ended when the file has not grown for this long, seconds.
SETTLE = 0.06
# A larger file is emptied before the next dump. This much of a dump is shown.
MAX_FILE, MAX_DUMP = 1 << 20, 64 << 10
MAX_THREADS = 32

Way = Literal["interpreter", "faulthandler", "kernel"]
# The start of a further dump: the threads of one have a blank line between them.
_START = re.compile(r"(?<=[^\n]\n)(?=(?:Current thread|Thread) 0x)")
# The line of a thread. The current one is that which has taken the signal.
_THREAD = re.compile(r"^(?:Current thread|Thread) 0x0*([0-9a-f]+)", re.MULTILINE)
# The file with the dumps, the main thread of its process, and the thread that takes the signal.
_FILE = re.compile(rf"/memfd:{DUMP_FILE}-([0-9a-f]+)-([0-9]+)\b")
STOPPED = frozenset(("T", "t"))
STATES = {
    "R": "running",
    "S": "sleeping",
    "D": "in a sleep that no signal ends",
    "T": "stopped by a signal",
    "t": "stopped by a debugger",
    "Z": "exited",
}


class State(Protocol):
    """The part of :class:`worker._state.shared.SharedState` that is used here."""

    def ask(self, pid: int) -> int:
        """Put a question to a process; return its number, or 0."""

    def answers(self, pid: int) -> tuple[int, int]:
        """Return the last questions that the native thread and the interpreter have answered."""

    def stack_signal(self, pid: int) -> int:
        """Return the number of the signal at which a process dumps its stacks; 0 if there is none."""

    def stacks(self, name: str, pid: int, question: int) -> tuple[str, str] | None:
        """Return the stacks that a process has answered with, and its debugger."""


class Stacks(NamedTuple):
    """The stacks of a process.

    Attributes:
        text: The stacks; empty if the process is gone.
        way: Where they come from.
        debugger: The name of the debugger that is at work in the process; empty if none is known.
    """

    text: str
    way: Way
    debugger: str = ""


class Collection:
    """Collects the stacks of one process.

    Call :meth:`step` every :data:`STEP` seconds until it returns them: within a second by default.

    Args:
        state (State): The shared state; any other mapping than ours answers no questions.
        name (str): The state entry of the process.
        pid (int): The process.
        patience (float): How long its interpreter may take to answer, seconds. Defaults to 0.5. A
            dump may disturb an interpreter that is only slow, so it should be longer on a busy machine.
        clock (Callable): Returns the time in seconds. Defaults to the monotonic clock.
    """

    def __init__(
        self,
        state: State,
        name: str,
        pid: int,
        patience: float = ANSWER,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state = state
        self._name = name
        self._pid = pid
        self._clock = clock
        self.question = state.ask(pid) if hasattr(state, "ask") else 0
        """The number of the question to the process; 0 if it takes none."""
        self._dump: _Dump | None = None
        self._deadline = clock() + patience

    def step(self) -> Stacks | None:
        """Go on; return the stacks once they are complete."""
        if not self.question or proc.state(self._pid) in proc.EXITED | STOPPED:
            return self._kernel()
        native, interpreter = self._state.answers(self._pid)
        if interpreter >= self.question and self._dump is None:
            found = self._state.stacks(self._name, self._pid, self.question)
            # Without room in the state it has answered without stacks.
            return Stacks(found[0], "interpreter", found[1]) if found else self._kernel()
        if self._clock() < self._deadline:
            return None
        if self._dump is None:
            # A process that is frozen would take the signal, and dump its stacks, when it goes on.
            signum = self._state.stack_signal(self._pid)
            self._dump = _Dump(self._pid, signum) if native >= self.question and signum else None
            if self._dump is None or not self._dump.begin():
                return self._kernel()
            self._deadline = self._clock() + DUMP
            return None
        is_late = self._clock() >= self._deadline
        if text := self._dump.read(self._clock(), is_late=is_late):
            return Stacks(text, "faulthandler")
        return self._kernel() if is_late else None

    def _kernel(self) -> Stacks:
        return Stacks(_of_kernel(self._pid), "kernel")


class _Dump:
    """The file to which a process dumps its stacks at a signal."""

    def __init__(self, pid: int, signum: int) -> None:
        self._pid = pid
        self._signum = signum
        self._thread = 0
        self._path = self._main_thread = ""
        self._start = 0
        self._size = 0
        self._grown_at = 0.0

    def begin(self) -> bool:
        """Send the signal; return whether the process takes it, and its file can be read."""
        try:
            self._path, self._main_thread, self._thread = _dump_of(self._pid)
            self._start = self._size = os.stat(self._path).st_size
            if self._start > MAX_FILE:
                # The process goes on at its place in the file. All before it becomes a hole without memory.
                os.truncate(self._path, 0)
            # The signal would end a process without a handler.
            if not proc.catches(self._pid, self._signum):
                return False
            _send(self._pid, self._thread, self._signum)
        except OSError:
            return False
        return True

    def read(self, now: float, *, is_late: bool) -> str:
        """Return the dump, once the process writes no more of it; empty before."""
        try:
            size = os.stat(self._path).st_size
            if size != self._size:
                self._size, self._grown_at = size, now
            is_written = now - self._grown_at >= SETTLE and not self._is_under_way()
            if size <= self._start or not (is_written or is_late):
                return ""
            with open(self._path, "rb") as file:
                file.seek(self._start)
                dump = _one_dump(file.read(MAX_DUMP).decode(errors="replace"))
                return _THREAD.sub(self._name, dump)
        except OSError:
            return ""

    def _is_under_way(self) -> bool:
        # It is pending, or a thread runs its handler, which blocks it meanwhile.
        task = f"{self._pid}/task/{self._thread}"
        return self._signum in proc.signals(task, "SigPnd", "ShdPnd", "SigBlk")

    def _name(self, line: re.Match[str]) -> str:
        """Return the beginning of the line of a thread, with the name of the main one."""
        if line[1] == self._main_thread:
            return "Thread MainThread"
        # That it has taken the signal is of no interest.
        return line[0].replace("Current thread", "Thread")


def _one_dump(text: str) -> str:
    """Return the longest of several dumps: others may ask at the same time, so the last may be incomplete."""
    return max(_START.split(text), key=len)


def _send(pid: int, thread: int, signum: int) -> None:
    """Send a signal to one thread of a process: in any other, it may end a system call.

    Raises:
        OSError: The kernel refuses it, or the thread is gone.
    """
    # Imported on use: few processes ever hang.
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    # glibc has had it since 2.30.
    if not hasattr(libc, "tgkill"):
        os.kill(pid, signum)
    elif libc.tgkill(pid, thread, signum) != 0:
        raise OSError(ctypes.get_errno(), "tgkill")


def _dump_of(pid: int) -> tuple[str, str, int]:
    """Return the path of the file of a process to which it dumps its stacks, and what its name tells.

    That is the main thread, as a dump has it, and the thread that takes the signal, as the kernel has it.

    Raises:
        OSError: There is none, or this process may not read it.
    """
    folder = f"/proc/{pid}/fd"
    for entry in os.listdir(folder):
        path = f"{folder}/{entry}"
        # The process may close it meanwhile.
        with suppress(FileNotFoundError):
            if found := _FILE.match(os.readlink(path)):
                return path, found[1], int(found[2])
    raise FileNotFoundError(folder)


def _of_kernel(pid: int) -> str:
    """Return what the kernel tells about the threads of a process; empty if it is gone."""
    state = proc.state(pid)
    if not state:
        return ""
    lines = [f"Process {pid}: {STATES.get(state, state)} (state {state})"]
    if tracer := proc.tracer(pid):
        lines.append(f"It is traced by process {tracer}")
    threads: list[str] = []
    with suppress(OSError):
        threads = sorted(os.listdir(f"/proc/{pid}/task"), key=int)
    lines += [_thread(f"{pid}/task/{thread}", thread) for thread in threads[:MAX_THREADS]]
    if len(threads) > MAX_THREADS:
        lines.append(f"({len(threads) - MAX_THREADS} more threads left out)")
    return "\n".join(lines) + "\n"


def _thread(path: str, thread: str) -> str:
    state = proc.state(path)
    facts = [STATES.get(state, state or "gone")]
    if place := proc.wchan(path):
        facts.append(f"in {place} of the kernel")
    if call := proc.syscall(path):
        facts.append(f"system call {call}")
    return f"Thread {thread} {proc.name(path)!r}: {', '.join(facts)}"
