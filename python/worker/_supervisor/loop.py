"""The loop of main: one wait for messages, exits and signals, and what each of them leads to."""

from __future__ import annotations

import gc
import math
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial, wraps
from itertools import chain
from socket import socket
from typing import TYPE_CHECKING, Any, TypeVar, cast

from sanic.log import logger

from worker._child import descriptors
from worker._child.signals import MORE, RELOAD, REQUESTS, STOPS
from worker._control.receive import ConnectionMonitor, Waiting, open_monitor
from worker._core.messages import Command, Corrupt, Event, Exited, Received, Restart, ScaleBy
from worker._spawn import preload
from worker._spawn.reap import Reaper
from worker._supervisor.commands import Commands, coalesce
from worker._supervisor.supervisor import Overseer
from worker._supervisor.terminal import Terminal
from worker.constants import MAIN_NAME, Phase, ProcessState, RestartOrder
from worker.process import WorkerProcess

if TYPE_CHECKING:
    from worker.manager import WorkerManager

__all__ = ["Loop", "frozen_heap", "in_the_loop", "signals_given_back"]

Verb = TypeVar("Verb", bound=Callable[..., None])

STARTING = (ProcessState.STARTING, ProcessState.STARTED)

# How long is obeyed before it is looked for exits again, seconds.
SLICE = 0.004


def in_the_loop(verb: Verb) -> Verb:
    """Hand a verb of the manager to the running loop when another thread calls it."""

    @wraps(verb)
    def call(manager: WorkerManager, *args: Any, **kwargs: Any) -> None:
        manager._loop.do(partial(verb, manager, *args, **kwargs))

    return cast(Verb, call)


@contextmanager
def signals_given_back(*, stops_ignored: bool = False) -> Iterator[None]:
    """Put the handlers of main's signals back at the end, as far as a loop has set them meanwhile.

    Args:
        stops_ignored (bool): Ignore SIGINT and SIGTERM instead. Defaults to ``False``.
    """
    before = {signum: signal.getsignal(signum) for signum in (*STOPS, *REQUESTS)}
    if stops_ignored:
        before.update(dict.fromkeys(STOPS, signal.SIG_IGN))
    try:
        yield
    finally:
        for signum, handler in before.items():
            is_ours = getattr(signal.getsignal(signum), "__func__", None) is Loop.on_signal
            if is_ours and handler is not None:
                signal.signal(signum, handler)


@contextmanager
def frozen_heap() -> Iterator[None]:
    """Keep what is there by now: to look for garbage in it would hold up an exit or a signal for 20 ms."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def listening_sockets(settings: Mapping[str, Any]) -> list[socket]:
    """What the servers of these settings listen on, those of secondary applications included."""
    infos = chain.from_iterable(settings.get("server_info", {}).values())
    found = [settings.get("sock"), *(info.settings.get("sock") for info in infos)]
    return list(dict.fromkeys(sock for sock in found if isinstance(sock, socket)))


class Loop:
    """What the manager's :meth:`~worker.manager.WorkerManager.monitor` runs.

    Args:
        manager (WorkerManager): Whose verbs are called.
        overseer (Overseer): Who watches over its processes.
    """

    def __init__(self, manager: WorkerManager, overseer: Overseer) -> None:
        self._manager = manager
        self._overseer = overseer
        self._monitor: Waiting | None = None
        self._thread: int | None = None
        self._wakeup_before: int | None = None
        self._signals: deque[int] = deque()
        self._calls: deque[Callable[[], None]] = deque()
        self._backlog: deque[Event] = deque()
        self._commands = Commands(self, manager)
        self._terminal = Terminal()
        self._reaper = Reaper(lambda pid: overseer.by_pid(pid) is not None)
        self._stopped = False
        self._sockets: list[socket] = []

    @property
    def at_work(self) -> bool:
        """Whether the pipe and the signals are taken."""
        return self._monitor is not None

    @property
    def starting(self) -> bool:
        """Whether the servers start for the first time."""
        return self._overseer.starting

    @property
    def ended(self) -> bool:
        """Whether the loop is to be left."""
        return self._stopped or self._manager._shutting_down

    @property
    def stop_asked(self) -> bool:
        """Whether a stop is on its way, obeyed or not."""
        return self.ended or self._stop_is_queued

    @property
    def _stop_is_queued(self) -> bool:
        return any(signum in STOPS for signum in [*self._signals])

    @property
    def may_be_left(self) -> bool:
        """Whether an empty message ends it: only where nothing else can wake it."""
        return isinstance(self._monitor, ConnectionMonitor)

    def leave(self) -> None:
        """Let :meth:`turn` be the last one."""
        self._stopped = True
        self._overseer.halt()

    def open(self) -> None:
        """Take the pipe and the signals; again: nothing."""
        if self._monitor is not None:
            return
        self._monitor = open_monitor(self._manager.monitor_subscriber, self._overseer.bell)
        self._overseer.open(self._monitor)
        self._thread = threading.get_ident()
        descriptors.close_in_children(self._monitor)
        descriptors.close_in_children(self._manager.monitor_subscriber)
        self._sockets = listening_sockets(self._manager._server_settings)
        for sock in self._sockets:
            descriptors.close_in_children(sock, servers_too=True)
        wakeup = getattr(self._monitor, "wakeup_fd", None)
        if wakeup is not None and threading.current_thread() is threading.main_thread():
            self._wakeup_before = signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)

    def close(self) -> None:
        """Wait for what was killed, let go of pipe and signals; every state is final then."""
        if self._monitor is None:
            return
        self._overseer.close()
        if self._wakeup_before is not None:
            signal.set_wakeup_fd(self._wakeup_before)
        # A signal that comes now finds nothing to wake.
        monitor, self._monitor = self._monitor, None
        self._thread = self._wakeup_before = None
        descriptors.forget(monitor)
        descriptors.forget(self._manager.monitor_subscriber)
        while self._sockets:
            descriptors.forget(self._sockets.pop())
        monitor.close()
        self._commands.complaints.sum_up()

    def take_signals(self) -> None:
        """Handle main's signals; one that asks for a change stays ignored where it was."""
        # Only queued: what they take is done in the loop, never in the middle of something else.
        for signum in (*STOPS, *REQUESTS):
            if signum in STOPS or signal.getsignal(signum) is not signal.SIG_IGN:
                signal.signal(signum, self.on_signal)

    def on_signal(self, signum: int, frame: Any) -> None:
        """The handler of main's signals: queue it for the loop.

        Before the loop and after it nobody looks: there the second stop takes its default action.
        """
        if not self.at_work and self._stop_is_queued and signum in STOPS:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        self._signals.append(signum)
        self._wake()
        if signum in STOPS:
            preload.interrupt()

    def do(self, call: Callable[[], None]) -> None:
        """Do something now, or in the loop's thread where a loop runs in another one."""
        if self.at_work and self._manager._shutting_down:
            logger.debug("Nothing is started any more: the server is stopping.")
        elif self._thread in (None, threading.get_ident()):
            call()
        else:
            self._calls.append(call)
            self._wake()

    def turn(self, at_most: float | None = None) -> None:
        """Wait for the next thing that happens, and do what it asks for."""
        assert self._monitor is not None
        # What is not done yet is done before more is taken; exits are always looked for.
        waiting = not self._backlog
        events = coalesce(self._monitor.wait(self._timeout(at_most), waiting))
        self._obey_signals()
        if any(isinstance(event, Exited) for event in events):
            self._overseer.hear(time.monotonic(), everything=True)
        for event in events:
            if isinstance(event, Exited):
                self._obey_dead(event.pid)
                self._overseer.exited(event.key, event.exitcode)
                self._reaper.exited(event.pid)
            else:
                self._backlog.append(event)
        until = time.monotonic() + SLICE
        while self._backlog and time.monotonic() < until:
            self._obey(self._backlog.popleft())
        while self._calls:
            self._commands.guarded(partial(self.do, self._calls.popleft()), os.getpid())
        now = time.monotonic()
        if now >= self._commands.complaints.until:
            self._commands.complaints.sum_up()
        self._reaper.settle(now)
        if self._terminal.has_hung_up(now) and not self.ended:
            self._manager.shutdown_signal(signal.SIGHUP, None)
        if self._overseer.wants_a_look(now):
            self._overseer.settle()

    def wait_until_ready(self, seconds: float) -> str:
        """Wait until every server is acked; commands that come meanwhile are obeyed after that.

        Args:
            seconds (float): How long that may take.

        Returns:
            str: Why it cannot be reached; empty when it was, or when a stop came first.
        """
        deadline = time.monotonic() + seconds
        self._overseer.start_begins()
        while not self.stop_asked and (slow := [*self._unacked()]):
            left = deadline - time.monotonic()
            if left <= 0 and self._overseer.can_wait_for_change:
                deadline = math.inf
                for process in slow:
                    self._overseer.give_up(process)
                continue
            if left <= 0:
                names = ", ".join(sorted(process.name for process in slow))
                return (
                    f"No word of {names} within the allowed time, which is {seconds} seconds. It is set by "
                    "WorkerManager.THRESHOLD, in tenths of a second."
                )
            self.turn(left)
            if self._overseer.failure and not self.stop_asked:
                return (
                    f"{self._overseer.failure} Where the log does not say why, run the application with "
                    "--single-process, so that nothing stands between you and its error."
                )
        self._overseer.start_is_over()
        self._backlog.extendleft(reversed(self._commands.take_deferred()))
        return ""

    def drain(self) -> None:
        """Wait until no process is left."""
        while self._overseer.has_processes() and self._monitor is not None:
            self.turn()

    # What happens

    def _obey(self, event: Event) -> None:
        self._obey_signals()
        if isinstance(event, Received):
            self._commands.obey(event)
        elif isinstance(event, Corrupt):
            self._commands.dropped(event)

    def _obey_dead(self, pid: int) -> None:
        """Do first what a dead process had asked for; what others ask for can wait."""
        backlog, self._backlog = self._backlog, deque()
        for event in backlog:
            if isinstance(event, Exited) or event.sender not in (pid, None):
                self._backlog.append(event)
            else:
                self._obey(event)
        self._obey_signals()

    def _obey_signals(self) -> None:
        while self._signals:
            signum = self._signals.popleft()
            if signum in STOPS or (signum == RELOAD and not self.ended and self._terminal.hangs_up()):
                self._manager.shutdown_signal(signum, None)
            elif not self.ended:
                logger.info("Received signal %s.", signal.Signals(signum).name)
                self._commands.obey(Received(self._meaning_of(signum), os.getpid()))

    def _meaning_of(self, signum: int) -> Command:
        if signum == RELOAD:
            return Restart(None, order=RestartOrder.STARTUP_FIRST)
        return ScaleBy(1 if signum == MORE else -1)

    # What is waited for

    def _unacked(self) -> Iterator[WorkerProcess]:
        for process in self._manager.transient_processes:
            # One that could not be started is tried again.
            if process.is_server and (process.state in STARTING or process.life.phase is Phase.BACKOFF):
                yield process

    def _timeout(self, at_most: float | None) -> float | None:
        """Seconds until the next deadline; ``None`` where nothing but events is waited for."""
        if self._backlog or self._calls or self._signals or self._overseer.is_unsettled:
            return 0.0
        others = (self._commands.complaints.until, self._terminal.look_again, self._reaper.due)
        deadline = min(self._overseer.settle_at, *others)
        left = min(max(0.0, deadline - time.monotonic()), math.inf if at_most is None else at_most)
        return None if left == math.inf else left

    def _wake(self) -> None:
        monitor = self._monitor
        if monitor is not None:
            monitor.wake()

    def name_of(self, pid: int | None) -> str:
        """Who wrote a message, in words."""
        if pid is None:
            return "an unknown process"
        if pid == os.getpid():
            return MAIN_NAME
        watched = self._overseer.by_pid(pid)
        return f"process {pid}" if watched is None else str(watched)
