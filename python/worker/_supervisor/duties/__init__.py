"""The duties of the main process: what it does at a time, and not for an event."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from sanic.log import logger

from worker._state.shared import SharedState
from worker._supervisor.duties.overdue import OverdueServers
from worker._system import handover, systemd
from worker.settings.values import is_debugged

if TYPE_CHECKING:
    from worker._supervisor.duties.autoscale import Scalable
    from worker._supervisor.supervisor import Supervisor

__all__ = ["Duty", "duties"]


class Duty(Protocol):
    """An action of the main process that has a time of its own.

    The loop performs it in its own thread, between events, as soon as it is due. An error is logged, and does
    not affect the loop.
    """

    @property
    def due_at(self) -> float:
        """When to perform it again, on the monotonic clock; ``inf``: not by itself."""

    def perform(self, now: float) -> None:
        """Perform it, and set the time of the next one."""


def duties(manager: Scalable, supervisor: Supervisor, is_stopping: Callable[[], bool]) -> list[Duty]:
    """Return the duties that the settings of a manager ask for.

    Args:
        manager (Scalable): The manager, for its settings and its state.
        supervisor (Supervisor): Knows the processes.
        is_stopping (Callable): Returns whether a stop waits for the drain delay.
    """
    found: list[Duty] = []
    if (predecessor := handover.predecessor()) is not None:
        from worker._supervisor.duties.upgrade import TakeOver

        found.append(TakeOver(manager, supervisor, predecessor))
    # Each is imported on use: it is a matter of a setting, or of a service manager.
    if manager.settings.recycles:
        from worker._supervisor.duties.recycling import Recycling

        found.append(Recycling(supervisor, manager.settings, manager.workers))
    if systemd.is_notified():
        from worker._supervisor.duties.notify import Notifier

        found.append(Notifier(manager, supervisor, is_stopping))
    if manager.settings.range is not None:
        from worker._supervisor.duties.autoscale import Autoscaler

        found.append(Autoscaler(manager, supervisor, manager.settings.range))
    if isinstance(state := manager.worker_state, SharedState):
        found.append(OverdueServers(supervisor, state, manager.settings))
        if (limit := manager.settings.hang_timeout) and is_debugged():
            logger.info("hang_timeout has no effect with --debug: no server is replaced because it hangs.")
        elif limit:
            from worker._supervisor.duties.hangs import HangWatch

            found.append(HangWatch(supervisor, state, limit))
    return found
