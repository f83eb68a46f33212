"""Decides how many servers run, by their load, within the range of the setting ``workers``.

The number rises within seconds, and falls after minutes: too few servers make every request wait, one too
many costs some memory. Between the load at which it rises and that at which it falls is a gap that no single
step crosses, so that a constant load makes no two steps in opposite directions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from worker._child.busy import BUSY_SHARE
from worker.settings.values import Workers

__all__ = ["DOWN_WINDOW", "LOOK", "Decision", "Load", "Room", "decide"]

# The time from one measurement to the next, seconds.
LOOK = 2.0
# The share of time in which the loops are busy: from the first on the number rises, by so many that the
# second results. It falls where the last results.
HIGH, MEDIUM, LOW = 0.75, 0.6, 0.5
# How many measurements in a row must agree on a rise.
RISE_LOOKS = 2
# The least time from one step to a rise, and to a fall, seconds.
RISE_PAUSE, FALL_PAUSE = 5.0, 30.0
# How long fewer servers must have sufficed before the number falls, seconds.
DOWN_WINDOW = 120.0
# The share of the available CPU time from which on more servers would only take turns.
CPU_FULL = 0.85


class Load(NamedTuple):
    """One measurement of the load.

    Attributes:
        at: When it was made, on the monotonic clock.
        servers: The number of servers in the process table.
        measured: The number of those whose load is known: they are ready, and their event loop turns.
        busy: The shares of time in which the loops of these were busy, added up.
        in_flight: The requests that they read, handle or answer.
        waiting: The connections that wait to be accepted.
    """

    at: float
    servers: int
    measured: int
    busy: float
    in_flight: int = 0
    waiting: int = 0

    @property
    def share(self) -> float:
        """The mean share of time in which a loop was busy; 0 if none is known."""
        return self.busy / self.measured if self.measured else 0.0

    @property
    def queues(self) -> bool:
        """Whether more connections wait than there are loops to accept them."""
        return self.waiting >= max(1, self.measured)

    @property
    def needed(self) -> int:
        """The number of servers that suffice for this load."""
        least = math.ceil(self.share * self.servers / LOW)
        # The load of the others is not known.
        least = least if self.measured == self.servers else max(least, self.servers)
        return max(least, self.servers + 1) if self.queues else least


class Room(NamedTuple):
    """The room for more servers.

    Attributes:
        cpus: The number of CPUs that the server may use; a quota makes it fractional.
        cpus_used: The CPU time that the servers have used since the last measurement, per second.
        memory: The memory that is available, bytes; ``inf`` if it is not known.
        per_server: The memory of one server, bytes.
    """

    cpus: float = math.inf
    cpus_used: float = 0.0
    memory: float = math.inf
    per_server: int = 0


class Decision(NamedTuple):
    """The number of servers that are to run, and the reason.

    Attributes:
        target: The number.
        reason: Why it is another number than before; empty if it is not.
        limit: Why it does not rise in spite of the load; empty if the load does not demand it.
    """

    target: int
    reason: str = ""
    limit: str = ""


def decide(history: Sequence[Load], bounds: Workers, room: Room, scaled_at: float = -math.inf) -> Decision:
    """Return how many servers are to run.

    Args:
        history (Sequence[Load]): The measurements, oldest first; at least those of the last
            :data:`DOWN_WINDOW` in which the server was watched without a gap.
        bounds (Workers): The allowed numbers.
        room (Room): The room for more.
        scaled_at (float): When the number last changed, on the monotonic clock. Defaults to ``-inf``: never.
    """
    load = history[-1]
    recent = [one for one in history[-RISE_LOOKS:] if one.at > scaled_at]
    share = sum(one.share for one in recent) / len(recent) if recent else 0.0
    if len(recent) == RISE_LOOKS and _is_high(share, recent):
        if load.at < scaled_at + RISE_PAUSE or load.servers >= bounds.most:
            return Decision(load.servers)
        return _risen(load, share, bounds, room)
    is_watched = load.at - history[0].at >= DOWN_WINDOW
    if is_watched and load.servers > bounds.least and load.at >= scaled_at + FALL_PAUSE:
        return _fallen(history, bounds)
    return Decision(load.servers)


def _is_high(share: float, recent: Sequence[Load]) -> bool:
    """Return whether the load is too high: the loops are busy, or connections wait for loops half as busy."""
    return share >= HIGH or (share >= BUSY_SHARE and all(one.queues for one in recent))


def _risen(load: Load, share: float, bounds: Workers, room: Room) -> Decision:
    servers = load.servers
    wanted = math.ceil(servers * share / MEDIUM) - servers
    requests = load.in_flight + load.waiting - servers
    # At most half as many again at a time, as the next measurement tells more.
    more = max(1, min(wanted, servers // 2, requests, bounds.most - servers))
    if room.cpus_used >= CPU_FULL * room.cpus:
        return Decision(servers, limit=f"{room.cpus_used:.1f} of {room.cpus:g} CPUs are in use")
    more = min(more, max(1, int(room.cpus - room.cpus_used)) if room.cpus < math.inf else more)
    # One more stays free for the present servers to grow into.
    fitting = room.memory // room.per_server - 1 if room.per_server else math.inf
    if fitting < 1:
        free, taken = room.memory / 2**20, room.per_server / 2**20
        return Decision(servers, limit=f"{free:.0f} MiB are available, and one takes {taken:.0f} MiB")
    parts = [f"loop {_percent(share)} busy"]
    parts += [f"{load.in_flight} requests in flight"] if load.in_flight else []
    parts += [f"{load.waiting} connections wait"] if load.waiting else []
    reason = f"{', '.join(parts)}; {servers} of {bounds} workers"
    return Decision(servers + int(min(more, fitting)), reason)


def _fallen(history: Sequence[Load], bounds: Workers) -> Decision:
    load = history[-1]
    window = [one for one in history if one.at >= load.at - DOWN_WINDOW]
    if max(one.needed for one in window) >= load.servers:
        return Decision(load.servers)
    peak = max(one.share * one.servers for one in window) / load.servers
    reason = f"loop at most {_percent(peak)} busy for {DOWN_WINDOW:g} s"
    return Decision(load.servers - 1, f"{reason}; {load.servers} of {bounds} workers")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
