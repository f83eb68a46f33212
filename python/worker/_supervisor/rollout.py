"""The plan of a restart: whose turn it is, given what is wanted and what is there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from worker.constants import Phase, RestartOrder

if TYPE_CHECKING:
    from worker._supervisor.operations import Operation

__all__ = ["NEWCOMER", "How", "Seat", "Wish", "merged", "turns"]

Key = TypeVar("Key")

NEWCOMER = (Phase.STARTING, Phase.REPLACING)
# No process, and one can be started at once.
DOWN = (Phase.STOPPED, Phase.BACKOFF, Phase.FAILED)
# Nobody serves there now, and somebody is to, by and by.
UNAVAILABLE = (Phase.STARTING, Phase.DRAINING, Phase.BACKOFF)
# Nobody serves there, nor will.
LOST = (Phase.STOPPED, Phase.FAILED, Phase.STOPPING)


@dataclass(frozen=True)
class Wish:
    """Somebody wants a place to have a new process.

    Attributes:
        order: Which comes first.
        made: When, on the clock of main, seconds.
        config: What the new process is told.
        operations: What it is a part of.
    """

    order: RestartOrder
    made: float
    config: Mapping[str, Any] = field(default_factory=dict)
    operations: tuple[Operation, ...] = ()

    @property
    def is_proven(self) -> bool:
        """Whether the code that it brings has been seen to start."""
        return all(operation.proven for operation in self.operations)


@dataclass(frozen=True)
class Seat:
    """A place as the plan sees it.

    Attributes:
        phase: Where it stands.
        is_server: Whether it serves requests.
        exclusive: Whether what it binds cannot be bound twice.
        displaced: Whether its newcomer took the turn of one that was not ready yet.
    """

    phase: Phase
    is_server: bool = True
    exclusive: bool = False
    displaced: bool = False


@dataclass(frozen=True)
class How:
    """How a place is renewed: which comes first, and whether the other waits until the first is through."""

    order: RestartOrder
    at_once: bool = False


BESIDE = How(RestartOrder.STARTUP_FIRST)
AFTERWARDS = How(RestartOrder.SHUTDOWN_FIRST)
AT_ONCE = How(RestartOrder.SHUTDOWN_FIRST, at_once=True)


def merged(earlier: Wish | None, later: Wish) -> Wish:
    """One wish for two: in the order of the later one, with the changed files of both."""
    if earlier is None:
        return later
    config = {**earlier.config, **later.config}
    files = [told for wish in (earlier, later) if (told := wish.config.get("reloaded_files"))]
    if files:
        config["reloaded_files"] = ",".join(dict.fromkeys(",".join(files).split(",")))
    operations = tuple(dict.fromkeys((*earlier.operations, *later.operations)))
    return Wish(later.order, later.made, config, operations)


def turns(
    wishes: Mapping[Key, Wish], seats: Mapping[Key, Seat], max_surge: int, max_unavailable: int
) -> Iterator[tuple[Key, How]]:
    """Yield whose turn it is to be restarted now, and how.

    With STARTUP_FIRST there are at most ``max_surge`` newcomers at a time. With SHUTDOWN_FIRST at most
    ``max_unavailable`` servers are out of service, and one always stays, as long as there are several. A
    place that nobody serves in is filled at once. A newcomer makes way for one restart; more wait for it.
    Before a rollout is proven, one server is replaced alone, in the order STARTUP_FIRST: its canary.

    Args:
        wishes (Mapping[Key, Wish]): What is wanted, by place, in order.
        seats (Mapping[Key, Seat]): All places.
        max_surge (int): How many newcomers there may be at a time.
        max_unavailable (int): How many servers may be out of service at a time.
    """
    servers = [seat.phase for seat in seats.values() if seat.is_server]
    newcomers = sum(phase in NEWCOMER for phase in servers)
    unavailable = sum(phase in UNAVAILABLE for phase in servers)
    able = sum(phase not in LOST for phase in servers)
    # Those who serve leave only when those who can start have started.
    for place in sorted(wishes, key=lambda place: seats[place].phase not in DOWN):
        wish, seat = wishes[place], seats[place]
        startup_first = wish.order is RestartOrder.STARTUP_FIRST and not seat.exclusive
        if seat.phase in (Phase.DRAINING, Phase.STOPPING):
            continue
        if seat.phase in DOWN:
            comes = seat.is_server and seat.phase in LOST
            newcomers, unavailable, able = newcomers + seat.is_server, unavailable + comes, able + comes
            yield place, AT_ONCE
        elif seat.phase in NEWCOMER:
            if not (seat.displaced or seat.exclusive):
                yield place, BESIDE if seat.phase is Phase.REPLACING else AT_ONCE
        elif not seat.is_server:
            yield place, BESIDE if startup_first else AT_ONCE
        elif startup_first or not (wish.is_proven or seat.exclusive):
            if newcomers < (max_surge if wish.is_proven else 1):
                newcomers += 1
                yield place, BESIDE
        elif able <= 1:
            yield place, AFTERWARDS if seat.exclusive else AT_ONCE
        elif unavailable < min(max_unavailable, able - 1):
            unavailable += 1
            yield place, AFTERWARDS
