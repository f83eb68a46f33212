"""Scales the servers by their load, if the setting ``workers`` is a range."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from socket import socket
from statistics import median
from typing import TYPE_CHECKING, Protocol

from sanic.log import logger

from worker._child.busy import BUSY_SHARE
from worker._child.heartbeat import IDLE
from worker._state.foreign import adapted
from worker._supervisor.duties.scaling_policy import DOWN_WINDOW, LOOK, Decision, Load, Room, decide
from worker._supervisor.model import ServerPhase
from worker._supervisor.operation import Kind, Origin
from worker._supervisor.replacement import may_replace, ready_servers
from worker._supervisor.supervisor import ProcessTable, Supervisor
from worker._system import cgroup, proc
from worker._system.listen_queue import queue_length
from worker.constants import MAIN_NAME

if TYPE_CHECKING:
    from worker._supervisor.child import ChildProcess
    from worker.settings.values import Workers

__all__ = ["Autoscaler", "Scalable"]

# A server without a beat for this long, seconds, hangs: its load is not known.
STALE = IDLE + 1.0


class Scalable(ProcessTable, Protocol):
    """The manager, as it is scaled."""

    @property
    def num_server(self) -> int:
        """The number of servers in the process table."""

    @property
    def listening_sockets(self) -> list[socket]:
        """The sockets that the servers listen on."""

    def scale(self, num_worker: int) -> None:
        """Run this number of servers."""


class Autoscaler:
    """Measures the load of the servers while there is one, and scales them within the range.

    It sleeps while no more than the least number of servers run and none is busy. A server that becomes busy
    reports it, which wakes it.

    Args:
        manager (Scalable): Is scaled by its public verb.
        supervisor (Supervisor): Knows the processes.
        bounds (Workers): The range.
    """

    def __init__(self, manager: Scalable, supervisor: Supervisor, bounds: Workers) -> None:
        self._manager = manager
        self._supervisor = supervisor
        self._bounds = bounds
        self._state = adapted(manager.worker_state)
        self._history: list[Load] = []
        self._servers = manager.num_server
        self._scaled_at = -math.inf
        self._next_look = math.inf
        # The number at which a limit was logged, so that it is logged once.
        self._limited_at = 0
        # The CPU time of each server, by pid, at the last look.
        self._cpu: dict[int, float] = {}
        self._inodes = {os.fstat(sock.fileno()).st_ino for sock in manager.listening_sockets}

    @property
    def due_at(self) -> float:
        """When to look at the load again, on the monotonic clock; ``inf`` while it sleeps."""
        if self._supervisor.phase is not ServerPhase.RUNNING:
            return math.inf
        is_asleep = self._next_look == math.inf
        return -math.inf if is_asleep and self._has_reason_to_look() else self._next_look

    def perform(self, now: float) -> None:
        """Measure the load, and scale if that is to be done."""
        if self._next_look == math.inf:
            # The load since the last look is not known.
            self._history.clear()
        self._next_look = now + LOOK
        servers = ready_servers(self._supervisor)
        if self._manager.num_server != self._servers:
            # An operator has scaled: the load before does not count against that.
            self._history.clear()
            self._servers, self._scaled_at = self._manager.num_server, now
        load, room = self._measure(now, servers)
        self._history.append(load)
        while self._history[0].at < now - DOWN_WINDOW - LOOK:
            del self._history[0]
        is_free = may_replace(self._supervisor) and not self._supervisor.operations.is_upgrading
        if is_free and len(servers) == load.servers:
            self._apply(decide(self._history, self._bounds, room, self._scaled_at), now)
        for child in servers:
            child.is_busy = self._share(child) >= BUSY_SHARE
        if not self._has_reason_to_look():
            self._next_look = math.inf

    def _has_reason_to_look(self) -> bool:
        return self._manager.num_server > self._bounds.least or any(
            child.is_busy for child in self._supervisor.children
        )

    def _apply(self, decision: Decision, now: float) -> None:
        servers = self._servers
        if decision.limit and self._limited_at != servers:
            self._limited_at = servers
            logger.info("Not scaling up from %d of %s workers: %s.", servers, self._bounds, decision.limit)
        if decision.target == servers:
            return
        self._scaled_at, self._limited_at = now, 0
        kind = Kind.SCALE_UP if decision.target > servers else Kind.SCALE_DOWN
        with self._supervisor.operations.requested_by(Origin(MAIN_NAME, reason=decision.reason), kind):
            self._manager.scale(decision.target)
        self._servers = self._manager.num_server

    def _measure(self, now: float, servers: Sequence[ChildProcess]) -> tuple[Load, Room]:
        pids = [child.base.pid for child in servers]
        known = [pid for pid in pids if now - (self._state.last_beat(pid) or -math.inf) <= STALE]
        numbers = [self._state.numbers(pid) for pid in known]
        load = Load(
            now,
            self._servers,
            measured=len(known),
            busy=sum(one.get("loop_busy", 0.0) for one in numbers),
            in_flight=sum(one.get("in_flight", 0) for one in numbers),
            waiting=queue_length(self._inodes) or 0,
        )
        return load, self._room(now, pids)

    def _room(self, now: float, pids: Sequence[int]) -> Room:
        usages = {pid: usage for pid in pids if (usage := proc.usage(pid)) is not None}
        # The first look at a server tells no growth.
        used = sum(usage.cpu_seconds - self._cpu.get(pid, usage.cpu_seconds) for pid, usage in usages.items())
        passed = now - self._history[-1].at if self._history else math.inf
        self._cpu = {pid: usage.cpu_seconds for pid, usage in usages.items()}
        cpus, quota = len(os.sched_getaffinity(0)), cgroup.own().cpu_quota()
        memory = cgroup.available_memory()
        return Room(
            cpus=cpus if quota is None else min(cpus, quota),
            cpus_used=used / passed,
            memory=math.inf if memory is None else memory,
            per_server=int(median(usage.rss_bytes for usage in usages.values())) if usages else 0,
        )

    def _share(self, child: ChildProcess) -> float:
        return float(self._state.numbers(child.base.pid).get("loop_busy", 0.0))
