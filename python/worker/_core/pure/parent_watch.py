"""A child's watch on its main process: once that is gone, the child is told to leave, then made to."""

from __future__ import annotations

import os
import select
import signal
import threading

__all__ = ["Lifeline"]


class Lifeline:
    """Ends this process when its main process is gone; a thread waits for that."""

    def __init__(self, watch: int, grace: float) -> None:
        if not grace >= 0:
            raise ValueError(f"{grace} is no number of seconds from 0 on")
        self._watch = os.dup(watch)
        self._grace = grace
        self._lock = threading.Lock()
        self._told = self._obeyed = self._is_stoppable = False
        threading.Thread(target=self._hold, name="lifeline", daemon=True).start()

    def let_go(self) -> None:
        # Without the lock: a signal handler may call it while the lock is held.
        self._obeyed = True

    def stoppable(self) -> None:
        with self._lock:
            again = self._told and not self._obeyed and not self._is_stoppable
            self._is_stoppable = True
        if again:
            os.kill(os.getpid(), signal.SIGINT)

    def _hold(self) -> None:
        poll = select.poll()
        poll.register(self._watch, select.POLLIN)
        poll.poll()
        me = os.getpid()
        with self._lock:
            self._told = True
        if not self._obeyed:
            os.kill(me, signal.SIGINT)
        if self._grace:
            threading.Event().wait(min(self._grace, threading.TIMEOUT_MAX))
        if os.getsid(0) == me:
            os.killpg(me, signal.SIGKILL)
        os.kill(me, signal.SIGKILL)
