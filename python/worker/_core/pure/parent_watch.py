"""Ends a child whose main process is gone: by a signal first, then by force."""

from __future__ import annotations

import os
import select
import signal
import threading

__all__ = ["ParentWatch"]


class ParentWatch:
    """Ends this process when its main process exits; a thread waits for that."""

    def __init__(self, parent: int, grace: float) -> None:
        if not grace >= 0:
            raise ValueError(f"{grace} is no number of seconds from 0 on")
        self._parent = os.dup(parent)
        self._grace = grace
        self._lock = threading.Lock()
        self._is_interrupted = self._has_stop_begun = self._has_handlers = False
        threading.Thread(target=self._watch, name="parent-watch", daemon=True).start()

    def stop_begun(self) -> None:
        # Without the lock: a signal handler may call this while the lock is held.
        self._has_stop_begun = True

    def stop_handlers_set(self) -> None:
        with self._lock:
            again = self._is_interrupted and not self._has_stop_begun and not self._has_handlers
            self._has_handlers = True
        if again:
            os.kill(os.getpid(), signal.SIGINT)

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(self._parent, select.POLLIN)
        poll.poll()
        me = os.getpid()
        with self._lock:
            self._is_interrupted = True
        if not self._has_stop_begun:
            os.kill(me, signal.SIGINT)
        if self._grace:
            threading.Event().wait(min(self._grace, threading.TIMEOUT_MAX))
        if os.getsid(0) == me:
            os.killpg(me, signal.SIGKILL)
        os.kill(me, signal.SIGKILL)
