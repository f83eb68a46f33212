"""The enumerations: states of a process, the order of a restart, phases of a slot; and fixed names."""

from __future__ import annotations

from enum import Enum, IntEnum, auto

from sanic import __version__ as release
from sanic.compat import UpperStrEnum

__all__ = [
    "MAIN_NAME",
    "NEVER",
    "SERVER_LABEL",
    "WORKER_PREFIX",
    "Phase",
    "ProcessState",
    "RestartOrder",
    "prefixed",
]

MAIN_NAME = "Sanic-Main"
"""The name of the main process, and of its entry in ``worker_state``."""

NEVER = "never"
"""The restart policy of a process that is not replaced when it exits by itself."""

SERVER_LABEL = "Server"
"""The part of a name that marks a process that serves requests."""

WORKER_PREFIX = "Sanic-" if release.startswith("23.") else "Sanic"
"""The prefix of the names of processes, as in the installed release: with its dash until 23.12."""


def prefixed(prefix: str, name: str) -> str:
    """Return a prefix and a name, joined by one dash: ``Sanic-Server-0``."""
    return f"{prefix.removesuffix('-')}-{name}"


class RestartOrder(UpperStrEnum):
    """The order of a restart.

    ``SHUTDOWN_FIRST``
        The old process is stopped, then the new one is started.
    ``STARTUP_FIRST``
        The new process is started. The old one is stopped when the new one has acknowledged its start
        ("zero downtime").
    """

    SHUTDOWN_FIRST = auto()
    STARTUP_FIRST = auto()


class ProcessState(IntEnum):
    """The states of a process, in their usual order.

    The order matters: :meth:`~worker.process.WorkerProcess.set_state` refuses to go back unless it is forced
    to. ``worker_state`` holds the *name* of a member.
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


class Phase(Enum):
    """The phase of a slot in its lifecycle."""

    STOPPED = "no process runs, and none is started by itself"
    STARTING = "its process is not ready yet, and no other one serves"
    READY = "its process is ready"
    REPLACING = "its process is not ready yet; the previous one serves"
    DRAINING = "a process is stopping; the next one is started when it has exited"
    BACKOFF = "its process exited; the next one is started when the backoff is over"
    FAILED = "its processes exited too often; none is started unless a restart or a scaling asks for it"
    STOPPING = "its processes were told to stop, and none is started after them"
