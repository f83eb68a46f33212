"""A child's watch on its main process: once that is gone, the child is told to leave, then made to."""

from __future__ import annotations

import os
import select
import signal
import threading
import time

__all__ = ["Lifeline"]


class Lifeline:
    """Ends this process when its main process is gone; a thread waits for that."""

    def __init__(self, watch: int, grace: float, again: float | None = None) -> None:
        for seconds in (grace, 0.0 if again is None else again):
            if not seconds >= 0:
                raise ValueError(f"{seconds} is no number of seconds from 0 on")
        self._watch = os.dup(watch)
        self._grace = grace
        self._again = again
        self._obeyed = threading.Event()
        threading.Thread(target=self._hold, name="lifeline", daemon=True).start()

    def let_go(self) -> None:
        self._obeyed.set()

    def _hold(self) -> None:
        poll = select.poll()
        poll.register(self._watch, select.POLLIN)
        poll.poll()
        me, began = os.getpid(), time.monotonic()
        told, pause = False, threading.Event()
        while (left := began + self._grace - time.monotonic()) > 0:
            obeyed = self._obeyed.is_set()
            repeats = None if obeyed else self._again
            if repeats is not None or not (told or obeyed):
                os.kill(me, signal.SIGINT)
                told = True
            pause.wait(min(left if repeats is None else min(left, repeats), threading.TIMEOUT_MAX))
        if os.getsid(0) == me:
            os.killpg(me, signal.SIGKILL)
        os.kill(me, signal.SIGKILL)
