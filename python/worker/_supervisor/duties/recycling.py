"""Replaces servers that have reached a limit: one at a time, and only while nothing else is under way."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sanic.log import logger

from worker._supervisor import reports
from worker._supervisor.replacement import may_replace, ready_servers, replace
from worker._system import cgroup

if TYPE_CHECKING:
    from collections.abc import Collection

    from worker._supervisor.child import ChildProcess
    from worker._supervisor.supervisor import Supervisor
    from worker.process import Worker
    from worker.settings import Settings

__all__ = ["Recycling", "check_memory_percent"]


class Recycling:
    """A duty: replaces the servers that have reached a limit, in the order in which they have said so.

    The new process starts first, and the old one goes on until that is ready. A process is replaced when it
    has been ready for ``min_uptime`` at the earliest. If a replacement fails, the next one is tried after
    ``backoff_max``. A process that is replaced for another reason meanwhile needs nothing more.

    Args:
        supervisor (Supervisor): Knows the processes.
        settings (Settings): The limits.
        workers (Collection[Worker]): The workers at the start.
    """

    def __init__(self, supervisor: Supervisor, settings: Settings, workers: Collection[Worker]) -> None:
        self._supervisor = supervisor
        self._settings = settings
        # By their pids: a reference to a process would keep its descriptors open.
        self._under_way: int | None = None
        self._reported: int | None = None
        self._retry_at = -math.inf
        if settings.max_memory_percent is not None:
            servers = sum(worker.is_server is True for worker in workers)
            if warning := check_memory_percent(
                settings.max_memory_percent, cgroup.own().memory_limit(), servers
            ):
                logger.warning("%s", warning)

    @property
    def due_at(self) -> float:
        """When to replace the next one; ``inf`` while an operation is under way, or if none waits."""
        if not may_replace(self._supervisor):
            return math.inf
        return max(self._retry_at, min(map(self._earliest, self._waiting()), default=math.inf))

    def perform(self, now: float) -> None:
        """Replace the next one; or, if the last one is still there, wait."""
        waiting = self._waiting()
        failed, self._under_way = self._under_way, None
        if any(child.base.pid == failed for child in waiting):
            self._retry_at = now + self._settings.backoff_max
            return
        due = [child for child in waiting if self._earliest(child) <= now]
        if due and may_replace(self._supervisor):
            self._replace(min(due, key=lambda child: child.recycle_asked_at))

    def _replace(self, child: ChildProcess) -> None:
        limit = child.recycle
        assert limit is not None
        if self._reported != child.base.pid:
            self._reported = child.base.pid
            self._supervisor.log.append(reports.recycled(child, limit))
        self._under_way = child.base.pid
        replace(self._supervisor, child, limit.cause)

    def _waiting(self) -> list[ChildProcess]:
        return [child for child in ready_servers(self._supervisor) if child.recycle is not None]

    def _earliest(self, child: ChildProcess) -> float:
        return child.ready_at + self._settings.min_uptime


def check_memory_percent(percent: float, limit: int | None, servers: int) -> str:
    """Return a warning about a ``max_memory_percent`` that cannot protect the control group; else empty.

    Args:
        percent (float): The setting.
        limit (int | None): The memory limit of the control group, bytes, if there is one.
        servers (int): The number of servers.
    """
    if limit is None:
        return "max_memory_percent has no effect: the control group has no memory limit. Set max_rss instead."
    if percent * servers > 100:
        return (
            f"max_memory_percent is {percent:g} for each of {servers} servers: together they may need more "
            f"than the memory limit of the control group ({limit >> 20} MiB) before any of them is replaced."
        )
    return ""
