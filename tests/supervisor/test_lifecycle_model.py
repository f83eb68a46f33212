"""After any events, in any order: no worker is lost, and none is doubled.

Real slots go through their lifecycle with simulated processes and a simulated clock.
"""

from __future__ import annotations

import logging
import math
import os
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import settings as profile
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.fakes import FakeBase
from support.targets import nothing

from worker import process as module
from worker._state.event_log import EventLog
from worker._supervisor import model
from worker._supervisor.child import ChildProcess
from worker._supervisor.lifecycle import IMPOSSIBLE, Lifecycle
from worker._supervisor.mailbox import Mailbox
from worker._supervisor.operation import Kind, Operation
from worker._supervisor.rollout import STARTING_PHASES
from worker.constants import Phase, ProcessState, RestartOrder
from worker.process import RestartAsked, SlotChanged, SlotStarted, WorkerProcess
from worker.settings import resolve

PICK = st.integers(0, 1000)
FINAL = (ProcessState.TERMINATED, ProcessState.FAILED, ProcessState.COMPLETED)


class Paper(FakeBase):
    """A simulated process: after a stop it runs until the test lets it exit."""

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


class PaperChild(ChildProcess):
    """The supervisor's view of a simulated process, which it can kill."""

    def kill(self) -> None:
        self.base.terminated += 1


class World(RuleBasedStateMachine):
    """Some servers, one managed process, and all events that can happen to them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(module, "os", types.SimpleNamespace(kill=self.interrupt, environ=os.environ))
        self.made: list[FakeBase] = []
        self.base = type("Base", (Paper,), {"made": self.made, "breaks": ""})
        self.slots: list[WorkerProcess] = []
        self.watched: list[PaperChild] = []
        self.mailbox = Mailbox(lambda: None)
        self.mailbox.open()
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
        self.lifecycle = Lifecycle(
            lambda: self.slots,
            self.settings,
            lambda: self.now,
            lambda: 0.5,
            lambda slot: any(one.slot is slot for one in self.watched),
            lambda slot: any(one.slot is slot and one.base.terminated for one in self.watched),
            self.read_mailbox,
            EventLog({}),
        )
        self.count = 0
        self.first = servers
        self.exclusive = exclusive
        for _ in range(servers):
            self.add()
        self.add("Sanic-Other-0")
        for watched in list(self.watched):
            self.lifecycle.handle(watched.slot, model.Ready(watched))

    def teardown(self) -> None:
        try:
            if hasattr(self, "lifecycle"):
                self.comes_to_rest()
        finally:
            logging.getLogger("sanic.error").removeHandler(self.listener)
            self.patch.undo()

    # The supervisor of the slots

    @property
    def goes_on(self) -> bool:
        return self.lifecycle.server.starts_processes

    def read_mailbox(self) -> None:
        for message in self.mailbox.take():
            if isinstance(message, SlotStarted):
                slot = message.slot
                child = PaperChild(slot, slot.current, self.now, math.inf)
                self.watched.append(child)
                self.lifecycle.handle(slot, model.Started(child))
            elif isinstance(message, SlotChanged) and message.state is ProcessState.TERMINATED:
                self.lifecycle.handle(message.slot, model.StopSent())
            elif isinstance(message, RestartAsked) and self.goes_on:
                self.lifecycle.request(message.slot, message.order, message.config)

    @contextmanager
    def operation(self, kind: Kind) -> Iterator[Operation]:
        with self.lifecycle.operation(kind) as operation:
            yield operation
            self.read_mailbox()

    def interrupt(self, pid: int, signum: int) -> None:
        next(base for base in self.made if base.pid == pid).terminate()

    # Events

    def add(self, name: str = "") -> None:
        name = name or f"Sanic-Server-{self.count}-0"
        self.count += 1
        slot = WorkerProcess(self.base, name, nothing, {}, {}, True, mailbox=self.mailbox)  # type: ignore[arg-type]
        slot.restart_policy = self.settings.restart_policy if slot.is_server else "never"
        slot.exclusive = self.exclusive and slot.is_server
        self.slots.append(slot)
        with self.operation(Kind.SCALE_UP) as operation:
            self.lifecycle.start(slot, operation)

    def starting(self) -> list[PaperChild]:
        phase = self.lifecycle.phase
        return [one for one in self.watched if one.is_current and phase(one.slot) in STARTING_PHASES]

    def end(self, watched: PaperChild, code: int) -> None:
        self.watched.remove(watched)
        watched.base.alive, watched.base.exitcode = False, code
        slot = watched.slot
        others = any(one.slot is slot for one in self.watched)
        exit_ = watched.exit(code, self.now, others)
        if watched.base is slot.previous:
            event: model.SlotEvent = model.PreviousExited(exit_)
        else:
            event = model.Exited(exit_) if watched.is_current else model.StoppedExited(exit_)
        self.lifecycle.handle(slot, event)
        slot.on_exit(watched.base, self.lifecycle.phase(slot) is Phase.READY)

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, 20.0]), has_room=st.booleans())
    def time_goes_by(self, seconds: float, has_room: bool) -> None:
        """There may be no room for the processes that are due."""
        self.now += seconds
        self.base.breaks = "" if has_room or self.calm else "started"  # type: ignore[attr-defined]
        self.read_mailbox()
        self.lifecycle.run_due()
        self.base.breaks = ""  # type: ignore[attr-defined]

    @precondition(lambda self: self.starting())
    @rule(pick=PICK)
    def one_is_ready(self, pick: int) -> None:
        starting = self.starting()
        watched = starting[pick % len(starting)]
        self.lifecycle.handle(watched.slot, model.Ready(watched))
        self.read_mailbox()
        self.lifecycle.run_due()

    @precondition(lambda self: not self.calm and self.starting())
    @rule(pick=PICK)
    def one_is_late(self, pick: int) -> None:
        starting = self.starting()
        watched = starting[pick % len(starting)]
        self.lifecycle.handle(watched.slot, model.StartTimedOut(watched))

    @precondition(lambda self: any(one.base.terminated for one in self.watched))
    @rule(pick=PICK, code=st.sampled_from([0, -15]))
    def one_leaves(self, pick: int, code: int) -> None:
        told = [one for one in self.watched if one.base.terminated]
        self.end(told[pick % len(told)], code)
        self.read_mailbox()
        self.lifecycle.run_due()

    @precondition(lambda self: not self.calm and self.watched)
    @rule(pick=PICK, code=st.sampled_from([0, 1, -9]), error=st.sampled_from(["", "EADDRINUSE: no"]))
    def a_process_exits(self, pick: int, code: int, error: str) -> None:
        watched = self.watched[pick % len(self.watched)]
        watched.error = error
        self.end(watched, code)
        self.read_mailbox()
        self.lifecycle.run_due()

    @precondition(lambda self: self.goes_on)
    @rule(order=st.sampled_from(RestartOrder), picks=st.sets(PICK, max_size=2))
    def a_restart(self, order: RestartOrder, picks: set[int]) -> None:
        """Some slots, or all of them."""
        some = {self.slots[pick % len(self.slots)] for pick in picks} or self.slots
        with self.operation(Kind.RESTART):
            for slot in self.slots:
                if slot in some:
                    slot.restart(order)
        self.read_mailbox()
        self.lifecycle.run_due()

    @precondition(lambda self: not self.calm and self.goes_on)
    @rule(order=st.sampled_from(RestartOrder), when=st.sampled_from(["made", "started"]))
    def a_restart_without_room(self, order: RestartOrder, when: str) -> None:
        """No process can be made, or started."""
        self.base.breaks = when  # type: ignore[attr-defined]
        self.a_restart(order, set())
        self.base.breaks = ""  # type: ignore[attr-defined]

    @precondition(lambda self: self.goes_on and len(self.slots) < 8)
    @rule()
    def one_more(self) -> None:
        self.add()

    @precondition(lambda self: not self.calm and self.goes_on and len(self.slots) < 8)
    @rule()
    def one_more_without_room(self) -> None:
        """Its first process cannot be started."""
        self.base.breaks = "started"  # type: ignore[attr-defined]
        self.add()
        self.base.breaks = ""  # type: ignore[attr-defined]
        self.read_mailbox()
        self.lifecycle.run_due()

    @precondition(
        lambda self: not self.calm and self.goes_on and sum(slot.is_server for slot in self.slots) > 1
    )
    @rule(pick=PICK)
    def one_fewer(self, pick: int) -> None:
        servers = [slot for slot in self.slots if slot.is_server]
        slot = servers[pick % len(servers)]
        with self.operation(Kind.SCALE_DOWN):
            self.slots.remove(slot)
            self.lifecycle.operations.add_removed(slot)
            slot.terminate()
        self.read_mailbox()
        self.lifecycle.run_due()

    @precondition(lambda self: not self.calm and self.goes_on)
    @rule(unseen=st.sets(PICK, max_size=3), code=st.sampled_from([0, 1, -9]))
    def the_server_stops(self, unseen: set[int], code: int) -> None:
        """Some processes exit just before; the main process learns of that after it has obeyed the stop."""
        dead = {self.watched[pick % len(self.watched)] for pick in unseen} if self.watched else set()
        for watched in dead:
            watched.base.alive = False
        self.lifecycle.stop()
        for watched in dead:
            self.end(watched, code)
        self.read_mailbox()
        self.lifecycle.run_due()

    # Invariants

    @invariant()
    def nothing_impossible_happens(self) -> None:
        assert not [line for line in self.errors if IMPOSSIBLE in line]

    @invariant()
    def no_process_is_lost_or_doubled(self) -> None:
        for slot in self.slots:
            here = [one for one in self.watched if one.slot is slot]
            staying = [one.base for one in here if not one.base.terminated and one.base.alive]
            phase = self.lifecycle.phase(slot)
            assert len(staying) <= 1 + (phase is Phase.REPLACING), (slot.name, phase)
            assert set(staying) <= {slot._current_process, slot.previous}
            if phase is Phase.REPLACING:
                assert slot.previous is not None and slot.previous.is_alive()
            else:
                assert slot.previous is None
            if phase in (Phase.READY, Phase.STARTING):
                assert slot.is_alive()
            elif phase in (Phase.BACKOFF, Phase.FAILED, Phase.STOPPED):
                assert not staying
            elif phase in (Phase.DRAINING, Phase.STOPPING):
                assert here and not staying
            if slot.exclusive and phase in (Phase.READY, Phase.STARTING):
                assert len(here) == 1
            assert (self.lifecycle.record(slot).retry_at < math.inf) is (phase is Phase.BACKOFF)
            if not self.goes_on:
                assert phase in (Phase.STOPPED, Phase.STOPPING)
                assert not staying
                assert here or slot.state in FINAL
        for watched in self.watched:
            assert watched.slot in self.slots or watched.base.terminated

    @invariant()
    def restarts_take_no_more_than_they_may(self) -> None:
        """As long as no process exits, is late or is removed."""
        if not self.slots or not self.calm:
            return
        servers = [slot for slot in self.slots if slot.is_server]
        phases = [self.lifecycle.phase(slot) for slot in servers]
        serving = phases.count(Phase.READY) + phases.count(Phase.REPLACING)
        assert phases.count(Phase.REPLACING) <= self.settings.max_surge
        assert serving >= self.first - self.settings.max_unavailable
        assert serving >= 1 or self.first == 1

    def comes_to_rest(self) -> None:
        """Once requests end and starting processes become ready, all servers serve that have not failed."""
        for _ in range(200):
            for watched in [one for one in self.watched if one.base.terminated]:
                self.end(watched, 0)
            for watched in self.starting():
                self.lifecycle.handle(watched.slot, model.Ready(watched))
            self.now += 100
            self.read_mailbox()
            self.lifecycle.run_due()
            self.nothing_impossible_happens()
            self.no_process_is_lost_or_doubled()
        if not self.goes_on:
            assert not self.watched
            assert all(self.lifecycle.phase(slot) is Phase.STOPPED for slot in self.slots)
        at_rest = (Phase.READY, Phase.FAILED, Phase.STOPPED)
        assert all(self.lifecycle.phase(slot) in at_rest for slot in self.slots)
        assert len(self.watched) == sum(self.lifecycle.phase(slot) is Phase.READY for slot in self.slots)
        assert not self.lifecycle._requests
        assert not self.lifecycle.operations


TestLifecycleModel = World.TestCase
TestLifecycleModel.settings = profile(max_examples=150, stateful_step_count=40, deadline=None)
