"""The enumerations of the worker's life: its states, the order of a restart, and what leads to what."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, IntEnum, auto

from sanic import __version__ as release
from sanic.compat import UpperStrEnum

__all__ = [
    "LIFE",
    "MAIN_NAME",
    "SERVER_LABEL",
    "WORKER_PREFIX",
    "Act",
    "Happening",
    "Phase",
    "ProcessState",
    "RestartOrder",
    "prefixed",
]

MAIN_NAME = "Sanic-Main"
"""The name of the main process, and of its entry in ``worker_state``."""

SERVER_LABEL = "Server"
"""What the name of a process that serves requests has in it."""

WORKER_PREFIX = "Sanic-" if release.startswith("23.") else "Sanic"
"""What the names of processes begin with, as the installed release has it: with its dash until 23.12."""


def prefixed(prefix: str, name: str) -> str:
    """Return a name behind a prefix, whether the prefix has its dash or not: ``Sanic-Server-0``."""
    return f"{prefix.removesuffix('-')}-{name}"


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


class Phase(Enum):
    """Where a place in the table of processes stands, as the loop of main sees it."""

    STOPPED = "no process, and none is to come by itself"
    STARTING = "its process is not ready yet, and nobody else serves in its place"
    READY = "its process serves"
    REPLACING = "its process is not ready yet; the predecessor serves"
    DRAINING = "one of its processes is leaving; the next is started when that is gone"
    BACKOFF = "its process died; the next is started when the backoff is over"
    FAILED = "its processes died too often; none is started unless someone asks for it"
    STOPPING = "its processes were told to leave, and none is to come"


class Happening(Enum):
    """What can happen to a place in the table of processes."""

    START = "its first process is to be started"
    STARTED = "a process has been started in it"
    RESTART = "it is its turn in a restart"
    READY = "its process is ready"
    LATE = "its process was not ready in time"
    DIED = "its process has ended"
    PREDECESSOR_DIED = "the predecessor has ended while its successor was starting"
    LEFT = "a process that had been told to leave it has ended"
    DUE = "the backoff is over"
    STOP = "its processes were told to leave for good"


class Act(Enum):
    """What the loop of main does about it."""

    AWAIT = "wait until the process is ready"
    RENEW = "put a new process in its place, in the order that is asked for"
    DISPLACE = "let the newcomer make way for another; who serves stays"
    FILL = "start the next process"
    SUCCEED = "start the next process, once the one before it is gone"
    WELCOME = "it serves from now on"
    HAND_OVER = "it serves from now on; tell the predecessor to leave"
    TAKE_BACK = "let the predecessor serve on, and end the restart"
    PROMOTE = "wait for the newcomer, which serves in nobody's place now"
    ABANDON = "kill the process; its death is a failed start"
    MOURN = "let the restart policy decide what follows"
    DISMISS = "start nothing any more in its place"
    CLEAR = "once nobody is left there, the place is empty"
    NOTHING = "nothing is left to do"


LIFE: Mapping[Phase, Mapping[Happening, Act]] = {
    Phase.STOPPED: {
        Happening.START: Act.FILL,
        Happening.STARTED: Act.AWAIT,
        Happening.RESTART: Act.FILL,
        Happening.STOP: Act.DISMISS,
        Happening.LEFT: Act.NOTHING,
    },
    Phase.STARTING: {
        Happening.RESTART: Act.DISPLACE,
        Happening.STARTED: Act.AWAIT,
        Happening.READY: Act.WELCOME,
        Happening.LATE: Act.ABANDON,
        Happening.DIED: Act.MOURN,
        Happening.STOP: Act.DISMISS,
        Happening.LEFT: Act.NOTHING,
    },
    Phase.READY: {
        Happening.RESTART: Act.RENEW,
        Happening.STARTED: Act.AWAIT,
        Happening.DIED: Act.MOURN,
        Happening.STOP: Act.DISMISS,
        Happening.LEFT: Act.NOTHING,
    },
    Phase.REPLACING: {
        Happening.RESTART: Act.DISPLACE,
        Happening.STARTED: Act.AWAIT,
        Happening.READY: Act.HAND_OVER,
        Happening.LATE: Act.ABANDON,
        Happening.DIED: Act.TAKE_BACK,
        Happening.PREDECESSOR_DIED: Act.PROMOTE,
        Happening.STOP: Act.DISMISS,
        Happening.LEFT: Act.NOTHING,
    },
    Phase.DRAINING: {
        Happening.STARTED: Act.AWAIT,
        Happening.DIED: Act.SUCCEED,
        Happening.LEFT: Act.SUCCEED,
        Happening.STOP: Act.DISMISS,
    },
    Phase.BACKOFF: {
        Happening.RESTART: Act.FILL,
        Happening.DUE: Act.FILL,
        Happening.STARTED: Act.AWAIT,
        Happening.STOP: Act.DISMISS,
        Happening.LEFT: Act.NOTHING,
    },
    Phase.FAILED: {
        Happening.RESTART: Act.FILL,
        Happening.STARTED: Act.AWAIT,
        Happening.STOP: Act.DISMISS,
        Happening.LEFT: Act.NOTHING,
    },
    Phase.STOPPING: {
        Happening.DIED: Act.CLEAR,
        Happening.LEFT: Act.CLEAR,
        Happening.STOP: Act.NOTHING,
    },
}
"""The life of a place: what the loop does about what happens, in each phase. What is not in it is impossible:
it is logged, and nothing is done."""
