"""The lives of the places in the table: what happens to one, and what follows by ``constants.LIFE``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sanic.log import error_logger, logger

from worker._supervisor.operations import Kind, Operation, Operations
from worker._supervisor.restart_policy import Death, Verdict, how_it_ended, judge, why_not_started
from worker._supervisor.rollout import NEWCOMER, How, Seat, Wish, merged, turns
from worker.constants import LIFE, Happening, Phase, ProcessState, RestartOrder
from worker.process import WorkerProcess, get_now

if TYPE_CHECKING:
    from worker._supervisor.child import Watched
    from worker.settings import Settings

__all__ = ["Lives"]

# How the text of a failed start begins that could not bind what its predecessor still holds.
ADDRESS_IN_USE = "EADDRINUSE"


class Lives:
    """Decides what becomes of each place, and does it by the place's own methods.

    Args:
        places (Callable): Returns all places of the table.
        settings (Settings): The limits.
        clock (Callable): Tells the time, seconds.
        chance (Callable): Draws a number from 0 to 1, for the jitter of a backoff.
        is_occupied (Callable): Whether a process lives in a place, or has not been collected.
        accepts (Callable): Whether one that was told to stop still accepts connections there.

    Attributes:
        stopped: Whether nothing is started any more.
        waits_for_change: Whether a server that fails to start is left alone until a file changes.
        operations: The restarts and scalings under way.
    """

    def __init__(
        self,
        places: Callable[[], Iterable[WorkerProcess]],
        settings: Settings,
        clock: Callable[[], float],
        chance: Callable[[], float],
        is_occupied: Callable[[WorkerProcess], bool],
        accepts: Callable[[WorkerProcess], bool],
    ) -> None:
        self._places = places
        self._settings = settings
        self._clock = clock
        self._chance = chance
        self._is_occupied = is_occupied
        self._wishes: dict[WorkerProcess, Wish] = {}
        self.stopped = False
        self.waits_for_change = False
        self.operations = Operations(clock, accepts)

    @property
    def due(self) -> float:
        """When the next backoff is over; ``inf`` if there is none, or nothing is started any more."""
        backoffs = () if self.stopped else (place.life.due for place in self._places())
        return min(backoffs, default=math.inf)

    def happens(self, place: WorkerProcess, what: Happening, *details: Any) -> None:
        """Do what follows from something that happens to a place.

        Args:
            place (WorkerProcess): The place.
            what (Happening): What happens.
            *details (Any): Of a death, the :class:`Death`; of who is ready or late, :class:`Watched`; of a
                restart, :class:`How`.
        """
        act = LIFE[place.life.phase].get(what)
        if act is None:
            phase = place.life.phase.value
            error_logger.error("Impossible for %s: %s, while %s", place.name, what.value, phase)
        else:
            getattr(self, f"_{act.name.lower()}")(place, *details)

    def begun(self, kind: Kind) -> AbstractContextManager[Operation]:
        """Let what is asked for in the body be one operation, whose outcome is logged."""
        # An order that the operator has set is obeyed as it stands.
        careful = self._settings.canary and self._settings.reload_order is not RestartOrder.SHUTDOWN_FIRST
        return self.operations.begun(kind, proven=not careful)

    def wish(self, place: WorkerProcess, order: RestartOrder, config: Mapping[str, Any]) -> None:
        """Restart a place when it is its turn; with several such wishes, once."""
        if place.exclusive and order is RestartOrder.STARTUP_FIRST:
            logger.info("%s is restarted with SHUTDOWN_FIRST: its port cannot be bound twice", place.name)
        with self.begun(Kind.RESTART) as operation:
            operation.concerns(place)
            operation.reloads = operation.reloads or bool(config.get("reloaded_files"))
        wish = Wish(order, self._clock(), config, (operation,))
        self._wishes[place] = merged(self._wishes.get(place), wish)

    def start(self, place: WorkerProcess, operation: Operation | None = None) -> None:
        """Start the first process of a place; where the system refuses it, the restart policy goes on.

        Raises:
            Exception: The process cannot be started at all.
        """
        if operation is not None:
            operation.concerns(place)
            self._wishes[place] = Wish(RestartOrder.SHUTDOWN_FIRST, self._clock(), {}, (operation,))
        self.happens(place, Happening.START)

    def stop(self) -> None:
        """Stop every process, and start none any more, whatever happens from now on."""
        for place in [*self._places()]:
            # One that has just died may have a predecessor that serves on.
            if self._is_occupied(place) or place.is_alive():
                place.terminate()
        self.halt()

    def halt(self) -> None:
        """Start nothing any more, whatever happens from now on."""
        self.stopped = True
        self._wishes.clear()
        self.operations.stop()
        for place in [*self._places()]:
            self.happens(place, Happening.STOP)

    def go_on(self) -> None:
        """Start whose backoff is over, and restart whose turn it is; tell of operations that have ended."""
        if self.stopped:
            return
        self._take_turns()
        self.operations.settle([*self._places()], self._wishes)

    def _take_turns(self) -> None:
        now = self._clock()
        for place in [place for place in self._places() if place.life.due <= now]:
            self.happens(place, Happening.DUE)
        if not self._wishes:
            return
        seats = {
            place: Seat(place.life.phase, place.is_server, place.exclusive, place.life.displaced)
            for place in self._places()
        }
        self._wishes = {place: wish for place, wish in self._wishes.items() if place in seats}
        wishes = self._wishes.copy()
        for place, how in turns(wishes, seats, self._settings.max_surge, self._settings.max_unavailable):
            # The start of another one may have failed meanwhile, and ended it all.
            if place in self._wishes:
                self.happens(place, Happening.RESTART, how)

    def is_served(self) -> bool:
        """Whether any server runs, or will."""
        gone = (Phase.STOPPED, Phase.FAILED)
        return any(place.life.phase not in gone for place in self._places() if place.is_server)

    # The acts, by their names in ``constants.Act``

    def _await(self, place: WorkerProcess) -> None:
        place.enter(Phase.STARTING if place.predecessor is None else Phase.REPLACING)

    def _fill(self, place: WorkerProcess, *_: Any) -> None:
        if place in self._wishes:
            place.life.exits.clear()
        self._start(place, RestartOrder.SHUTDOWN_FIRST)

    def _succeed(self, place: WorkerProcess, death: Death) -> None:
        logger.debug("%s, as it was told to", death)
        if not place.is_alive():
            self._start(place, RestartOrder.SHUTDOWN_FIRST)

    def _renew(self, place: WorkerProcess, how: How) -> None:
        if how.order is RestartOrder.STARTUP_FIRST or how.at_once:
            self._start(place, how.order)
        else:
            place.enter(Phase.DRAINING)
            place.vacate()

    def _displace(self, place: WorkerProcess, how: How) -> None:
        self._start(place, how.order, displaced=True)

    def _welcome(self, place: WorkerProcess, watched: Watched) -> None:
        watched.ready = self._clock()
        place.enter(Phase.READY)
        if place.is_server and place.state < ProcessState.ACKED:
            place.acked()
        if place.life.last_death is not None:
            place.note({"why": f"{place.life.last_death}; it was replaced"})
            place.life.last_death = None
        for operation in place.life.wish.operations if place.life.wish is not None else ():
            operation.ready(place)

    def _hand_over(self, place: WorkerProcess, watched: Watched) -> None:
        self._welcome(place, watched)
        place.hand_over()

    def _abandon(self, place: WorkerProcess, watched: Watched) -> None:
        watched.ready_by = math.inf
        watched.kill()

    def _take_back(self, place: WorkerProcess, death: Death) -> None:
        place.enter(Phase.READY)
        place.take_back()
        wish = place.life.wish
        if _is_address_in_use(death) and wish is not None and wish.order is RestartOrder.SHUTDOWN_FIRST:
            # The code may be all right: it cannot bind what the worker that it is to replace has bound.
            for operation in wish.operations:
                operation.proven = True
            self._wishes[place] = merged(wish, self._wishes.get(place, wish))
            logger.info("%s; the restart goes on with SHUTDOWN_FIRST, as it was asked for", death)
            return
        self._report(place, death, "its predecessor stays" + self._end_restart(place, death))

    def _promote(self, place: WorkerProcess, death: Death) -> None:
        place.enter(Phase.STARTING)
        place.lose_predecessor()
        self._report(place, death, "its successor is starting")

    def _mourn(self, place: WorkerProcess, death: Death) -> None:
        life = place.life
        place.set_state(ProcessState.COMPLETED if death.code == 0 else ProcessState.FAILED, force=True)
        place.ceases_to_serve()
        if death.others and death.served is None and _is_address_in_use(death):
            place.enter(Phase.DRAINING)
            if life.wish is not None:
                self._wishes.setdefault(place, life.wish)
            logger.info("%s; it is started again when its predecessor has left", death)
            return
        given_up = self._end_restart(place, death) if life.wish is not None and death.served is None else ""
        if self.waits_for_change and place.is_server and death.begun and death.served is None:
            verdict = Verdict(math.inf, True, "it is started again at the next change of a file")
        else:
            endures = getattr(place.target, "is_reloader", False) is True
            verdict = judge(
                life, death, place.restart_policy, self._settings, self._chance(), endures=endures
            )
        self._report(place, death, verdict.why + given_up, verdict.delay)
        if verdict.delay < math.inf:
            life.restarts += 1
            life.due = self._clock() + verdict.delay
            place.enter(Phase.BACKOFF)
        elif verdict.failed:
            place.enter(Phase.FAILED)
            place.set_state(ProcessState.FAILED, force=True)
        else:
            place.enter(Phase.STOPPED)

    def _dismiss(self, place: WorkerProcess) -> None:
        self._wishes.pop(place, None)
        place.life.due = math.inf
        place.enter(Phase.STOPPING if self._is_occupied(place) else Phase.STOPPED)

    def _clear(self, place: WorkerProcess, death: Death) -> None:
        logger.debug("%s, as it was told to", death)
        if death.others:
            return
        place.enter(Phase.STOPPED)
        if place.state < ProcessState.TERMINATED:
            # It ended while the server began to stop.
            place.set_state(ProcessState.COMPLETED if death.code == 0 else ProcessState.FAILED)

    def _nothing(self, place: WorkerProcess, *_: Any) -> None:
        pass

    # What they have in common

    def _start(self, place: WorkerProcess, order: RestartOrder, displaced: bool = False) -> None:
        wish = self._wishes.pop(place, None)
        if displaced and wish is not None and place.life.wish is not None:
            # Who asked for the one that makes way gets this one.
            operations = dict.fromkeys((*place.life.wish.operations, *wish.operations))
            wish = replace(wish, operations=(*operations,))
        place.life.wish, place.life.displaced = wish, displaced
        if place.life.due < math.inf:
            place.life.due = math.inf
            place.note({"next_restart_at": None})
        began, is_first = self._clock(), place.state is ProcessState.IDLE
        try:
            if is_first:
                place.start()
            else:
                place.renew(order, {} if wish is None else wish.config)
        except Exception as error:
            if is_first and not isinstance(error, (OSError, MemoryError)):
                raise
            self._not_started(place, order, began, error)

    def _not_started(self, place: WorkerProcess, order: RestartOrder, began: float, error: Exception) -> None:
        cause = error.__cause__ or error
        if not isinstance(cause, OSError):
            error_logger.exception("%s could not be started", place.name, exc_info=error)
        death = Death(place.name, None, began, error=why_not_started(cause), begun=False)
        refused = isinstance(error, ConnectionError) and place.life.phase in (Phase.READY, *NEWCOMER)
        if refused or (order is RestartOrder.STARTUP_FIRST and place.is_alive()):
            # Nobody has left; a newcomer that was to make way may have.
            place.enter(place.life.phase if refused else Phase.READY)
            error_logger.error("%s; the previous worker stays%s", death, self._end_restart(place, death))
        elif place.is_alive():
            place.enter(Phase.DRAINING)
        else:
            self._mourn(place, death)

    def _end_restart(self, place: WorkerProcess, death: Death) -> str:
        """Drop what was wished for before the process that failed was started; return that in words."""
        dropped = {place: wish for place, wish in self._wishes.items() if wish.made <= death.started}
        for one in dropped:
            del self._wishes[one]
        failed = [place.life.wish] if place.life.wish is not None else []
        ended = (operation for wish in (*failed, *dropped.values()) for operation in wish.operations)
        self.operations.abort(ended, str(death))
        return f", and the restart of {len(dropped)} more is given up" if dropped else ""

    def _report(self, place: WorkerProcess, death: Death, why: str, delay: float = math.inf) -> None:
        """Note a death in the entry of its place, and log it."""
        now = get_now()
        place.life.last_death = death
        place.note(
            {
                "last_exit": how_it_ended(death.code),
                "last_exit_at": now,
                "restarts": place.life.restarts + (delay < math.inf),
                "next_restart_at": None if delay == math.inf else now + timedelta(seconds=delay),
                "why": f"{death}; {why}",
            }
        )
        # Last: the state shows what the log tells.
        if death.code == 0 and not place.is_server and delay == math.inf:
            logger.debug("%s; %s", death, why)
        else:
            error_logger.error("%s; %s", death, why)


def _is_address_in_use(death: Death) -> bool:
    return death.error.startswith(ADDRESS_IN_USE)
