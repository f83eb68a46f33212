"""The number of servers follows the load: within its bounds, up within seconds, down after minutes."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker._supervisor.duties import scaling_policy
from worker._supervisor.duties.scaling_policy import (
    DOWN_WINDOW,
    FALL_PAUSE,
    HIGH,
    LOOK,
    LOW,
    RISE_PAUSE,
    Decision,
    Load,
    Room,
    decide,
)
from worker.settings.values import Workers

BOUNDS = Workers(1, 8)
HOUR = 3600.0
MIB = 1 << 20
# The measurements that the main process keeps.
SEEN = int(DOWN_WINDOW / LOOK) + 2


class Step(NamedTuple):
    """A change of the number of servers in a simulation."""

    at: float
    before: int
    after: int


class Simulated:
    """A server whose demand for loops is given for each moment. A new process takes a while to start.

    Attributes:
        steps: All changes of the number.
        servers: The number.
        shares: The time of each measurement, and how busy the loops were.
    """

    def __init__(
        self, demand: Callable[[float], float], bounds: Workers = BOUNDS, servers: int = 0, boot: float = 1.0
    ) -> None:
        self.steps: list[Step] = []
        self.servers = servers or bounds.least
        self.shares: list[tuple[float, float]] = []
        self._demand, self._bounds, self._boot = demand, bounds, boot

    def run(self, seconds: float, room: Room | None = None) -> Simulated:
        """Simulate some time in none."""
        history: list[Load] = []
        scaled_at = -math.inf
        ready, ready_at = self.servers, 0.0
        for number in range(int(seconds / LOOK)):
            now = number * LOOK
            ready = self.servers if now >= ready_at else ready
            demand = self._demand(now)
            share = min(1.0, demand / ready)
            waiting = math.ceil(10 * max(0.0, demand - ready))
            self.shares.append((now, share))
            history.append(Load(now, self.servers, ready, share * ready, round(10 * share), waiting))
            # As the main process does, it waits for those that start.
            if ready < self.servers:
                continue
            decision = decide(history[-SEEN:], self._bounds, room or Room(), scaled_at)
            assert bool(decision.reason) == (decision.target != self.servers)
            if decision.target != self.servers:
                self.steps.append(Step(now, self.servers, decision.target))
                ready, ready_at, scaled_at = min(ready, decision.target), now + self._boot, now
                self.servers = decision.target
        return self

    @property
    def directions(self) -> list[int]:
        """The direction of each step, 1 or -1."""
        return [1 if step.after > step.before else -1 for step in self.steps]


def constant(demand: float) -> Callable[[float], float]:
    return lambda now: demand


def square(low: float, high: float, period: float) -> Callable[[float], float]:
    return lambda now: high if now % period < period / 2 else low


def noisy(seed: int, mean: float, spread: float) -> Callable[[float], float]:
    chance = random.Random(seed)
    return lambda now: max(0.0, mean * (1 + spread * chance.uniform(-1, 1)))


def reversals(steps: list[Step]) -> Iterator[float]:
    """Yield the time from each rise to the fall that follows it."""
    for one, other in pairwise(steps):
        if one.after > one.before and other.after < other.before:
            yield other.at - one.at


def check(simulated: Simulated, bounds: Workers = BOUNDS) -> None:
    """Check what holds under any load."""
    numbers = [simulated.servers, *(step.after for step in simulated.steps)]
    assert all(bounds.least <= number <= bounds.most for number in numbers)
    for one, other in pairwise(simulated.steps):
        assert other.at - one.at >= (RISE_PAUSE if other.after > other.before else FALL_PAUSE)
    assert all(seconds > DOWN_WINDOW for seconds in reversals(simulated.steps))
    # It falls by one at a time.
    assert all(step.after >= step.before - 1 for step in simulated.steps)


class TestSimulated:
    @pytest.mark.parametrize("demand", [0.0, 0.3, 0.74, 0.76, 1.0, 1.5, 2.3, 3.0, 4.4, 5.9, 7.0, 20.0])
    @pytest.mark.parametrize("servers", [1, 4, 8])
    def test_a_constant_load_is_met_once_and_for_all(self, demand: float, servers: int) -> None:
        simulated = Simulated(constant(demand), servers=servers).run(HOUR)
        check(simulated)
        assert len(set(simulated.directions)) <= 1
        final = simulated.servers
        assert demand / final < HIGH or final == BOUNDS.most
        assert final == BOUNDS.least or demand > LOW * (final - 1) * 0.9
        last = max((step.at for step in simulated.steps), default=0.0)
        assert last <= DOWN_WINDOW + BOUNDS.most * (FALL_PAUSE + LOOK)

    def test_an_idle_server_falls_to_the_least_number_within_minutes(self) -> None:
        simulated = Simulated(constant(0.0), servers=8).run(HOUR)
        assert [step.after for step in simulated.steps] == [7, 6, 5, 4, 3, 2, 1]
        first, last = simulated.steps[0].at, simulated.steps[-1].at
        assert DOWN_WINDOW <= first <= DOWN_WINDOW + LOOK
        assert last <= first + 6 * (FALL_PAUSE + LOOK)

    def test_an_idle_server_at_the_least_number_makes_no_step(self) -> None:
        assert Simulated(constant(0.0)).run(HOUR).steps == []

    def test_a_sudden_load_is_met_within_seconds(self) -> None:
        simulated = Simulated(lambda now: 5.0 if now >= 60 else 0.0).run(300)
        check(simulated)
        assert simulated.steps[0].at <= 60 + 2 * LOOK
        assert [step.after for step in simulated.steps] == [2, 3, 4, 6, 8]
        assert simulated.steps[-1].at <= 60 + 40

    def test_one_spike_in_one_measurement_is_ignored(self) -> None:
        assert Simulated(lambda now: 6.0 if now == 100 else 0.2).run(HOUR).steps == []

    def test_a_short_peak_makes_few_steps_and_ends_where_it_began(self) -> None:
        simulated = Simulated(lambda now: 2.0 if 100 <= now < 110 else 0.2).run(HOUR)
        check(simulated)
        rises = simulated.directions.count(1)
        assert 1 <= rises <= 2
        assert simulated.directions == [1] * rises + [-1] * rises

    def test_a_fast_square_wave_makes_no_steps_once_its_peak_is_met(self) -> None:
        simulated = Simulated(square(0.2, 4.0, period=60)).run(HOUR)
        check(simulated)
        assert set(simulated.directions) == {1}
        assert simulated.steps[-1].at < 200

    def test_a_slow_square_wave_is_followed_once_a_half(self) -> None:
        period, periods = 1200.0, 5
        simulated = Simulated(square(0.2, 4.0, period)).run(periods * period)
        check(simulated)
        changes = sum(one != other for one, other in pairwise(simulated.directions))
        assert changes == 2 * periods - 1
        assert len(simulated.steps) <= 2 * periods * (BOUNDS.most - BOUNDS.least)
        # The peaks are met: connections wait for half a minute only.
        late = [share for now, share in simulated.shares if 40 < now % period < period / 2]
        assert max(late) < HIGH

    def test_a_ramp_is_followed(self) -> None:
        top = HOUR / 2
        simulated = Simulated(lambda now: 6.0 * (1 - abs(now - top) / top)).run(HOUR)
        check(simulated)
        rises = simulated.directions.count(1)
        assert simulated.directions == [1] * rises + [-1] * (len(simulated.directions) - rises)
        assert max(step.after for step in simulated.steps) == 8
        assert len([share for _, share in simulated.shares if share >= HIGH]) <= 3 * rises + 3

    @pytest.mark.parametrize("seed", range(6))
    @pytest.mark.parametrize("mean", [0.4, 1.2, 2.5, 4.0])
    def test_noise_makes_few_steps(self, seed: int, mean: float) -> None:
        simulated = Simulated(noisy(seed, mean, 0.3)).run(HOUR)
        check(simulated)
        assert len([*reversals(simulated.steps)]) <= 1
        assert len(simulated.steps) <= BOUNDS.most

    def test_slow_starts_are_waited_for(self) -> None:
        simulated = Simulated(constant(3.0), boot=60.0).run(HOUR)
        check(simulated)
        assert all(other.at - one.at >= 60 for one, other in pairwise(simulated.steps))

    @pytest.mark.slow
    @given(
        demands=st.lists(st.floats(0, 12), min_size=30, max_size=400),
        each=st.integers(1, 30),
        least=st.integers(1, 4),
        more=st.integers(1, 6),
        boot=st.floats(0, 20),
    )
    def test_bounds_and_pauses_hold_under_any_load(
        self, demands: list[float], each: int, least: int, more: int, boot: float
    ) -> None:
        bounds = Workers(least, least + more)
        looks = len(demands) * each
        simulated = Simulated(lambda now: demands[int(now / LOOK) // each], bounds, boot=boot)
        check(simulated.run(LOOK * looks), bounds)

    def test_with_all_cpus_in_use_it_does_not_rise(self) -> None:
        room = Room(cpus=2.0, cpus_used=1.8)
        assert Simulated(constant(8.0), servers=2).run(HOUR, room).steps == []


def high(servers: int = 2, share: float = 1.0, **fields: int) -> list[Load]:
    """Return two measurements of a high load."""
    fields = {"measured": servers, "in_flight": 50, **fields}
    return [Load(now, servers, busy=share * fields["measured"], **fields) for now in (0.0, LOOK)]


def low(servers: int, share: float, **fields: int) -> list[Load]:
    """Return the measurements of a low load that was watched for long enough."""
    looks = int(DOWN_WINDOW / LOOK) + 1
    return [Load(number * LOOK, servers, servers, share * servers, **fields) for number in range(looks)]


class TestRise:
    def test_the_reason_has_the_figures(self) -> None:
        assert decide(high(3, 0.92, waiting=14), Workers(2, 8), Room()) == Decision(
            4, "loop 92 % busy, 50 requests in flight, 14 connections wait; 3 of 2..8 workers"
        )
        assert decide(high(3, in_flight=0), Workers(2, 8), Room()).reason == (
            "loop 100 % busy; 3 of 2..8 workers"
        )

    @pytest.mark.parametrize(
        ("servers", "in_flight", "expected"), [(1, 50, 2), (2, 50, 3), (4, 50, 6), (4, 5, 5), (7, 50, 8)]
    )
    def test_its_size_follows_from_the_load(self, servers: int, in_flight: int, expected: int) -> None:
        assert decide(high(servers, in_flight=in_flight), BOUNDS, Room()).target == expected

    def test_it_ends_at_the_largest_number(self) -> None:
        assert decide(high(8, waiting=100), BOUNDS, Room()) == Decision(8)

    def test_waiting_connections_need_loops_that_are_busy_too(self) -> None:
        for share, waiting, expected in ((0.6, 2, 3), (0.6, 1, 2), (0.4, 100, 2), (0.8, 0, 3)):
            assert decide(high(2, share, waiting=waiting), BOUNDS, Room()).target == expected

    def test_a_server_that_hangs_is_no_load(self) -> None:
        assert decide(high(2, 0.3, measured=1), BOUNDS, Room()).target == 2
        assert decide(high(2, 0.9, measured=1), BOUNDS, Room()).target == 3
        assert decide(high(2, 0.9, measured=0), BOUNDS, Room()).target == 2

    def test_measurements_before_the_last_step_do_not_count(self) -> None:
        assert decide(high(2), BOUNDS, Room(), scaled_at=1.0).target == 2
        later = [one._replace(at=one.at + 10) for one in high(2)]
        assert decide(later, BOUNDS, Room(), scaled_at=9.0).target == 2
        assert decide(later, BOUNDS, Room(), scaled_at=12 - RISE_PAUSE).target == 3

    def test_one_measurement_is_not_enough(self) -> None:
        assert decide(high(2)[:1], BOUNDS, Room()).target == 2


class TestRoom:
    @pytest.mark.parametrize(
        ("cpus", "used", "expected"),
        [(8.0, 4.0, 6), (6.0, 4.0, 6), (5.0, 4.0, 5), (4.0, 1.0, 6), (1.5, 0.2, 5)],
    )
    def test_more_servers_than_free_cpus_are_not_started(
        self, cpus: float, used: float, expected: int
    ) -> None:
        assert decide(high(4), BOUNDS, Room(cpus, used)).target == expected

    def test_full_cpus_are_named(self) -> None:
        assert decide(high(4), BOUNDS, Room(1.5, 1.4)) == Decision(4, limit="1.4 of 1.5 CPUs are in use")
        # Without a load there is nothing to say.
        assert decide(high(4, 0.5), BOUNDS, Room(1.5, 1.4)) == Decision(4)

    @pytest.mark.parametrize(
        ("free", "expected"), [(1000, 6), (300, 6), (299, 5), (200, 5), (199, 4), (0, 4)]
    )
    def test_memory_for_one_more_stays_free(self, free: int, expected: int) -> None:
        decision = decide(high(4), BOUNDS, Room(memory=free * MIB, per_server=100 * MIB))
        assert decision.target == expected
        refusal = f"{free} MiB are available, and one takes 100 MiB" if expected == 4 else ""
        assert decision.limit == refusal


class TestFall:
    def test_the_reason_has_the_peak(self) -> None:
        history = low(4, 0.1)
        history[7] = history[7]._replace(busy=4 * 0.3)
        assert decide(history, BOUNDS, Room()) == Decision(
            3, "loop at most 30 % busy for 120 s; 4 of 1..8 workers"
        )

    @pytest.mark.parametrize(
        "change",
        [{"busy": 3.0}, {"measured": 3}, {"waiting": 4}],
        ids=["busy", "one that hangs", "connections that wait"],
    )
    def test_one_measurement_prevents_it_for_the_whole_time(self, change: dict[str, float]) -> None:
        history = low(4, 0.1)
        history[1] = history[1]._replace(**change)  # type: ignore[arg-type]
        assert decide(history, BOUNDS, Room()).target == 4
        later = [*history, history[-1]._replace(at=DOWN_WINDOW + LOOK)]
        later.append(later[-1]._replace(at=DOWN_WINDOW + 2 * LOOK))
        assert decide(later, BOUNDS, Room()).target == 3

    def test_it_needs_the_whole_time(self) -> None:
        assert decide(low(4, 0.1)[1:], BOUNDS, Room()).target == 4
        assert decide(low(4, 0.1), BOUNDS, Room(), scaled_at=DOWN_WINDOW - FALL_PAUSE + 1).target == 4
        assert decide(low(4, 0.1), BOUNDS, Room(), scaled_at=DOWN_WINDOW - FALL_PAUSE).target == 3

    def test_it_ends_at_the_least_number(self) -> None:
        assert decide(low(2, 0.0), Workers(2, 8), Room()).target == 2


def test_there_is_a_gap_between_a_rise_and_a_fall() -> None:
    """The load that makes one more server necessary must not make it superfluous."""
    for servers in range(1, 100):
        assert Load(0.0, servers, servers, HIGH * servers).needed > servers
        assert (
            Load(0.0, servers, servers, scaling_policy.BUSY_SHARE * servers, waiting=servers).needed > servers
        )
