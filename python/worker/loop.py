"""The loop of main: one wait for messages, exits and signals, and what each of them leads to."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

from sanic.log import error_logger, logger

from worker import launch
from worker.commands import Commands, coalesce
from worker.constants import MAIN_NAME, ProcessState
from worker.inbox import ConnectionMonitor, Waiting, open_monitor
from worker.messages import Corrupt, Event, Exited, Received
from worker.news import News
from worker.process import Worker, WorkerProcess
from worker.state import shared
from worker.watched import Watched, how_it_ended

if TYPE_CHECKING:
    from worker.manager import WorkerManager

__all__ = ["Loop", "in_the_loop"]

Verb = TypeVar("Verb", bound=Callable[..., None])

STARTING = (ProcessState.STARTING, ProcessState.STARTED)
ACKED = ProcessState.ACKED

# How long is obeyed before it is looked for exits again, seconds.
SLICE = 0.004
# How long the end of killed processes is waited for, seconds: only a hung kernel takes longer.
KILL_TIMEOUT = 5.0


def in_the_loop(verb: Verb) -> Verb:
    """Hand a verb of the manager to the running loop when another thread calls it."""

    @wraps(verb)
    def call(manager: WorkerManager, *args: Any, **kwargs: Any) -> None:
        manager._loop.do(partial(verb, manager, *args, **kwargs))

    return cast(Verb, call)


class Loop:
    """What the manager's :meth:`~worker.manager.WorkerManager.monitor` runs.

    Args:
        manager (WorkerManager): Whose verbs are called.
    """

    def __init__(self, manager: WorkerManager) -> None:
        self._manager = manager
        self._monitor: Waiting | None = None
        self._thread: int | None = None
        self._wakeup_before: int | None = None
        self._signals: deque[int] = deque()
        self._calls: deque[Callable[[], None]] = deque()
        self._backlog: deque[Event] = deque()
        self._commands = Commands(self, manager)
        self._news = News(manager.worker_state)
        self._watched: dict[str, Watched] = {}
        self.starting = False
        self._unsettled = False
        self._settle_at = math.inf
        self._stopped = False
        self._failure = ""

    @property
    def at_work(self) -> bool:
        """Whether the pipe and the signals are taken, and processes are watched."""
        return self._monitor is not None

    @property
    def ended(self) -> bool:
        """Whether the loop is to be left."""
        return self._stopped or self._manager._shutting_down

    @property
    def stop_asked(self) -> bool:
        """Whether a stop is on its way, obeyed or not."""
        return self.ended or bool(self._signals)

    @property
    def may_be_left(self) -> bool:
        """Whether an empty message ends it: only where nothing else can wake it."""
        return isinstance(self._monitor, ConnectionMonitor)

    def leave(self) -> None:
        """Let :meth:`turn` be the last one."""
        self._stopped = True

    def open(self) -> None:
        """Take the pipe and the signals; again: nothing."""
        if self._monitor is not None:
            return
        self._monitor = open_monitor(self._manager.monitor_subscriber, self._news.bell)
        self._thread = threading.get_ident()
        launch.own(self._monitor)
        launch.own(self._manager.monitor_subscriber)
        wakeup = getattr(self._monitor, "wakeup_fd", None)
        if wakeup is not None and threading.current_thread() is threading.main_thread():
            self._wakeup_before = signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)

    def close(self) -> None:
        """Wait for what was killed, let go of pipe and signals; every state is final then."""
        if self._monitor is None:
            return
        deadline = time.monotonic() + KILL_TIMEOUT
        for watched in self._watched.values():
            watched.base.join(max(0.0, deadline - time.monotonic()))
            if watched.current and watched.process.state < ProcessState.TERMINATED:
                watched.process.set_state(ProcessState.FAILED, force=True)
        if self._wakeup_before is not None:
            signal.set_wakeup_fd(self._wakeup_before)
        # A signal that comes now finds nothing to wake.
        monitor, self._monitor = self._monitor, None
        self._thread = self._wakeup_before = None
        launch.disown(monitor)
        launch.disown(self._manager.monitor_subscriber)
        monitor.close()
        self._watched.clear()
        self._commands.complaints.sum_up()

    def watch(self, process: WorkerProcess) -> None:
        """Wait for the end of the process that has just been started in this place, and for its ack."""
        assert self._monitor is not None
        base = process._current_process
        sentinel = getattr(base, "sentinel", None)
        if type(base.pid) is int and type(sentinel) is int:
            watched = Watched(process, base, time.monotonic() + process.THRESHOLD / 10)
            self._watched[str(watched)] = watched
            self._monitor.watch(str(watched), base.pid, sentinel)

    def moved(self, process: WorkerProcess) -> None:
        """Look, as soon as all else is done, what follows from the new state of a process."""
        self._unsettled = True

    def on_signal(self, signum: int, frame: Any) -> None:
        """The handler of main's signals: queue it for the loop.

        Before the loop and after it nobody looks: there the second one takes its default action.
        """
        if self._signals and not self.at_work:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        self._signals.append(signum)
        self._wake()

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
            self._hear(time.monotonic(), everything=True)
        for event in events:
            if isinstance(event, Exited):
                self._obey_dead(event.pid)
                self._exited(self._watched.pop(event.key), event.exitcode)
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
        if self._unsettled or now >= self._settle_at or self._news.has_come():
            self._settle(now)

    def wait_until_ready(self, seconds: float) -> str:
        """Wait until every server is acked; commands that come meanwhile are obeyed after that.

        Args:
            seconds (float): How long that may take.

        Returns:
            str: Why it cannot be reached; empty when it was, or when a stop came first.
        """
        deadline = time.monotonic() + seconds
        self.starting = True
        while not self.stop_asked and (slow := [*self._unacked()]):
            left = deadline - time.monotonic()
            if left <= 0:
                names = ", ".join(sorted(process.name for process in slow))
                return (
                    f"No word of {names} within the allowed time, which is {seconds} seconds. It is set by "
                    "WorkerManager.THRESHOLD, in tenths of a second."
                )
            self.turn(left)
            if self._failure and not self.stop_asked:
                return (
                    f"{self._failure} Where the log does not say why, run the application with "
                    "--single-process, so that nothing stands between you and its error."
                )
        self.starting = False
        self._backlog.extendleft(reversed(self._commands.take_deferred()))
        return ""

    def drain(self) -> None:
        """Wait until no process is left."""
        while self._watched and self._monitor is not None:
            self.turn()

    def forget(self, worker: Worker) -> None:
        """Drop the entries of a dismissed worker's processes that are gone; the others' at their end."""
        alive = {watched.process for watched in self._watched.values()}
        if self._monitor is not None:
            for process in worker.processes - alive:
                process.forget()

    def kill(self) -> None:
        """Kill every process with its children, also those that have left the table."""
        for watched in self._watched.values():
            watched.kill()

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
            self._manager.shutdown_signal(self._signals.popleft(), None)

    def fails_to_start(self, what: str, is_server: bool) -> None:
        """A process says, or has shown, that it cannot start: while the servers start, none may fail."""
        if self.starting and is_server:
            self._failure = self._failure or what
        else:
            error_logger.error("%s", what)

    def _exited(self, watched: Watched, exitcode: int | None) -> None:
        self._unsettled = True
        process = watched.process
        begun = launch.has_begun(watched.base)
        code = launch.reap(watched.base)
        how = how_it_ended(exitcode if code is None else code)
        if not watched.current:
            if watched.base is process.predecessor:
                error_logger.error("%s %s while its successor was starting", watched, how)
                process.lose_predecessor()
        elif process.predecessor is not None:
            error_logger.error("%s %s before it was ready; its predecessor stays", watched, how)
            process.take_back()
        elif not watched.leaving:
            self._died(watched, code, how, begun)
        process.left(watched.base.pid)
        shared(self._manager.worker_state).bury(watched.base.pid)
        self._retire(process)

    def _died(self, watched: Watched, code: int | None, how: str, begun: bool) -> None:
        """Nobody had told this one to leave; once a stop is asked for, any end is expected."""
        process = watched.process
        process.set_state(ProcessState.FAILED if code else ProcessState.COMPLETED, force=True)
        if self.starting and process.is_server:
            why = "" if begun else f" {launch.NOT_BEGUN}"
            self.fails_to_start(f"{watched} {how} before it was ready.{why}", True)
        elif (code or process.is_server) and not self.ended:
            error_logger.error("%s %s", watched, how)
        else:
            logger.debug("%s %s", watched, how)

    def _retire(self, process: WorkerProcess) -> None:
        """Forget a process that has ended and is not to be seen any more."""
        worker = next((one for one in self._manager.workers if process in one.processes), None)
        if worker is None:
            if not any(watched.process is process for watched in self._watched.values()):
                process.forget()
        elif not worker.tracked and not worker.has_alive_processes() and not self.ended:
            self._manager.remove_worker(worker)

    # What is waited for

    def _unacked(self) -> Iterator[WorkerProcess]:
        for process in self._manager.processes:
            if process.is_server and process.state in STARTING:
                yield process

    def _starting(self) -> list[Watched]:
        return [one for one in self._watched.values() if one.current and one.process.state in STARTING]

    def _hear(self, now: float, everything: bool = False) -> None:
        """Look for the acks that are awaited."""
        starting = self._starting()
        names = self._news.take(now, everything) if starting else ()
        for process in (one.process for one in starting if one.process.name in names):
            said = self._news.said(process)
            if said.get("state") == ACKED.name or said.get("serving"):
                process.acked()

    def _settle(self, now: float) -> None:
        """Let successors take over, hasten those who are leaving, and see when to look again."""
        self._unsettled = False
        self._hear(now)
        for watched in list(self._watched.values()):
            process = watched.process
            if watched.current and process.predecessor is not None and process.state in (*STARTING, ACKED):
                self._hand_over(watched, now)
        awaited = [one for one in self._starting() if one.process.is_server]
        deadlines = [one.ready_by for one in awaited if one.process.predecessor is not None]
        if awaited:
            deadlines.append(self._news.expect(now))
        else:
            self._news.ignore()
        deadlines += [self._hasten(watched, now) for watched in self._watched.values() if watched.leaving]
        self._settle_at = min(deadlines, default=math.inf)

    def _hand_over(self, watched: Watched, now: float) -> None:
        process = watched.process
        if process.state is ACKED or not process.is_server:
            process.hand_over()
        elif now >= watched.ready_by:
            error_logger.error(
                "Worker %s failed to come ack within %s seconds; its predecessor stays",
                process.name,
                process.THRESHOLD / 10,
            )
            process.take_back()
            watched.kill()

    def _hasten(self, watched: Watched, now: float) -> float:
        """Tell one who is leaving again, or kill it, when it is time to; return when that is next."""
        if watched.told is None:
            watched.told = now
            watched.again = now + launch.TELL_AGAIN if watched.hears_repeats else math.inf
        killed_at = watched.told + self._manager.settings.graceful_timeout
        if now >= killed_at:
            error_logger.error(
                "%s did not end within %s seconds; killing it",
                watched,
                self._manager.settings.graceful_timeout,
            )
            killed_at = watched.told = watched.again = math.inf
            watched.kill()
        elif now >= watched.again:
            watched.again = now + launch.TELL_AGAIN
            watched.signal(signal.SIGINT)
        return min(killed_at, watched.again)

    def _timeout(self, at_most: float | None) -> float | None:
        """Seconds until the next deadline; ``None`` where nothing but events is waited for."""
        if self._backlog or self._calls or self._signals or self._unsettled:
            return 0.0
        deadline = min(self._settle_at, self._commands.complaints.until)
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
        watched = self._by_pid(pid)
        return f"process {pid}" if watched is None else str(watched)

    def _by_pid(self, pid: int | None) -> Watched | None:
        return next((watched for watched in self._watched.values() if watched.base.pid == pid), None)

    def is_server(self, pid: int | None) -> bool:
        """Whether a message of this sender is a server's; where the sender is not known, it may be."""
        watched = self._by_pid(pid)
        return watched is None or watched.process.is_server
