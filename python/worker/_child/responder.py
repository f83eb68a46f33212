"""Answers the question of another process whether this server is stuck, with its stacks.

The native core answers by itself, without the interpreter. A thread of Python waits beside it, without the
GIL. If that thread gets the GIL it writes the stacks to the state entry of the server, and answers, too.
If it does not get it, C code holds the GIL: the stacks can then be dumped by a signal, whose handler needs no
GIL (:mod:`faulthandler`). That thread takes the signal, so that it ends no system call of another one.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
import threading
from collections.abc import Collection
from contextlib import suppress
from multiprocessing.util import Finalize
from typing import Any

from worker._child import stacks
from worker._child.parent_watch import LAST, all_signals_blocked
from worker._state import identity, schema
from worker._state.shared import SharedState
from worker._system import DUMP_FILE, proc

__all__ = ["observe", "offer_signal", "start"]

# How long the end of the process waits for the thread that answers, seconds.
PATIENCE = 1.0

_responder: _Responder | None = None


def start(state: Any) -> None:
    """Begin to answer questions to this process; over another state than ours there are none."""
    global _responder
    name = os.environ.get("SANIC_WORKER_NAME", "")
    if isinstance(state, SharedState) and name:
        # Without them the server serves all the same.
        with suppress(MemoryError, OSError, RuntimeError, ValueError):
            _responder = _Responder(state, name)


def observe(loop: asyncio.AbstractEventLoop, connections: Collection[Any]) -> None:
    """Include the tasks of a loop and the requests of connections in the answers."""
    if _responder is not None:
        _responder.subject = stacks.Subject(loop, connections)


def offer_signal() -> None:
    """Let a free real-time signal dump the stacks; for the main thread, when the application has started.

    By then the application has set its own handlers. They are left alone.
    """
    if _responder is not None:
        _responder.offer_signal()


class _Responder:
    """The threads that answer.

    Attributes:
        subject: The parts of the server that the answers are about.
    """

    def __init__(self, state: SharedState, name: str) -> None:
        self.subject = stacks.Subject()
        self._state = state
        self._name = name
        self._questions = state.questions
        self._dump: int | None = None
        # The signal that the thread is to take, and the question that wakes it up for that.
        self._signum = self._own_question = 0
        self._thread = threading.Thread(target=self._answer_all, name="responder", daemon=True)
        # The threads inherit the mask. With a signal unblocked they would take one from the main thread.
        with all_signals_blocked():
            self._questions.open()
            self._thread.start()
        # A thread that wakes up in an interpreter that is being finalized would be ended in the native core.
        Finalize(None, self._stop, exitpriority=LAST + 1)

    def offer_signal(self) -> None:
        """Let a signal dump the stacks of all threads to a file in memory, and have it published."""
        with suppress(OSError, ValueError, RuntimeError, AttributeError):
            signum = _free_signal()
            if signum and self._dump is None:
                # A dump names no threads. Its file names the main one, and the one that takes the signal.
                name = f"{DUMP_FILE}-{threading.main_thread().ident:x}-{self._thread.native_id}"
                self._dump = os.memfd_create(name, os.MFD_CLOEXEC)
                # At the end of the interpreter this becomes the action again. By default, the signal kills.
                signal.signal(signum, signal.SIG_IGN)
                faulthandler.register(signum, file=self._dump, all_threads=True, chain=False)
                self._signum = signum
                self._own_question = self._questions.ask(os.getpid())

    def _answer_all(self) -> None:
        before = 1
        while number := self._questions.next(before):
            if self._signum:
                self._take_signal()
            # Others may have asked before this process has asked itself.
            if number != self._own_question or number > before + 1:
                # An answer without stacks still shows that the interpreter is not stuck.
                with suppress(Exception):
                    self._write(number)
            self._questions.answer(number)
            before = number

    def _take_signal(self) -> None:
        """Publish the signal. It is sent to this thread, the only one that blocks all others."""
        signum, self._signum = self._signum, 0
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signum})
        self._questions.set_signal(signum)

    def _write(self, number: int) -> None:
        changes = {
            schema.STACKS: stacks.describe(self.subject),
            schema.STACKS_QUESTION: number,
            schema.STACKS_DEBUGGER: stacks.debugger(),
        }
        self._state.update_entry(self._name, changes, identity.worker_pid())

    def _stop(self) -> None:
        self._questions.close()
        self._thread.join(PATIENCE)


def _free_signal() -> int:
    """Return the highest real-time signal without a handler, of this interpreter or of C code; 0 for none."""
    taken = proc.signals("self", "SigCgt", "SigIgn", "SigBlk")
    if not taken:
        # Python itself has some, so they are not known.
        return 0
    for signum in range(signal.SIGRTMAX, signal.SIGRTMIN - 1, -1):
        if signum not in taken and signal.getsignal(signum) is signal.SIG_DFL:
            return signum
    return 0
