"""The loop of the main process: waits for messages, exits and signals, and dispatches them."""

from __future__ import annotations

import gc
import math
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from socket import socket
from typing import Any, Protocol

from sanic.log import logger

from worker._child import descriptors
from worker._child.signals import HANDLED, MORE, RELOAD, REOPEN, STOPS, UPGRADE, may_take
from worker._control.coalesce import coalesce
from worker._control.receive import ConnectionMonitor, MonitorProtocol, fileno, open_monitor
from worker._core import messages
from worker._core.messages import Command, Corrupt, Event, Exited, Received, Requested, Restart, ScaleBy
from worker._spawn.preload.preloads import preloads
from worker._spawn.reap import Reaper
from worker._supervisor.commands import CommandHandler, Commands
from worker._supervisor.duties import Duty, duties
from worker._supervisor.duties.delayed_stop import DelayedStop
from worker._supervisor.duties.upgrade import Upgrade
from worker._supervisor.model import ServerPhase
from worker._supervisor.reopen import reopen
from worker._supervisor.supervisor import ProcessTable, Supervisor
from worker._supervisor.terminal import Terminal
from worker._system import init
from worker.constants import MAIN_NAME, Phase, ProcessState, RestartOrder, listed
from worker.process import WorkerProcess

__all__ = ["Loop", "frozen_heap", "signals_given_back"]

UNACKED = (ProcessState.STARTING, ProcessState.STARTED)

# How long commands are executed before the next check for exits, seconds.
SLICE = 0.004


@contextmanager
def signals_given_back(*, are_ignored: bool = False) -> Iterator[None]:
    """Restore the handlers of the main process's signals at the end, if a loop has set its own.

    Args:
        are_ignored (bool): Ignore them instead. Defaults to ``False``.
    """
    before = {signum: signal.getsignal(signum) for signum in (*HANDLED, signal.SIGCHLD)}
    if are_ignored:
        before.update(dict.fromkeys(HANDLED, signal.SIG_IGN))
    try:
        yield
    finally:
        for signum, handler in before.items():
            is_ours = getattr(signal.getsignal(signum), "__func__", None) is Loop.on_signal
            if is_ours and handler is not None:
                signal.signal(signum, handler)


@contextmanager
def frozen_heap() -> Iterator[None]:
    """Exclude all present objects from garbage collection, which would delay an exit or a signal by 20 ms."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class LoopHost(CommandHandler, ProcessTable, Protocol):
    """The manager, as its loop uses it."""

    monitor_publisher: Any
    monitor_subscriber: Any

    @property
    def listening_sockets(self) -> list[socket]:
        """The sockets that the servers listen on."""

    @property
    def transient_processes(self) -> Iterator[WorkerProcess]:
        """The processes of the transient workers."""

    def shutdown_signal(self, signal: int, frame: Any) -> None:
        """Stop the server after a signal."""


class Loop:
    """Waits for events, and passes them to the supervisor and to the commands.

    Args:
        manager (LoopHost): Its verbs are called.
        supervisor (Supervisor): Watches its processes.

    Attributes:
        delayed_stop: Stops the server on request, after the drain delay.
        upgrade: Starts another main process, which takes the place of this one.
    """

    def __init__(self, manager: LoopHost, supervisor: Supervisor) -> None:
        self._manager = manager
        self._supervisor = supervisor
        self._monitor: MonitorProtocol | None = None
        self._thread: int | None = None
        self._wakeup_before: int | None = None
        self._signals: deque[int] = deque()
        self._calls: deque[Callable[[], None]] = deque()
        self._backlog: deque[Event] = deque()
        self._commands = Commands(manager, supervisor, self._name_of, self._may_be_ended)
        self._terminal = Terminal()
        self._reaper = Reaper()
        self._sockets: list[socket] = []
        self.delayed_stop = DelayedStop(supervisor, manager.worker_state, manager.settings.drain_delay)
        self.upgrade = Upgrade(manager, supervisor, lambda: self.stop_asked or self.delayed_stop.is_waiting)
        self._duties: list[Duty] = []

    @property
    def is_open(self) -> bool:
        """Whether the loop reads the control channel and handles signals."""
        return self._monitor is not None

    @property
    def is_over(self) -> bool:
        """Whether the loop has to end."""
        return self._supervisor.phase.is_over

    @property
    def stop_asked(self) -> bool:
        """Whether a stop was requested, begun or not."""
        return self.is_over or self._stop_is_queued

    @property
    def can_be_woken(self) -> bool:
        """Whether a signal ends a wait: the control channel has a file descriptor."""
        return fileno(self._manager.monitor_publisher) is not None

    @property
    def _stop_is_queued(self) -> bool:
        return any(signum in STOPS for signum in [*self._signals])

    def open(self) -> None:
        """Begin to read the control channel and to handle signals. Another call does nothing."""
        if self._monitor is not None:
            return
        self._monitor = open_monitor(self._manager.monitor_subscriber, self._supervisor.notify_fd)
        self._thread = threading.get_ident()
        self._supervisor.open(self._monitor)
        others = duties(self._manager, self._supervisor, lambda: self.delayed_stop.is_waiting)
        # The preloading comes last: it may wait for an answer.
        self._duties = [self.delayed_stop, self.upgrade, *others, self._supervisor.preloading]
        descriptors.close_in_children(self._monitor)
        descriptors.close_in_children(self._manager.monitor_subscriber)
        self._sockets = self._manager.listening_sockets
        for sock in self._sockets:
            descriptors.close_in_children(sock, servers_too=True)
        wakeup = getattr(self._monitor, "wakeup_fd", None)
        if wakeup is not None and threading.current_thread() is threading.main_thread():
            self._wakeup_before = signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)

    def close(self) -> None:
        """Wait for killed processes, then release channel and signals. Every state is final then."""
        if self._monitor is None:
            return
        self._supervisor.close()
        if self._wakeup_before is not None:
            signal.set_wakeup_fd(self._wakeup_before)
        # From here on, a signal must find no monitor to wake.
        monitor, self._monitor = self._monitor, None
        self._thread = self._wakeup_before = None
        descriptors.forget(monitor)
        descriptors.forget(self._manager.monitor_subscriber)
        while self._sockets:
            descriptors.forget(self._sockets.pop())
        monitor.close()
        self._commands.throttle.flush()

    def take_signals(self) -> None:
        """Handle the signals of the main process; a request that was ignored stays ignored."""
        # A handler only queues the signal. The loop handles it, never in the middle of another action.
        for signum in filter(may_take, HANDLED):
            signal.signal(signum, self.on_signal)
        if init.is_init() and signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL:
            signal.signal(signal.SIGCHLD, self.on_signal)

    def on_signal(self, signum: int, frame: Any) -> None:
        """Queue a signal for the loop; the handler of the main process's signals.

        Before the loop and after it, the queue is not read: there, the second stop signal has its default
        action.
        """
        if signum == signal.SIGCHLD:
            self._reaper.child_exited()
            return
        if not self.is_open and self._stop_is_queued and signum in STOPS:
            init.end(signum)
        self._signals.append(signum)
        self._supervisor.wake()
        if signum in STOPS:
            preloads.interrupt()

    def do(self, call: Callable[[], None]) -> None:
        """Make a call now, or in the thread of the loop if that is another one."""
        if self.is_open and self._supervisor.phase is ServerPhase.STOPPING:
            logger.debug("Command ignored: the server is stopping.")
        elif self._thread in (None, threading.get_ident()):
            call()
        else:
            self._calls.append(call)
            self._supervisor.wake()

    def turn(self, at_most: float | None = None) -> None:
        """Wait for the next events, and handle them."""
        assert self._monitor is not None
        # The backlog is handled before more messages are read. Exits are always read.
        waiting = not self._backlog
        events = coalesce(self._monitor.wait(self._timeout(at_most), waiting))
        self._obey_signals()
        if any(isinstance(event, Exited) for event in events):
            self._supervisor.check_readiness(time.monotonic(), everything=True)
        for event in events:
            if isinstance(event, Exited):
                self._obey_exited(event.pid)
                self._supervisor.on_exit(event.key, event.exitcode)
                self._reaper.exited(event.pid)
            else:
                self._backlog.append(event)
        until = time.monotonic() + SLICE
        while self._backlog and time.monotonic() < until:
            self._obey(self._backlog.popleft())
        while self._calls:
            self._commands.guarded(partial(self.do, self._calls.popleft()), os.getpid())
        now = time.monotonic()
        if now >= self._commands.throttle.flush_at:
            self._commands.throttle.flush()
        self._reaper.settle(now)
        for duty in self._duties:
            if now >= duty.due_at:
                self._commands.guarded(partial(duty.perform, now), os.getpid())
        if self._terminal.has_hung_up(now) and not self.is_over:
            self._manager.shutdown_signal(signal.SIGHUP, None)
        if self._supervisor.needs_reconcile(now):
            self._supervisor.reconcile()

    def wait_until_ready(self, seconds: float) -> str:
        """Wait until every server has acknowledged its start; commands meanwhile are executed after that.

        Args:
            seconds (float): How long that may take.

        Returns:
            str: Why the start has failed; empty if it has not, or if a stop came first.
        """
        deadline = time.monotonic() + seconds
        self._supervisor.begin_start()
        while not self.stop_asked and (slow := [*self._unacked()]):
            left = deadline - time.monotonic()
            if left <= 0 and self._supervisor.can_wait_for_change:
                deadline = math.inf
                for process in slow:
                    self._supervisor.give_up_start(process)
                continue
            if left <= 0:
                names = listed(sorted(process.name for process in slow))
                return (
                    f"{names} did not acknowledge the start within {seconds:g} s. If the application needs "
                    "longer to start, raise WorkerManager.THRESHOLD (in tenths of a second)."
                )
            self.turn(left)
            if self._supervisor.failure and not self.stop_asked:
                return (
                    f"{self._supervisor.failure} If the log does not show the cause, run the application "
                    "with --single-process: it then fails with its own error."
                )
        if self.stop_asked and any(self._unacked()):
            # The signal is handled after this, in the phase RUNNING.
            self.delayed_stop.skip_delay()
        self._supervisor.end_start()
        self._backlog.extendleft(reversed(self._commands.take_deferred()))
        return ""

    def drain(self) -> None:
        """Wait until no process is left."""
        while (self._supervisor.children or self.upgrade.is_under_way) and self.is_open:
            self.turn()

    # Events of one wait

    def _obey(self, event: Event) -> None:
        self._obey_signals()
        if isinstance(event, Received):
            self._commands.obey(event)
        elif isinstance(event, Corrupt):
            self._commands.report_corrupt(event)

    def _obey_exited(self, pid: int) -> None:
        """Execute the commands of a process that has exited; those of other processes can wait."""
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
            if signum in STOPS or (signum == RELOAD and not self.is_over and self._terminal.hangs_up()):
                self._manager.shutdown_signal(signum, None)
            elif signum == REOPEN:
                reopen(self._supervisor.children)
            elif not self.is_over:
                name = signal.Signals(signum).name
                logger.info("Received signal %s.", name)
                self._commands.obey(Received(self._meaning_of(signum, name), os.getpid()))

    def _meaning_of(self, signum: int, name: str) -> Command:
        command: Command = ScaleBy(1 if signum == MORE else -1)
        if signum == UPGRADE:
            command = messages.Upgrade()
        elif signum == RELOAD:
            command = Restart(None, order=RestartOrder.STARTUP_FIRST)
        return Requested(command, "", f"signal {name}", 0.0)

    # Deadlines

    def _unacked(self) -> Iterator[WorkerProcess]:
        for process in self._manager.transient_processes:
            # A process that could not be started is tried again after its backoff.
            if process.is_server and (
                process.state in UNACKED or self._supervisor.slot_phase(process) is Phase.BACKOFF
            ):
                yield process

    def _timeout(self, at_most: float | None) -> float | None:
        """Return the seconds until the next deadline; ``None`` if there is none."""
        if self._backlog or self._calls or self._signals or self._supervisor.has_events:
            return 0.0
        others = (self._commands.throttle.flush_at, self._terminal.check_at, self._reaper.due)
        deadline = min(self._supervisor.reconcile_at, *others, *(duty.due_at for duty in self._duties))
        left = min(max(0.0, deadline - time.monotonic()), math.inf if at_most is None else at_most)
        return None if left == math.inf else left

    def _may_be_ended(self) -> bool:
        """Return whether an empty message ends the loop: only if a signal cannot wake it."""
        return isinstance(self._monitor, ConnectionMonitor)

    def _name_of(self, pid: int | None) -> str:
        """Return the name of the sender of a message."""
        if pid is None:
            return "an unknown process"
        if pid == os.getpid():
            return MAIN_NAME
        child = self._supervisor.children.by_pid(pid)
        return f"process {pid}" if child is None else str(child)
