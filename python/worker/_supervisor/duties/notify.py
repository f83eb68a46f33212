"""Tells the service manager how the server is: that it is ready, reloads, stops, and what it does."""

from __future__ import annotations

import math
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from worker._state import schema
from worker._state.shared import SharedState
from worker._supervisor.model import ServerPhase
from worker._supervisor.operation import Kind
from worker._system import activation, handover, systemd
from worker.constants import MAIN_NAME, Phase

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from worker._supervisor.operation import Operation
    from worker._supervisor.supervisor import ProcessTable, Supervisor
    from worker.process import WorkerProcess

__all__ = ["Facts", "Notifier", "Told", "changes", "status"]

# The least time between two messages with new figures, seconds.
PAUSE = 5.0
# The time that a start and a stop may take in addition to their limits, seconds.
MARGIN = 10.0
# How long a roll may take from each message about it, and the time from one to the next, seconds. systemd
# begins its limit anew when the command of a reload has ended, so messages before that do not count.
EXTENSION, EXTEND_AGAIN = 30.0, 1.0
SERVED = (Phase.READY, Phase.REPLACING)


class Facts(NamedTuple):
    """The facts by which the service manager is told.

    Attributes:
        phase: The phase of the server.
        wanted: The number of servers.
        ready: The number of them that serve.
        failed: The number of them that are not started any more.
        rolls: The numbers of the restarts of all servers, and of the upgrades, that are under way.
        failure: How the last of these has failed, in words; empty if it has not.
        is_upgrading: Whether one of them is an upgrade.
        is_stopping: Whether a stop waits for the drain delay.
    """

    phase: ServerPhase
    wanted: int
    ready: int
    failed: int
    rolls: frozenset[int]
    failure: str
    is_upgrading: bool = False
    is_stopping: bool = False


class Told(NamedTuple):
    """The state that the service manager was told.

    Attributes:
        ready: Whether the server has been ready.
        rolls: The numbers of the restarts and upgrades that were told.
        stopping: Whether the server stops.
    """

    ready: bool = False
    rolls: frozenset[int] = frozenset()
    stopping: bool = False

    @property
    def is_reloading(self) -> bool:
        """Whether the service manager waits for the end of a reload."""
        return bool(self.rolls) and not self.stopping


def changes(told: Told, facts: Facts, now_usec: int, stop_seconds: float) -> tuple[Told, dict[str, int]]:
    """Decide which change of state to tell.

    Args:
        told (Told): The state that was told.
        facts (Facts): The facts.
        now_usec (int): The time on the monotonic clock, microseconds.
        stop_seconds (float): How long a stop may take.

    Returns:
        tuple[Told, dict[str, int]]: The state from now on, and the fields of the message.
    """
    if facts.phase.is_over or facts.is_stopping:
        if told.stopping:
            return told, {}
        return told._replace(stopping=True), {"STOPPING": 1, "EXTEND_TIMEOUT_USEC": int(stop_seconds * 1e6)}
    if not told.ready:
        is_settled = facts.ready and facts.ready + facts.failed >= facts.wanted
        if facts.phase is ServerPhase.RUNNING and is_settled:
            return told._replace(ready=True), {"READY": 1}
        return told, {}
    after = told._replace(rolls=facts.rolls)
    if facts.rolls - told.rolls:
        # A roll that another one has joined is told anew: a reload waits for a message after its request.
        return after, {"RELOADING": 1, "MONOTONIC_USEC": now_usec}
    if told.rolls and not facts.rolls:
        return after, {"READY": 1}
    return after, {}


def status(facts: Facts, rate: float) -> str:
    """Return the state in words.

    Args:
        facts (Facts): The facts.
        rate (float): The number of requests in a second.
    """
    workers = "worker" if facts.wanted == 1 else "workers"
    text = f"{facts.ready} of {facts.wanted} {workers}"
    if facts.phase.is_over:
        return "Stopping"
    if facts.is_stopping:
        return f"Stopping after the drain delay: {text}"
    if facts.phase is not ServerPhase.RUNNING:
        return f"Starting: {text}"
    if facts.rolls:
        return f"{'Upgrading' if facts.is_upgrading else 'Reloading'}: {text}"
    figure = f", {rate:.0f} requests/s" if rate >= 0.5 else ""
    return f"{text}{figure}" + (f"; {facts.failure}" if facts.failure else "")


class Notifier:
    """Tells the service manager each change at once, and new figures while requests come.

    The figures are looked at when the main process is awake anyway, at most every :data:`PAUSE`. Only while
    they change it wakes up for them. For a watchdog it wakes up twice in its time.

    Args:
        manager (ProcessTable): The manager, for its workers, its state and its settings.
        supervisor (Supervisor): Knows the phases of the slots, and the restarts.
        is_stopping (Callable): Returns whether a stop waits for the drain delay.
    """

    def __init__(
        self, manager: ProcessTable, supervisor: Supervisor, is_stopping: Callable[[], bool]
    ) -> None:
        self._manager = manager
        self._supervisor = supervisor
        self._is_stopping = is_stopping
        self._told = Told()
        self._facts: Facts | None = None
        self._rolls: list[Operation] = []
        self._failure = ""
        self._counts: dict[int, int] = {}
        self._looked_at = time.monotonic()
        self._rate = 0.0
        watchdog = systemd.watchdog_seconds()
        self._beat = math.inf if watchdog is None else watchdog / 2
        self._beat_at = self._looked_at + self._beat
        self._extend_at = -math.inf

    @property
    def due_at(self) -> float:
        """When to tell again; ``inf`` while another main process is the one of the service."""
        if handover.is_candidate():
            return math.inf
        if self._find() != self._facts:
            return -math.inf
        look_at = self._looked_at + PAUSE
        if not self._rate and (time.monotonic() < look_at or self._count() == self._counts):
            look_at = math.inf
        return min(self._beat_at, look_at, self._extend_at if self._told.is_reloading else math.inf)

    def perform(self, now: float) -> None:
        """Tell what has changed."""
        facts, fields = self._find(), dict[str, str | int]()
        is_first, is_new = self._facts is None, facts != self._facts
        if is_first:
            limit = self._supervisor.start_limit() + MARGIN
            fields["EXTEND_TIMEOUT_USEC"] = int(limit * 1e6)
            _store_sockets()
        self._facts = facts
        self._told, changed = changes(self._told, facts, time.monotonic_ns() // 1000, self._stop_limit(facts))
        fields.update(changed)
        if self._told.is_reloading and now >= self._extend_at:
            fields["EXTEND_TIMEOUT_USEC"] = int(EXTENSION * 1e6)
            self._extend_at = now + EXTEND_AGAIN
        if now >= self._looked_at + PAUSE:
            self._measure(now)
            is_new = True
        if is_new:
            fields["STATUS"] = status(facts, self._rate)
        # An extension moves the deadline of the watchdog as well. The next beat moves it back.
        if now >= self._beat_at or ("EXTEND_TIMEOUT_USEC" in fields and self._beat < math.inf):
            self._beat_at = now + self._beat
            fields["WATCHDOG"] = 1
        if fields:
            systemd.notify(**fields)

    def _stop_limit(self, facts: Facts) -> float:
        """Return how long a stop may take, seconds."""
        settings = self._manager.settings
        return settings.graceful_timeout + MARGIN + (settings.drain_delay if facts.is_stopping else 0.0)

    def _find(self) -> Facts:
        servers = [slot for worker in self._manager.workers for slot in worker.processes if slot.is_server]
        phases = [self._supervisor.slot_phase(slot) for slot in servers]
        open_ = self._supervisor.operations.under_way
        # One goes on if the server is scaled meanwhile.
        rolls = [one for one in open_ if one in self._rolls or _is_roll(one, servers)]
        for operation in self._rolls:
            if operation not in rolls:
                event = "upgrade failed" if operation.kind is Kind.UPGRADE else "reload was aborted"
                self._failure = operation.failure and f"the last {event}: {operation.failure}"
        self._rolls = rolls
        return Facts(
            self._supervisor.phase,
            len(servers),
            sum(phase in SERVED for phase in phases),
            phases.count(Phase.FAILED),
            frozenset(operation.number for operation in rolls),
            self._failure,
            is_upgrading=any(operation.kind is Kind.UPGRADE for operation in rolls),
            is_stopping=self._is_stopping(),
        )

    def _measure(self, now: float) -> None:
        counts = self._count()
        new = sum(count - self._counts.get(pid, 0) for pid, count in counts.items())
        self._rate = new / (now - self._looked_at)
        self._counts, self._looked_at = counts, now

    def _count(self) -> dict[int, int]:
        """Return the requests of each server, by pid."""
        state = self._manager.worker_state
        counts: dict[int, int] = {}
        # A state of another kind is that of a process, which would be asked.
        if isinstance(state, SharedState):
            for slot in self._servers():
                # A damaged state has no figures.
                with suppress(RuntimeError):
                    counts[slot.pid] = state.numbers(slot.pid).get(schema.REQUESTS, 0)
        return counts

    def _servers(self) -> Iterator[WorkerProcess]:
        for worker in self._manager.workers:
            yield from (slot for slot in worker.processes if slot.is_server and slot.pid)


def _store_sockets() -> None:
    """Let the service manager keep the sockets that this process has bound, for the next main process."""
    for listener in activation.listeners()[: systemd.store_limit()]:
        if listener.is_bound_here and systemd.notify(
            [listener.fileno()], FDSTORE=1, FDNAME=listener.name, FDPOLL=0
        ):
            listener.share()


def _is_roll(operation: Operation, servers: Collection[WorkerProcess]) -> bool:
    """Return whether an operation is an upgrade, or a restart of all servers that was not decided here."""
    if operation.kind is Kind.UPGRADE:
        return True
    is_requested = operation.kind is Kind.RESTART and not operation.origin.name.startswith(MAIN_NAME)
    return is_requested and (operation.waiting | operation.passed).issuperset(servers)
