"""The lives of the places in the table: what happens to one, and what follows by ``constants.LIFE``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeGuard

from sanic.log import error_logger, logger

from worker.constants import LIFE, Happening, Phase, ProcessState, RestartOrder
from worker.process import WorkerProcess, get_now
from worker.roll import NEWCOMER, How, Seat, Wish, merged, turns
from worker.supervision import Death, how_it_ended, judge

if TYPE_CHECKING:
    from worker.settings import Settings
    from worker.watched import Watched

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

    Attributes:
        stopped: Whether nothing is started any more.
    """

    def __init__(
        self,
        places: Callable[[], Iterable[WorkerProcess]],
        settings: Settings,
        clock: Callable[[], float],
        chance: Callable[[], float],
    ) -> None:
        self._places = places
        self._settings = settings
        self._clock = clock
        self._chance = chance
        self._wishes: dict[WorkerProcess, Wish] = {}
        self.stopped = False

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
                restart, :class:`How`; of a stop, whether the place is empty already.
        """
        act = LIFE[place.life.phase].get(what)
        if act is None:
            phase = place.life.phase.value
            error_logger.error("Impossible for %s: %s, while %s", place.name, what.value, phase)
        else:
            getattr(self, f"_{act.name.lower()}")(place, *details)

    def wish(self, place: WorkerProcess, order: RestartOrder, config: Mapping[str, Any]) -> None:
        """Restart a place when it is its turn; with several such wishes, once."""
        if place.exclusive and order is RestartOrder.STARTUP_FIRST:
            logger.info("%s is restarted with SHUTDOWN_FIRST: its port cannot be bound twice", place.name)
        self._wishes[place] = merged(self._wishes.get(place), Wish(order, self._clock(), config))

    def go_on(self) -> None:
        """Start whose backoff is over, and restart whose turn it is."""
        if self.stopped:
            self._wishes.clear()
            return
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
        servers = [place for place in self._places() if place.is_server]
        gone = (Phase.EMPTY, Phase.FAILED)
        return not servers or any(place.life.phase not in gone for place in servers)

    # The acts, by their names in ``constants.Act``

    def _await(self, place: WorkerProcess) -> None:
        if place.life.due < math.inf:
            place.note({"next_restart_at": None})
        place.life.phase = Phase.STARTING if place.predecessor is None else Phase.REPLACING
        place.life.due = math.inf

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
            place.life.phase = Phase.VACATING
            place.vacate()

    def _displace(self, place: WorkerProcess, how: How) -> None:
        self._start(place, how.order, displaced=True)

    def _welcome(self, place: WorkerProcess, watched: Watched) -> None:
        watched.ready = self._clock()
        place.life.phase = Phase.READY
        if place.is_server and place.state < ProcessState.ACKED:
            place.acked()
        self._tell_reload(place)

    def _hand_over(self, place: WorkerProcess, watched: Watched) -> None:
        self._welcome(place, watched)
        place.hand_over()

    def _abandon(self, place: WorkerProcess, watched: Watched) -> None:
        watched.error = f"it failed to come ack within {place.THRESHOLD / 10:g} seconds"
        watched.ready_by = math.inf
        watched.kill()

    def _take_back(self, place: WorkerProcess, death: Death) -> None:
        place.life.phase = Phase.READY
        place.take_back()
        self._report(place, death, "its predecessor stays" + self._end_restart(death))

    def _promote(self, place: WorkerProcess, death: Death) -> None:
        place.life.phase = Phase.STARTING
        place.lose_predecessor()
        self._report(place, death, "its successor is starting")

    def _mourn(self, place: WorkerProcess, death: Death) -> None:
        life = place.life
        place.set_state(ProcessState.COMPLETED if death.code == 0 else ProcessState.FAILED, force=True)
        place.ceases_to_serve()
        life.phase = Phase.EMPTY
        if self.stopped:
            logger.debug("%s, as the server is stopping", death)
            return
        if death.others and death.served is None and death.error.startswith(ADDRESS_IN_USE):
            life.phase = Phase.VACATING
            if life.wish is not None:
                self._wishes.setdefault(place, life.wish)
            logger.info("%s; it is started again when its predecessor has left", death)
            return
        given_up = self._end_restart(death) if life.wish is not None and death.served is None else ""
        verdict = judge(life, death, place.restart_policy, self._settings, self._chance())
        self._report(place, death, verdict.why + given_up, verdict.delay)
        if verdict.delay < math.inf:
            life.restarts += 1
            life.phase, life.due = Phase.WAITING, self._clock() + verdict.delay
        elif verdict.failed:
            life.phase = Phase.FAILED
            place.set_state(ProcessState.FAILED, force=True)

    def _dismiss(self, place: WorkerProcess, is_left: bool) -> None:
        self._wishes.pop(place, None)
        place.life.due = math.inf
        place.life.phase = Phase.EMPTY if is_left else Phase.LEAVING

    def _clear(self, place: WorkerProcess, death: Death) -> None:
        logger.debug("%s, as it was told to", death)
        if not death.others:
            place.life.phase = Phase.EMPTY

    def _nothing(self, place: WorkerProcess, *_: Any) -> None:
        pass

    # What they have in common

    def _start(self, place: WorkerProcess, order: RestartOrder, displaced: bool = False) -> None:
        wish = place.life.wish = self._wishes.pop(place, None)
        place.life.displaced = displaced
        if self.stopped:
            place.life.phase, place.life.due = Phase.EMPTY, math.inf
            place.set_state(ProcessState.TERMINATED, force=True)
            return
        began = self._clock()
        try:
            place.renew(order, {} if wish is None else wish.config)
        except Exception as error:
            error_logger.exception("%s could not be started", place.name, exc_info=error)
            self._not_started(place, order, Death(place.name, None, began, error=str(error)), error)

    def _not_started(self, place: WorkerProcess, order: RestartOrder, death: Death, error: Exception) -> None:
        refused = isinstance(error, ConnectionError) and place.life.phase in (Phase.READY, *NEWCOMER)
        if order is RestartOrder.STARTUP_FIRST or refused:
            # Nobody has left; a newcomer that was to make way may have.
            place.life.phase = place.life.phase if refused else Phase.READY
            self._end_restart(death)
        elif place.is_alive():
            place.life.phase = Phase.VACATING
        else:
            self._mourn(place, death)

    def _end_restart(self, death: Death) -> str:
        """Drop what was wished for before the process that failed was started; return that in words."""
        dropped = [place for place, wish in self._wishes.items() if wish.made <= death.started]
        for place in dropped:
            del self._wishes[place]
        return f", and the restart of {len(dropped)} more is given up" if dropped else ""

    def _tell_reload(self, last: WorkerProcess) -> None:
        """Log how long a reload took, with the last of the servers that it has renewed."""
        wish = last.life.wish
        unsettled = (place.life.wish for place in self._places() if place.life.phase in NEWCOMER)
        if _is_reload(wish) and not any(map(_is_reload, (*self._wishes.values(), *unsettled))):
            logger.info("The new code serves, %.2f s after the change", self._clock() - wish.made)

    def _report(self, place: WorkerProcess, death: Death, why: str, delay: float = math.inf) -> None:
        """Log a death, and note it in the entry of its place."""
        if death.code == 0 and not place.is_server and delay == math.inf:
            logger.debug("%s; %s", death, why)
        else:
            error_logger.error("%s; %s", death, why)
        now = get_now()
        place.note(
            {
                "last_exit": how_it_ended(death.code),
                "last_exit_at": now,
                "restarts": place.life.restarts + (delay < math.inf),
                "next_restart_at": None if delay == math.inf else now + timedelta(seconds=delay),
                "why": f"{death}; {why}",
            }
        )


def _is_reload(wish: Wish | None) -> TypeGuard[Wish]:
    return wish is not None and bool(wish.config.get("reloaded_files"))
