"""The keys of a state entry: their only list.

The native table knows no key by name. It receives :data:`OWNER`, :data:`LAST_BEAT`, :data:`REQUESTS`,
:data:`GAUGES`, :data:`SECONDS`, :data:`FLAGS`, :data:`ESSENTIAL` and :data:`SHEETS` when it is opened.
"""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

__all__ = [
    "ESSENTIAL",
    "FLAGS",
    "GAUGES",
    "LAST_BEAT",
    "NUMBERS",
    "OBSERVED",
    "OWNER",
    "REFUSED",
    "REQUESTS",
    "RESTRICTED",
    "SCHEMA",
    "SECONDS",
    "SHEETS",
    "STACKS",
    "STACKS_DEBUGGER",
    "STACKS_QUESTION",
    "UNSHOWN",
]

OWNER = "pid"
"""The key that holds the pid of the process to which the entry belongs."""

LAST_BEAT = "last_beat"
REQUESTS = "requests"
# In the order of the arguments of `SharedState.beat`.
GAUGES = ("in_flight", "connections")
SECONDS = ("loop_lag_p50", "loop_lag_p99", "loop_busy")

STACKS, STACKS_QUESTION, STACKS_DEBUGGER = "stacks", "stacks_question", "stacks_debugger"
FLAGS = ("stoppable", "stopping")


class Key(NamedTuple):
    """One key of a state entry. Any other key belongs to the users.

    Attributes:
        name: The key.
        kind: The type of its value.
        restricted: Only the manager may set it, as in Sanic.
        reserved: Only the manager may set it, and Sanic has no such key. Names that an application may use
            are not reserved.
        essential: No process can start without it. In a full state, it may use the reserved space.
        observed: The supervisor decides by it. A value of another type counts as absent.
        number: A process writes it about itself, with :meth:`~worker.state.SharedState.beat` and
            :meth:`~worker.state.SharedState.flag`; it is not written as a key of the entry.
    """

    name: str
    kind: type
    restricted: bool = False
    reserved: bool = False
    essential: bool = False
    observed: bool = False
    number: bool = False


SCHEMA = (
    Key(OWNER, int, restricted=True, essential=True),
    Key("server", bool, restricted=True, essential=True),
    Key("state", str, restricted=True, essential=True, observed=True),
    Key("serving", bool, essential=True, observed=True),
    Key("start_at", datetime, restricted=True, essential=True, observed=True),
    Key("starts", int, restricted=True, essential=True, observed=True),
    Key("restart_at", datetime, restricted=True, essential=True),
    Key("start_error", str, observed=True),
    Key("ready_at", datetime),
    Key("phase", str),
    Key("last_exit", str, reserved=True),
    Key("last_exit_at", datetime, reserved=True),
    Key("next_restart_at", datetime, reserved=True),
    Key("restarts", int),
    Key("requests_before", int, reserved=True),
    Key("why", str),
    Key("address", str),
    # The answer of a process that was asked for its stacks: text, the number of the question, and the name of
    # the debugger that is at work in it, or none.
    Key(STACKS, str, reserved=True),
    Key(STACKS_QUESTION, int, reserved=True),
    Key(STACKS_DEBUGGER, str, reserved=True),
    # In the entry of the main process alone.
    Key("stop_at", datetime),
    # Sanic restricts it, too.
    Key("health", str, restricted=True),
    Key(LAST_BEAT, datetime, number=True),
    Key(REQUESTS, int, restricted=True, number=True),
    # Numbers, too, but an application may have keys of these names: in its entry, they hide the numbers.
    *(Key(gauge, int) for gauge in GAUGES),
    *(Key(gauge, float) for gauge in SECONDS),
    *(Key(flag, bool, number=True) for flag in FLAGS),
)

RESTRICTED = tuple(sorted(key.name for key in SCHEMA if key.restricted))
ESSENTIAL = tuple(key.name for key in SCHEMA if key.essential)
OBSERVED = {key.name: key.kind for key in SCHEMA if key.observed}
NUMBERS = tuple(key.name for key in SCHEMA if key.number)
REFUSED = frozenset(key.name for key in SCHEMA if key.restricted or key.reserved or key.number)
"""The keys that a worker cannot set by its :class:`~worker.state.WorkerState`."""

UNSHOWN = frozenset({STACKS, STACKS_QUESTION, STACKS_DEBUGGER})
"""The keys that are no part of a status: they answer a question of one other process."""

SHEETS = {
    "events": (1000, 1024),
    "operations": (100, 1024),
    "totals": (1, 8192),
    "pong": (1, 64),
    "preload": (1, 128),
}
"""The sheets beside the entries: tables with a number of cells, and a number of bytes for each cell."""
