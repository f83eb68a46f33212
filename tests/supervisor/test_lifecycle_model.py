"""After any events, in any order: no worker is lost, and none is doubled.

Real slots go through their lifecycle with simulated processes and a simulated clock.
"""

from __future__ import annotations

import logging
import math
import os
import types
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import settings as profile
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.fakes import FakeBase
from support.targets import nothing

from worker import process as module
from worker._supervisor.child import Watched
from worker._supervisor.lifecycle import Lives
from worker._supervisor.operations import Kind
from worker._supervisor.rollout import NEWCOMER
from worker.constants import Happening, Phase, ProcessState, RestartOrder
from worker.process import WorkerProcess
from worker.settings import resolve

PICK = st.integers(0, 1000)
FINAL = (ProcessState.TERMINATED, ProcessState.FAILED, ProcessState.COMPLETED)


class Paper(FakeBase):
    """A simulated process: after a stop it lives until the test lets it exit."""

    made: list[FakeBase]
    breaks = ""

    def __init__(self, **kwargs: Any) -> None:
        self.fail_at("made")
        super().__init__(**kwargs)

    def start(self) -> None:
        self.fail_at("started")
        super().start()

    def fail_at(self, when: str) -> None:
        if type(self).breaks == when:
            raise OSError("no more processes")


class PaperWatched(Watched):
    """Kill the simulated process."""

    def kill(self) -> None:
        self.base.terminated += 1


class World(RuleBasedStateMachine):
    """Some servers, one process that is none, and all events that can happen to them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(module, "os", types.SimpleNamespace(kill=self.interrupt, environ=os.environ))
        self.made: list[FakeBase] = []
        self.base = type("Base", (Paper,), {"made": self.made, "breaks": ""})
        self.places: list[WorkerProcess] = []
        self.watched: list[PaperWatched] = []
        self.at_work = True
        self.errors: list[str] = []
        self.listener = logging.Handler()
        self.listener.emit = lambda record: self.errors.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("sanic.error").addHandler(self.listener)

    @initialize(
        servers=st.integers(1, 4),
        surge=st.integers(1, 2),
        unavailable=st.integers(1, 2),
        policy=st.sampled_from(["always", "on-failure", "never"]),
        exclusive=st.booleans(),
        calm=st.booleans(),
        canary=st.booleans(),
    )
    def begin(
        self,
        servers: int,
        surge: int,
        unavailable: int,
        policy: str,
        exclusive: bool,
        calm: bool,
        canary: bool,
    ) -> None:
        self.calm = calm
        self.settings = resolve(
            {
                "max_surge": surge,
                "max_unavailable": unavailable,
                "max_consecutive_failures": 3,
                "restart_policy": policy,
                "canary": canary,
            }
        )
        self.lives = Lives(
            lambda: self.places,
            self.settings,
            lambda: self.now,
            lambda: 0.5,
            lambda place: any(one.place is place for one in self.watched),
            lambda place: any(one.place is place and one.base.terminated for one in self.watched),
        )
        self.count = 0
        self.first = servers
        self.exclusive = exclusive
        for _ in range(servers):
            self.add()
        self.add("Sanic-Other-0")
        for watched in list(self.watched):
            self.lives.happens(watched.place, Happening.READY, watched)

    def teardown(self) -> None:
        try:
            if hasattr(self, "lives"):
                self.comes_to_rest()
        finally:
            logging.getLogger("sanic.error").removeHandler(self.listener)
            self.patch.undo()

    # The overseer of the slots

    def watch(self, place: WorkerProcess) -> None:
        self.watched.append(PaperWatched(place, place._current_process, self.now, math.inf))
        self.lives.happens(place, Happening.STARTED)

    def moved(self, place: WorkerProcess) -> None:
        if place.state is ProcessState.TERMINATED:
            self.lives.happens(place, Happening.STOP)

    def stops(self, process: Any, signum: int) -> bool:
        return True

    def wish(self, place: WorkerProcess, order: RestartOrder, config: Mapping[str, Any]) -> None:
        self.lives.wish(place, order, config)

    def interrupt(self, pid: int, signum: int) -> None:
        next(base for base in self.made if base.pid == pid).terminate()

    # Events

    def add(self, name: str = "") -> None:
        name = name or f"Sanic-Server-{self.count}-0"
        self.count += 1
        place = WorkerProcess(self.base, name, nothing, {}, {}, True, overseer=self)  # type: ignore[arg-type]
        place.restart_policy = self.settings.restart_policy if place.is_server else "never"
        place.exclusive = self.exclusive and place.is_server
        self.places.append(place)
        with self.lives.begun(Kind.SCALE_UP) as operation:
            self.lives.start(place, operation)

    def newcomers(self) -> list[PaperWatched]:
        return [one for one in self.watched if one.current and one.place.life.phase in NEWCOMER]

    def end(self, watched: PaperWatched, code: int) -> None:
        self.watched.remove(watched)
        watched.base.alive, watched.base.exitcode = False, code
        place = watched.place
        others = any(one.place is place for one in self.watched)
        if watched.base is place.predecessor:
            what = Happening.PREDECESSOR_DIED
        else:
            what = Happening.DIED if watched.current else Happening.LEFT
        self.lives.happens(place, what, watched.death(code, self.now, others))
        place.left(watched.base.pid, place.life.phase is Phase.READY)

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, 20.0]), has_room=st.booleans())
    def time_goes_by(self, seconds: float, has_room: bool) -> None:
        """There may be no room for the processes that are due."""
        self.now += seconds
        self.base.breaks = "" if has_room or self.calm else "started"  # type: ignore[attr-defined]
        self.lives.go_on()
        self.base.breaks = ""  # type: ignore[attr-defined]

    @precondition(lambda self: self.newcomers())
    @rule(pick=PICK)
    def one_is_ready(self, pick: int) -> None:
        newcomers = self.newcomers()
        watched = newcomers[pick % len(newcomers)]
        self.lives.happens(watched.place, Happening.READY, watched)
        self.lives.go_on()

    @precondition(lambda self: not self.calm and self.newcomers())
    @rule(pick=PICK)
    def one_is_late(self, pick: int) -> None:
        newcomers = self.newcomers()
        watched = newcomers[pick % len(newcomers)]
        self.lives.happens(watched.place, Happening.LATE, watched)

    @precondition(lambda self: any(one.base.terminated for one in self.watched))
    @rule(pick=PICK, code=st.sampled_from([0, -15]))
    def one_leaves(self, pick: int, code: int) -> None:
        told = [one for one in self.watched if one.base.terminated]
        self.end(told[pick % len(told)], code)
        self.lives.go_on()

    @precondition(lambda self: not self.calm and self.watched)
    @rule(pick=PICK, code=st.sampled_from([0, 1, -9]), error=st.sampled_from(["", "EADDRINUSE: no"]))
    def one_dies(self, pick: int, code: int, error: str) -> None:
        watched = self.watched[pick % len(self.watched)]
        watched.error = error
        self.end(watched, code)
        self.lives.go_on()

    @precondition(lambda self: not self.lives.stopped)
    @rule(order=st.sampled_from(RestartOrder), picks=st.sets(PICK, max_size=2))
    def a_restart(self, order: RestartOrder, picks: set[int]) -> None:
        """Some slots, or all of them."""
        some = {self.places[pick % len(self.places)] for pick in picks} or self.places
        with self.lives.begun(Kind.RESTART):
            for place in self.places:
                if place in some:
                    place.restart(order)
        self.lives.go_on()

    @precondition(lambda self: not self.calm and not self.lives.stopped)
    @rule(order=st.sampled_from(RestartOrder), when=st.sampled_from(["made", "started"]))
    def a_restart_without_room(self, order: RestartOrder, when: str) -> None:
        """No process can be made, or started."""
        self.base.breaks = when  # type: ignore[attr-defined]
        self.a_restart(order, set())
        self.base.breaks = ""  # type: ignore[attr-defined]

    @precondition(lambda self: not self.lives.stopped and len(self.places) < 8)
    @rule()
    def one_more(self) -> None:
        self.add()

    @precondition(lambda self: not self.calm and not self.lives.stopped and len(self.places) < 8)
    @rule()
    def one_more_without_room(self) -> None:
        """Its first process cannot be started."""
        self.base.breaks = "started"  # type: ignore[attr-defined]
        self.add()
        self.base.breaks = ""  # type: ignore[attr-defined]
        self.lives.go_on()

    @precondition(
        lambda self: (
            not self.calm and not self.lives.stopped and sum(place.is_server for place in self.places) > 1
        )
    )
    @rule(pick=PICK)
    def one_fewer(self, pick: int) -> None:
        servers = [place for place in self.places if place.is_server]
        place = servers[pick % len(servers)]
        with self.lives.begun(Kind.SCALE_DOWN):
            self.places.remove(place)
            self.lives.operations.removes(place)
            place.terminate()
        self.lives.go_on()

    @precondition(lambda self: not self.calm and not self.lives.stopped)
    @rule(unseen=st.sets(PICK, max_size=3), code=st.sampled_from([0, 1, -9]))
    def the_server_stops(self, unseen: set[int], code: int) -> None:
        """Some processes exit just before; the main process learns of that after it has obeyed the stop."""
        dead = {self.watched[pick % len(self.watched)] for pick in unseen} if self.watched else set()
        for watched in dead:
            watched.base.alive = False
        self.lives.stop()
        for watched in dead:
            self.end(watched, code)
        self.lives.go_on()

    # Invariants

    @invariant()
    def nothing_impossible_happens(self) -> None:
        assert not [line for line in self.errors if line.startswith("Impossible")]

    @invariant()
    def nobody_is_lost_or_doubled(self) -> None:
        for place in self.places:
            here = [one for one in self.watched if one.place is place]
            staying = [one.base for one in here if not one.base.terminated and one.base.alive]
            phase = place.life.phase
            assert len(staying) <= 1 + (phase is Phase.REPLACING), (place.name, phase)
            assert set(staying) <= {place._current_process, place.predecessor}
            if phase is Phase.REPLACING:
                assert place.predecessor is not None and place.predecessor.is_alive()
            else:
                assert place.predecessor is None
            if phase in (Phase.READY, Phase.STARTING):
                assert place.is_alive()
            elif phase in (Phase.BACKOFF, Phase.FAILED, Phase.STOPPED):
                assert not staying
            elif phase in (Phase.DRAINING, Phase.STOPPING):
                assert here and not staying
            if place.exclusive and phase in (Phase.READY, Phase.STARTING):
                assert len(here) == 1
            assert (place.life.due < math.inf) is (phase is Phase.BACKOFF)
            if self.lives.stopped:
                assert phase in (Phase.STOPPED, Phase.STOPPING)
                assert not staying
                assert here or place.state in FINAL
        for watched in self.watched:
            assert watched.place in self.places or watched.base.terminated

    @invariant()
    def restarts_take_no_more_than_they_may(self) -> None:
        """As long as no process exits, is late or is removed."""
        if not self.places or not self.calm:
            return
        servers = [place for place in self.places if place.is_server]
        phases = [place.life.phase for place in servers]
        serving = phases.count(Phase.READY) + phases.count(Phase.REPLACING)
        assert phases.count(Phase.REPLACING) <= self.settings.max_surge
        assert serving >= self.first - self.settings.max_unavailable
        assert serving >= 1 or self.first == 1

    def comes_to_rest(self) -> None:
        """Once requests end and starting processes become ready, all servers serve that have not failed."""
        for _ in range(200):
            for watched in [one for one in self.watched if one.base.terminated]:
                self.end(watched, 0)
            for watched in self.newcomers():
                self.lives.happens(watched.place, Happening.READY, watched)
            self.now += 100
            self.lives.go_on()
            self.nothing_impossible_happens()
            self.nobody_is_lost_or_doubled()
        if self.lives.stopped:
            assert not self.watched
            assert all(place.life.phase is Phase.STOPPED for place in self.places)
        at_rest = (Phase.READY, Phase.FAILED, Phase.STOPPED)
        assert all(place.life.phase in at_rest for place in self.places)
        assert len(self.watched) == sum(place.life.phase is Phase.READY for place in self.places)
        assert not self.lives._wishes
        assert not self.lives.operations


TestWorld = World.TestCase
TestWorld.settings = profile(max_examples=150, stateful_step_count=40, deadline=None)
