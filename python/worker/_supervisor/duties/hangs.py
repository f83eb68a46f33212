"""Finds servers that hang, logs their stacks, and replaces them."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from sanic.log import error_logger, logger

from worker._child.heartbeat import longest_pause
from worker._supervisor import replacement, reports
from worker._supervisor.duties import hang_policy
from worker._supervisor.duties.hang_policy import Cause, Facts, Progress
from worker._system import cgroup, proc
from worker._system.stacks import Collection, Stacks

if TYPE_CHECKING:
    from worker._state.shared import SharedState
    from worker._supervisor.child import ChildProcess
    from worker._supervisor.supervisor import Supervisor

__all__ = ["HangWatch"]

# How long the interpreter of a server may take to answer, seconds, and how often its answer is looked for.
PATIENCE, POLL = 1.5, 0.05
# How long a server that has answered may take to beat, seconds, but no more than a tenth of the limit: it may
# have been suspended together with the main process, and just run again.
SETTLE = 1.0
# How long a server with a blocked event loop may take to stop after the handover, seconds.
GRACE = 3.0
# The end of the line of a request whose handler blocks the event loop, in the stacks of a server.
RUNNING = ", running in the main thread"


class _Stage(Enum):
    """The stage of a server on the way from its last beat to its replacement."""

    BEATING = auto()
    ASKED = auto()
    DEBUGGED = auto()
    HUNG = auto()
    REPLACED = auto()


@dataclass
class _Question:
    """A question to a server, and the facts at that time.

    Attributes:
        at: The time.
        beat: The last beat of the server.
        lost: The time in which the server could not run by then.
        state: The state of its main thread.
        tracer: The debugger that traced it; 0 if there was none.
        collection: Collects its stacks.
        stacks: The stacks, once they are complete.
    """

    at: float
    beat: float
    lost: float
    state: str
    tracer: int
    collection: Collection
    stacks: Stacks | None = None


@dataclass
class _Server:
    """The knowledge of one server.

    Attributes:
        progress: Its progress at the last look.
        stage: Its stage.
        question: The last question to it.
        cause: Why it hangs.
        debugger: The debugger at work in it, if it makes no progress for that.
        attempts: The number of its replacements that have failed.
        retry_at: When the next one may begin.
    """

    progress: Progress
    stage: _Stage = _Stage.BEATING
    question: _Question | None = None
    cause: Cause = Cause.LOOP
    debugger: str = ""
    attempts: int = 0
    retry_at: float = -math.inf


class HangWatch:
    """Looks at the beats of all servers at once, at most once in ``hang_timeout``.

    If a beat is late, it looks again when that server's limit is over. A server that has not beaten by then
    is asked for its stacks. If it still does not beat, it hangs.

    Args:
        supervisor (Supervisor): Knows the processes.
        state (SharedState): Has the beats, and the answers of the servers.
        limit (float): The setting ``hang_timeout``, seconds.
    """

    def __init__(self, supervisor: Supervisor, state: SharedState, limit: float) -> None:
        self._supervisor = supervisor
        self._state = state
        self._limit = limit
        self._pause = longest_pause(limit)
        self._cgroup = cgroup.own()
        # A reference to a process that has exited would keep its descriptors open until the next look.
        self._servers: WeakKeyDictionary[ChildProcess, _Server] = WeakKeyDictionary()
        self._planned = time.monotonic() + limit
        self._waited, self._suspended = _waited_and_suspended()

    @property
    def due_at(self) -> float:
        """When to look again; at once if a replacement may begin, or has failed."""
        stages = (_Stage.HUNG, _Stage.REPLACED)
        waiting = {child: server for child, server in self._servers.items() if server.stage in stages}
        if waiting and replacement.may_replace(self._supervisor):
            ready = replacement.ready_servers(self._supervisor)
            return min([self._planned, *(waiting[child].retry_at for child in ready if child in waiting)])
        return self._planned

    def perform(self, now: float) -> None:
        """Look at all servers, and replace one that hangs."""
        starts_anew = self._was_away(now)
        # An error below must not have this called again at once.
        self._planned = now + self._limit
        ready = replacement.ready_servers(self._supervisor)
        throttled = self._cgroup.throttled_seconds()
        for child in [*ready, *replacement.starting_servers(self._supervisor)]:
            self._look(child, now, throttled, starts_anew)
        if replacement.may_replace(self._supervisor):
            known = [(child, self._servers[child]) for child in ready if child in self._servers]
            self._replace_one(known, now)
        looks = [self._next_look(server, now) for server in self._servers.values()]
        self._planned = min([self._planned, *looks])

    def _was_away(self, now: float) -> bool:
        """Return whether the main process was away since the last look."""
        waited, suspended = _waited_and_suspended()
        more = waited - self._waited, suspended - self._suspended
        self._waited, self._suspended = waited, suspended
        return hang_policy.is_late(self._planned, now, *more, self._pause)

    def _next_look(self, server: _Server, now: float) -> float:
        if server.stage is _Stage.ASKED:
            return now + POLL
        if server.stage is _Stage.BEATING:
            return hang_policy.next_look(server.progress, self._limit, self._pause)
        return math.inf

    def _look(self, child: ChildProcess, now: float, throttled: float, starts_anew: bool) -> None:
        pid = child.base.pid
        beat = self._state.last_beat(pid)
        if beat is None:
            # Its start has a limit of its own.
            return
        server = self._servers.get(child)
        before = None if server is None else server.progress
        waited = proc.run_delay(pid) + throttled
        progress = hang_policy.observe(before, now, beat, waited, starts_anew=starts_anew)
        if server is None:
            server = self._servers[child] = _Server(progress)
        elif beat > server.progress.beat and server.stage not in (_Stage.BEATING, _Stage.ASKED):
            server = self._recover(child, server, progress)
        server.progress = progress
        if server.stage is _Stage.ASKED and starts_anew:
            server.stage = _Stage.BEATING
        if server.stage in (_Stage.BEATING, _Stage.DEBUGGED) and now >= hang_policy.deadline(
            progress, self._limit
        ):
            self._ask(child, server, now)
        elif server.stage is _Stage.ASKED:
            self._await_answer(child, server, now)

    def _recover(self, child: ChildProcess, server: _Server, progress: Progress) -> _Server:
        """Let a server that makes progress go on; return what is known of it from now on."""
        if server.stage in (_Stage.HUNG, _Stage.REPLACED):
            text = "%s makes progress again, after %.1f s without. Keeping it."
            logger.warning(text, child, progress.beat - server.progress.beat)
        child.grace, child.is_stuck = math.inf, False
        self._servers[child] = _Server(progress)
        return self._servers[child]

    def _ask(self, child: ChildProcess, server: _Server, now: float) -> None:
        pid = child.base.pid
        collection = Collection(self._state, child.slot.name, pid, PATIENCE)
        server.question = _Question(
            now, server.progress.beat, server.progress.lost, proc.state(pid), proc.tracer(pid), collection
        )
        server.stage = _Stage.ASKED

    def _await_answer(self, child: ChildProcess, server: _Server, now: float) -> None:
        """Judge a server once its stacks are complete, and it had the time to beat."""
        question = server.question
        assert question is not None
        question.stacks = question.stacks or question.collection.step()
        if question.stacks is not None and server.progress.beat > question.beat:
            if question.stacks.way == "faulthandler":
                text = "%s makes progress again, after %.1f s without. Its stacks in that time:\n%s"
                stacks = question.stacks.text.rstrip()
                logger.warning(text, child, server.progress.beat - question.beat, stacks)
            self._recover(child, server, server.progress)
            return
        # An overloaded machine delays a beat that may come.
        delay = min(server.progress.lost - question.lost, PATIENCE)
        if question.stacks is not None and now - question.at - delay >= min(SETTLE, self._limit / 10):
            self._judge(child, server, question, question.stacks, now)

    def _leave_start(self, child: ChildProcess, server: _Server, now: float, stacks: Stacks) -> None:
        """Give a server that starts more time. If a request blocks it already, it counts as ready."""
        server.stage = _Stage.BEATING
        if _running_request(stacks.text):
            replacement.count_ready(self._supervisor, child)
        else:
            server.progress = server.progress._replace(since=now, lost=0.0)

    def _judge(
        self, child: ChildProcess, server: _Server, question: _Question, stacks: Stacks, now: float
    ) -> None:
        """Report the hang of a server, unless a debugger is at work in it."""
        pid = child.base.pid
        states = question.state, proc.state(pid)
        if states[1] in proc.EXITED:
            # The main process is told so.
            return
        if child in replacement.starting_servers(self._supervisor):
            self._leave_start(child, server, now, stacks)
            return
        seconds = question.at - server.progress.beat
        # A debugger that has just left it may have left it no time to beat.
        tracer = proc.tracer(pid) or question.tracer
        known, server.debugger = server.debugger, f"process {tracer}" if tracer else stacks.debugger
        if server.debugger:
            server.stage = _Stage.DEBUGGED
            if server.debugger != known:
                text = "%s has made no progress for %.1f s. Keeping it, for a debugger is at work in it: %s."
                logger.warning(text, child, seconds, server.debugger)
            return
        number = question.collection.question
        native, interpreter = (answer >= number if number else None for answer in self._state.answers(pid))
        server.cause = hang_policy.cause(Facts(states, cgroup.own(pid).is_frozen(), native, interpreter))
        server.stage = _Stage.HUNG
        lost, request = server.progress.lost, _running_request(stacks.text)
        event = reports.hang_detected(child, server.cause, seconds, self._limit, lost, request)
        child.slot.note({"why": event.text})
        self._supervisor.log.append(event)
        error_logger.error("Stacks of %s:\n%s", child, stacks.text.rstrip())

    def _replace_one(self, servers: list[tuple[ChildProcess, _Server]], now: float) -> None:
        """Replace one server that hangs; one whose replacement has failed has to wait."""
        for child, server in servers:
            if server.stage is _Stage.REPLACED:
                server.stage, server.attempts = _Stage.HUNG, server.attempts + 1
                server.retry_at = now + hang_policy.backoff(server.attempts, self._limit)
                text = "%s still hangs: its replacement has failed. The next attempt follows in %g s."
                logger.warning(text, child, server.retry_at - now)
        for child, server in servers:
            if server.stage is _Stage.HUNG and server.retry_at <= now:
                server.stage = _Stage.REPLACED
                child.is_stuck = server.cause.obeys_no_stop
                replacement.replace(self._supervisor, child, "hang", GRACE)
                break


def _waited_and_suspended() -> tuple[float, float]:
    """Return how long this process has waited for a CPU, and the machine was suspended, seconds."""
    asleep = time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
    return proc.run_delay(os.getpid()), asleep


def _running_request(stacks: str) -> str:
    """Return the request whose handler blocks the event loop, in words; empty if there is none."""
    lines = (line.strip() for line in stacks.splitlines())
    return next((line.removesuffix(RUNNING) for line in lines if line.endswith(RUNNING)), "")
