"""The plan of a rollout: which slots are restarted now, and how, as a pure function."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

from worker._supervisor.model import RestartMode, RestartRequest, SlotView
from worker.constants import Phase, RestartOrder

__all__ = ["AFTER_EXIT", "AT_ONCE", "BESIDE", "STARTING_PHASES", "merge", "plan"]

Slot = TypeVar("Slot")

# A process starts there.
STARTING_PHASES = (Phase.STARTING, Phase.REPLACING)
# No process runs there, and one can be started at once.
DOWN = (Phase.STOPPED, Phase.BACKOFF, Phase.FAILED)
# No process is ready there; one will be.
UNAVAILABLE = (Phase.STARTING, Phase.DRAINING, Phase.BACKOFF)
# No process is ready there, nor will be.
LOST = (Phase.STOPPED, Phase.FAILED, Phase.STOPPING)

BESIDE = RestartMode(RestartOrder.STARTUP_FIRST)
AFTER_EXIT = RestartMode(RestartOrder.SHUTDOWN_FIRST)
AT_ONCE = RestartMode(RestartOrder.SHUTDOWN_FIRST, at_once=True)


def merge(earlier: RestartRequest | None, later: RestartRequest) -> RestartRequest:
    """Merge two requests: the order of the later one, with the changed files of both."""
    if earlier is None:
        return later
    config = {**earlier.config, **later.config}
    files = [files for one in (earlier, later) if (files := one.config.get("reloaded_files"))]
    if files:
        config["reloaded_files"] = ",".join(dict.fromkeys(",".join(files).split(",")))
    operations = tuple(dict.fromkeys((*earlier.operations, *later.operations)))
    return RestartRequest(later.order, later.made_at, config, operations)


def plan(
    requests: Mapping[Slot, RestartRequest],
    slots: Mapping[Slot, SlotView],
    max_surge: int,
    max_unavailable: int,
) -> Iterator[tuple[Slot, RestartMode]]:
    """Yield the slots that are restarted now, and how.

    With STARTUP_FIRST at most ``max_surge`` servers start beside others at a time. With SHUTDOWN_FIRST at
    most ``max_unavailable`` servers are unavailable, and one of several always stays. A slot without a
    process is filled at once. A starting process is replaced by one request; later ones wait for it. Before
    a rollout is proven, one server is replaced alone, in the order STARTUP_FIRST: the canary.

    Args:
        requests (Mapping[Slot, RestartRequest]): The requests that wait, in order.
        slots (Mapping[Slot, SlotView]): All slots.
        max_surge (int): How many servers may start beside others at a time.
        max_unavailable (int): How many servers may be unavailable at a time.
    """
    servers = [slot.phase for slot in slots.values() if slot.is_server]
    starting = sum(phase in STARTING_PHASES for phase in servers)
    unavailable = sum(phase in UNAVAILABLE for phase in servers)
    able = sum(phase not in LOST for phase in servers)
    # A server that is ready stops only after those that can start have started.
    for key in sorted(requests, key=lambda key: slots[key].phase not in DOWN):
        request, slot = requests[key], slots[key]
        startup_first = request.order is RestartOrder.STARTUP_FIRST and not slot.exclusive
        if slot.phase in (Phase.DRAINING, Phase.STOPPING):
            continue
        if slot.phase in DOWN:
            is_new = slot.is_server and slot.phase in LOST
            starting, unavailable, able = starting + slot.is_server, unavailable + is_new, able + is_new
            yield key, AT_ONCE
        elif slot.phase in STARTING_PHASES:
            if not (slot.has_replaced_starting or slot.exclusive):
                yield key, BESIDE if slot.phase is Phase.REPLACING else AT_ONCE
        elif not slot.is_server:
            yield key, BESIDE if startup_first else AT_ONCE
        elif startup_first or not (request.is_proven or slot.exclusive):
            if starting < (max_surge if request.is_proven else 1):
                starting += 1
                yield key, BESIDE
        elif able <= 1:
            yield key, AFTER_EXIT if slot.exclusive else AT_ONCE
        elif unavailable < min(max_unavailable, able - 1):
            unavailable += 1
            yield key, AFTER_EXIT
