"""Watches over the processes of a manager: who is ready, who is late, who has ended, who leaves slowly."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from sanic.log import error_logger, logger

from worker._spawn import liveness, preload, processes
from worker._state.foreign import shared
from worker._state.shared import SharedState
from worker._supervisor.child import Watched
from worker._supervisor.lifecycle import Lives
from worker._supervisor.operations import Kind, Operation
from worker._supervisor.rollout import NEWCOMER
from worker._supervisor.state_watcher import News
from worker.constants import Happening, Phase, ProcessState, RestartOrder
from worker.process import Worker, WorkerProcess

if TYPE_CHECKING:
    from worker._control.receive import Waiting
    from worker.manager import WorkerManager

__all__ = ["Overseer"]

# How long the end of killed processes is waited for, seconds: only a hung kernel takes longer.
KILL_TIMEOUT = 5.0


class Overseer:
    """Turns what is seen of processes into what happens to their places; :class:`Lives` knows what follows.

    Args:
        manager (WorkerManager): Whose places they are.

    Attributes:
        starting: Whether the servers start for the first time: then none may fail, unless a reloader runs.
        gave_up: Whether no server was left that could run.
        settle_at: When to :meth:`settle` again, on the monotonic clock; ``inf``: when something happens.
    """

    def __init__(self, manager: WorkerManager) -> None:
        self._manager = manager
        self._news = News(manager.worker_state)
        self._lives = Lives(
            self._places, manager.settings, time.monotonic, random.random, self.lives_in, self._accepts
        )
        self._monitor: Waiting | None = None
        self._watched: dict[str, Watched] = {}
        self._unsettled = False
        self._waits_for_change = False
        self.settle_at = math.inf
        self.starting = False
        self._failure = ""
        self.gave_up = False

    @property
    def at_work(self) -> bool:
        """Whether processes are watched."""
        return self._monitor is not None

    @property
    def bell(self) -> int | None:
        """What becomes readable when there is news in the state of the processes."""
        return self._news.bell

    def open(self, monitor: Waiting) -> None:
        """Watch from now on."""
        self._monitor = monitor

    def close(self) -> None:
        """Wait for what was killed; every state is final then."""
        deadline = time.monotonic() + KILL_TIMEOUT
        for watched in self._watched.values():
            watched.base.join(max(0.0, deadline - time.monotonic()))
            if watched.current and watched.place.state < ProcessState.TERMINATED:
                watched.place.set_state(ProcessState.FAILED, force=True)
        self._monitor = None
        self._watched.clear()
        preload.forget()

    # What places tell it

    def watch(self, place: WorkerProcess) -> None:
        """Wait for the end of the process that has just been started in this place, and until it is ready."""
        assert self._monitor is not None
        base, now = place._current_process, time.monotonic()
        limit = self.start_limit(place)
        sentinel = getattr(base, "sentinel", None)
        if type(base.pid) is int and type(sentinel) is int:
            watched = Watched(place, base, now, now + limit, limit)
            if not place.is_server:
                watched.ready = now
            self._watched[str(watched)] = watched
            self._monitor.watch(str(watched), base.pid, sentinel)
        self._lives.happens(place, Happening.STARTED)

    def moved(self, place: WorkerProcess) -> None:
        """Look, as soon as all else is done, what follows from the new state of a place."""
        self._unsettled = True
        if self.at_work and place.state is ProcessState.TERMINATED:
            self._lives.happens(place, Happening.STOP)

    def stops(self, process: Any, signum: int) -> bool:
        """Take note that a process is about to be sent a signal to stop; return whether it is the first one.

        One that is sent while Sanic sets up its handlers is lost. The state shows when they are in place.
        """
        watched = next((one for one in self._watched.values() if one.base is process), None)
        if watched is None:
            return True
        if watched.told is not None:
            return False
        watched.told = time.monotonic()
        is_shown = isinstance(self._manager.worker_state, SharedState)
        if is_shown and not self._numbers(watched).get("stoppable"):
            watched.lost = signum
        return True

    def wish(self, place: WorkerProcess, order: RestartOrder, config: Mapping[str, Any]) -> None:
        """Restart a place when it is its turn; from any thread."""
        self._manager._loop.do(partial(self._wish, place, order, config))

    def begun(self, kind: Kind) -> AbstractContextManager[Operation | None]:
        """Let what is asked for in the body be one operation, whose outcome is logged."""
        return self._lives.begun(kind) if self.at_work else nullcontext()

    def start(self, place: WorkerProcess, operation: Operation | None = None) -> None:
        """Start the first process of a place.

        Raises:
            Exception: The process cannot be started at all; where the system refuses it, it is tried again.
        """
        if self.at_work:
            self._lives.start(place, operation)
        else:
            place.start()

    def removes(self, place: WorkerProcess) -> None:
        """A place is given up: count it as part of the operation that is being asked for."""
        self._lives.operations.removes(place)

    def stop(self) -> None:
        """Stop every process, and start none any more, whatever happens from now on."""
        self._lives.stop()

    def halt(self) -> None:
        """Start nothing any more, whatever happens from now on."""
        self._lives.halt()

    def start_limit(self, place: type[WorkerProcess] | WorkerProcess = WorkerProcess) -> float:
        """How long a start may take until the process is ready, seconds."""
        return max(self._manager.THRESHOLD, place.THRESHOLD) / 10

    def order_of_reload(self, order: RestartOrder, files: str) -> RestartOrder:
        """The order of a restart because of changed files: code that does not start is to stop nobody."""
        preload.invalidate_if_changed(files.split(","))
        if self.at_work and order is RestartOrder.SHUTDOWN_FIRST:
            return self._manager.settings.reload_order
        return order

    def revive(self) -> int:
        """Start the servers anew that were given up; return how many."""
        failed = [place for place in self._places() if place.is_server and place.life.phase is Phase.FAILED]
        for place in failed:
            logger.info("%s is started again", place.name)
            place.restart()
        return len(failed)

    def _wish(self, place: WorkerProcess, order: RestartOrder, config: Mapping[str, Any]) -> None:
        self._lives.wish(place, order, config)
        self._unsettled = True

    # What the loop asks of it

    def wants_a_look(self, now: float) -> bool:
        """Whether something has happened, or it is time, to :meth:`settle`."""
        return self._unsettled or now >= self.settle_at or self._news.has_come()

    @property
    def is_unsettled(self) -> bool:
        """Whether something has happened that nobody has looked at."""
        return self._unsettled

    def start_begins(self) -> None:
        """The servers start for the first time."""
        self.starting = True
        self._lives.waits_for_change = self.can_wait_for_change

    @property
    def can_wait_for_change(self) -> bool:
        """Whether a process runs that brings changes of the code."""
        return any(map(_brings_changes, self._places()))

    @property
    def failure(self) -> str:
        """Why the first start has failed; empty if it has not."""
        if self._failure or self.can_wait_for_change:
            return self._failure
        failed = (place.life for place in self._places() if place.is_server)
        return next((str(life.last_death) for life in failed if life.phase is Phase.FAILED), "")

    def give_up(self, place: WorkerProcess) -> None:
        """A process has taken too long to start."""
        for watched in self._starting():
            if watched.place is place:
                self._abandon(watched)

    def start_is_over(self) -> None:
        """The servers are up; from now on each is a case of its own."""
        self.starting = self._lives.waits_for_change = False
        self._unsettled = True
        if self.can_wait_for_change:
            processes.warm_up(self._manager.context)

    def has_processes(self) -> bool:
        """Whether any process lives, or has not been collected."""
        return bool(self._watched)

    def lives_in(self, place: WorkerProcess) -> bool:
        """Whether a process lives in a place, or has not left it altogether."""
        return any(watched.place is place for watched in self._watched.values())

    def by_pid(self, pid: int | None) -> Watched | None:
        """The process of this number, if it is one of ours."""
        return next((watched for watched in self._watched.values() if watched.base.pid == pid), None)

    def kill(self) -> None:
        """Kill every process with its children, also those that have left the table."""
        for watched in self._watched.values():
            watched.kill()

    def has_failed(self, pid: int | None, name: str) -> None:
        """A process, of this name, says that it cannot start."""
        watched = self.by_pid(pid)
        what = f"{name} failed to start; its error is in the log above."
        if self.starting and not self.can_wait_for_change and (watched is None or watched.place.is_server):
            self._failure = self._failure or what
        elif watched is not None and watched.place.is_server and watched.ready == math.inf:
            # Its death is on its way, and is reported then.
            watched.error = watched.error or "its error is in the log above"
        else:
            error_logger.error("%s", what)

    def exited(self, key: str, exitcode: int | None) -> None:
        """A process has ended."""
        watched = self._watched[key]
        place, base = watched.place, watched.base
        begun = liveness.has_begun(base)
        # Before it is collected: until then nobody else can bear its number.
        watched.end_group()
        code = liveness.reap(base)
        if watched.ready == math.inf:
            said = place.said(base.pid) or (place.said() if watched.current else {})
            watched.error = said.get("start_error") or watched.error
        others = any(one.place is place and one is not watched for one in self._watched.values())
        death = watched.death(exitcode if code is None else code, time.monotonic(), others)
        if base is place.predecessor:
            what = Happening.PREDECESSOR_DIED
        else:
            what = Happening.DIED if watched.current else Happening.LEFT
        failed = what is Happening.DIED and place.is_server and place.state < ProcessState.ACKED
        if self.starting and failed and not self.can_wait_for_change:
            self._failure = self._failure or f"{death}." + ("" if begun else f" {processes.NOT_BEGUN}")
            self._lives.halt()
        del self._watched[key]
        self._lives.happens(place, what, death)
        place.left(base.pid, place.life.phase is Phase.READY)
        shared(self._manager.worker_state).bury(base.pid)
        self._retire(place)
        self._unsettled = True

    def hear(self, now: float, everything: bool = False) -> None:
        """Look for what is awaited of those who start."""
        starting = self._starting()
        names = self._news.take(now, everything) if starting or self._may_be_lost() else ()
        for watched in starting:
            if watched.place.name not in names:
                continue
            said = self._news.said(watched.place)
            watched.serves = bool(said.get("serving"))
            has_acked = watched.serves or said.get("state") == ProcessState.ACKED.name
            if has_acked and watched.place.state < ProcessState.ACKED:
                watched.place.acked()

    def settle(self) -> None:
        """Do what it is time for, and see when to look again."""
        self._unsettled = False
        now = time.monotonic()
        self.hear(now)
        for watched in self._starting():
            self._look_at(watched, now)
        self._lives.go_on()
        self._see_who_serves()
        awaited = [watched for watched in self._starting() if watched.place.is_server]
        deadlines = [self._lives.due]
        if not self.starting:
            deadlines += [watched.ready_by for watched in awaited]
        leaving = [watched for watched in self._watched.values() if watched.leaving]
        for watched in leaving:
            self._tell_again(watched)
        if awaited or self._lives.operations or self._may_be_lost():
            deadlines.append(self._news.expect(now))
        else:
            self._news.ignore()
        deadlines += [self._hasten(watched, now) for watched in leaving]
        self.settle_at = min(deadlines, default=math.inf)

    def _places(self) -> list[WorkerProcess]:
        return [place for worker in self._manager.workers for place in worker.processes]

    def _starting(self) -> list[Watched]:
        return [
            watched
            for watched in self._watched.values()
            if watched.current and watched.place.life.phase in NEWCOMER
        ]

    def _look_at(self, watched: Watched, now: float) -> None:
        place = watched.place
        if watched.serves or not place.is_server:
            self._lives.happens(place, Happening.READY, watched)
        elif now >= watched.ready_by and not self.starting:
            if place.state is not ProcessState.ACKED:
                self._abandon(watched)
                return
            logger.warning(
                "%s has acked its start, but does not say that it serves; after %g s it counts as ready",
                watched,
                watched.limit,
            )
            self._lives.happens(place, Happening.READY, watched)

    def _abandon(self, watched: Watched) -> None:
        watched.error = f"it failed to come ack within {watched.limit:g} seconds"
        self._lives.happens(watched.place, Happening.LATE, watched)

    def _see_who_serves(self) -> None:
        """Once no server is left that could run, end, or wait for a change of the code."""
        if self.starting or self._lives.stopped or self._lives.is_served():
            self._waits_for_change = False
        elif self.can_wait_for_change:
            if not self._waits_for_change:
                error_logger.error("No worker is left that could run; waiting for the next change of a file")
            self._waits_for_change = True
        else:
            error_logger.error("No worker is left that could run. Shutting down.")
            self.gave_up = True
            self._manager.shutdown()

    def _retire(self, place: WorkerProcess) -> None:
        """Forget a process that has ended and is not to be seen any more."""
        worker = self._worker_of(place)
        if worker is None:
            if not self.lives_in(place):
                place.forget()
        elif not worker.tracked and not self._manager._loop.ended and all(map(_has_ended, worker.processes)):
            self._manager.remove_worker(worker)

    def _accepts(self, place: WorkerProcess) -> bool:
        """Whether a process of a place that was told to leave may still accept connections."""
        return place.is_server and any(
            watched.place is place and watched.leaving and not self._numbers(watched).get("stopping")
            for watched in self._watched.values()
        )

    def _worker_of(self, place: WorkerProcess) -> Worker | None:
        return next((one for one in self._manager.workers if place in one.processes), None)

    def _hasten(self, watched: Watched, now: float) -> float:
        """Kill one who is leaving when it is time to; return when that is."""
        grace = self._manager.settings.graceful_timeout
        if watched.told is None:
            watched.told = now
        if now >= watched.told + grace:
            error_logger.error("%s did not end within %s seconds; killing it", watched, grace)
            watched.told = math.inf
            watched.kill()
        return watched.told + grace

    def _tell_again(self, watched: Watched) -> None:
        """Repeat a signal that may be lost, once, as soon as it cannot be lost any more."""
        numbers = self._numbers(watched) if watched.lost else {}
        if numbers.get("stopping"):
            watched.lost = 0
        elif numbers.get("stoppable"):
            watched.signal(watched.lost)
            watched.lost = 0

    def _may_be_lost(self) -> bool:
        return any(watched.lost for watched in self._watched.values())

    def _numbers(self, watched: Watched) -> Mapping[str, Any]:
        return shared(self._manager.worker_state).numbers(watched.base.pid)


def _brings_changes(place: WorkerProcess) -> bool:
    return getattr(place.target, "is_reloader", False) is True and not _has_ended(place)


def _has_ended(place: WorkerProcess) -> bool:
    """Whether no process is there, nor is to come by itself."""
    return place.life.phase in (Phase.STOPPED, Phase.FAILED) and not place.is_alive()
