"""Replaces servers on the decision of the main process: a new process starts first, one server at a time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from worker._supervisor.model import ServerPhase
from worker._supervisor.operation import Kind, Origin
from worker._supervisor.rollout import STARTING_PHASES
from worker.constants import MAIN_NAME, Phase, ProcessState, RestartOrder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker._supervisor.child import ChildProcess
    from worker._supervisor.supervisor import Supervisor

__all__ = ["count_ready", "may_replace", "ready_servers", "replace", "starting_servers"]


def ready_servers(supervisor: Supervisor) -> list[ChildProcess]:
    """Return the current processes of all servers that are ready, and are not being replaced."""
    return [child for child, phase in _servers(supervisor) if phase is Phase.READY]


def starting_servers(supervisor: Supervisor) -> list[ChildProcess]:
    """Return the processes of all servers that have acknowledged their start, and are not ready yet."""
    return [
        child
        for child, phase in _servers(supervisor)
        if child.slot.state is ProcessState.ACKED and phase in STARTING_PHASES
    ]


def _servers(supervisor: Supervisor) -> Iterator[tuple[ChildProcess, Phase]]:
    """Yield the current process of each server, with the phase of its slot."""
    for child in supervisor.children:
        if child.is_current and child.slot.is_server:
            yield child, supervisor.slot_phase(child.slot)


def count_ready(supervisor: Supervisor, child: ChildProcess) -> None:
    """Count one of :func:`starting_servers` as ready with the next event: it handles a request."""
    child.serves = True
    supervisor.reconcile_at = -math.inf


def may_replace(supervisor: Supervisor) -> bool:
    """Return whether a replacement may begin: the server runs, and no other operation is under way."""
    return supervisor.phase is ServerPhase.RUNNING and not supervisor.operations


def replace(supervisor: Supervisor, child: ChildProcess, reason: str, grace: float = math.inf) -> None:
    """Replace a ready server. It goes on until its replacement is ready; if that fails, it stays.

    Args:
        supervisor (Supervisor): Knows the processes; :func:`may_replace` is true.
        child (ChildProcess): The process to be replaced, one of :func:`ready_servers`.
        reason (str): Why, for the log: ``max_rss``.
        grace (float): How long it may take to stop, seconds, if that is less than ``graceful_timeout``.
            Defaults to ``inf``.
    """
    child.grace = min(child.grace, grace)
    origin = Origin(f"{MAIN_NAME} ({reason})")
    with supervisor.operations.requested_by(origin, Kind.RESTART), supervisor.operation(Kind.RESTART):
        child.slot.restart(RestartOrder.STARTUP_FIRST)
