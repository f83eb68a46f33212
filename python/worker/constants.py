"""The enumerations of the worker's life: its states, and the order of a restart."""

from __future__ import annotations

from enum import IntEnum, auto

from sanic.compat import UpperStrEnum

__all__ = ["MAIN_NAME", "SERVER_LABEL", "ProcessState", "RestartOrder"]

MAIN_NAME = "Sanic-Main"
"""The name of the main process, and of its entry in ``worker_state``."""

SERVER_LABEL = "Server"
"""What the name of a process that serves requests has in it."""


class RestartOrder(UpperStrEnum):
    """Which of the two comes first when a process is restarted.

    ``SHUTDOWN_FIRST``
        The old process is told to leave, then the new one is started.
    ``STARTUP_FIRST``
        The new process is started; the old one is told to leave when the new one has acknowledged
        its start ("zero downtime").
    """

    SHUTDOWN_FIRST = auto()
    STARTUP_FIRST = auto()


class ProcessState(IntEnum):
    """The states of a process, in the order of its life.

    The order is compared: :meth:`~worker.process.WorkerProcess.set_state` refuses to go back
    unless it is forced to. The *name* of a member is what stands in ``worker_state``.
    """

    NONE = auto()
    IDLE = auto()
    RESTARTING = auto()
    STARTING = auto()
    STARTED = auto()
    ACKED = auto()
    JOINED = auto()
    TERMINATED = auto()
    FAILED = auto()
    COMPLETED = auto()
