"""Whether a server hangs, and what of it: the decision, in zero time."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker._child.heartbeat import longest_pause
from worker._inspect.metrics import HANGS
from worker._supervisor.duties import hang_policy
from worker._supervisor.duties.hang_policy import Cause, Facts, Progress

LIMIT = 10.0
PAUSE = 2.0


class TestCause:
    @pytest.mark.parametrize(
        ("facts", "cause"),
        [
            (Facts(("S", "S"), native_answers=True, interpreter_answers=True), Cause.LOOP),
            (Facts(("R", "R"), native_answers=True, interpreter_answers=True), Cause.LOOP),
            # It takes no questions.
            (Facts(("S", "S")), Cause.LOOP),
            (Facts(("S", "S"), native_answers=True, interpreter_answers=False), Cause.INTERPRETER),
            (Facts(("R", "S"), native_answers=False, interpreter_answers=False), Cause.NATIVE),
            (Facts(("D", "D"), native_answers=True, interpreter_answers=True), Cause.UNINTERRUPTIBLE),
            (Facts(("D", "D"), native_answers=False, interpreter_answers=False), Cause.UNINTERRUPTIBLE),
            # It reads a file once.
            (Facts(("S", "D"), native_answers=True, interpreter_answers=True), Cause.LOOP),
            (Facts(("D", "S"), native_answers=True, interpreter_answers=True), Cause.LOOP),
            (Facts(("T", "T"), native_answers=False, interpreter_answers=False), Cause.STOPPED),
            (Facts(("S", "T"), native_answers=False, interpreter_answers=False), Cause.STOPPED),
            (Facts(("D", "D"), True, False, False), Cause.FROZEN),
            (Facts(("S", "S"), True, False, False), Cause.FROZEN),
            (Facts(("T", "T"), True, False, False), Cause.FROZEN),
        ],
    )
    def test_it_is_the_outermost_part_that_hangs(self, facts: Facts, cause: Cause) -> None:
        assert hang_policy.cause(facts) is cause

    def test_the_metrics_have_each_from_the_start_on(self) -> None:
        assert [*HANGS] == sorted(cause.label for cause in Cause)

    def test_only_a_blocked_loop_may_obey_a_stop(self) -> None:
        assert [cause.label for cause in Cause if not cause.obeys_no_stop] == ["loop"]


def looked(*looks: tuple[float, float, float], before: Progress | None = None) -> Progress:
    """Return the progress after looks: the time of each, the last beat, and how long it could not run."""
    for at, beat, waited in looks:
        before = hang_policy.observe(before, at, beat, waited)
    assert before is not None
    return before


class TestDeadline:
    def test_the_limit_counts_from_the_last_beat(self) -> None:
        assert hang_policy.deadline(looked((100, 99, 0)), LIMIT) == 109
        assert hang_policy.deadline(looked((100, 99, 0), (110, 109.5, 0)), LIMIT) == 119.5
        assert hang_policy.deadline(looked((100, 99, 0), (110, 99, 0)), LIMIT) == 109

    def test_time_in_which_it_could_not_run_extends_it(self) -> None:
        progress = looked((100, 99, 50), (109, 99, 54))
        assert (progress.lost, hang_policy.deadline(progress, LIMIT)) == (1 + 4, 114)
        progress = looked((114, 99, 55), before=progress)
        assert (progress.lost, hang_policy.deadline(progress, LIMIT)) == (1 + 5, 115)

    def test_a_wait_before_the_last_beat_counts_only_as_far_as_it_may_have_come_after_it(self) -> None:
        progress = looked((100, 100, 0), (110, 107, 5))
        assert progress.lost == 3
        assert looked((100, 100, 0), (110, 107, 2)).lost == 2

    def test_a_beat_ends_it(self) -> None:
        assert looked((100, 99, 0), (110, 99, 8), (115, 114, 9)).lost == 1

    def test_at_the_first_look_all_of_the_wait_may_be_recent(self) -> None:
        assert looked((100, 97, 60)).lost == 3
        assert looked((100, 97, 1)).lost == 1

    def test_it_is_at_most_four_times_the_limit(self) -> None:
        progress = looked((100, 100, 0), (200, 100, 99))
        assert hang_policy.deadline(progress, LIMIT) == 100 + 4 * LIMIT

    def test_a_counter_that_is_set_back_does_not_shorten_it(self) -> None:
        assert hang_policy.deadline(looked((100, 99, 50), (109, 99, 0)), LIMIT) == 110

    def test_clocks_start_anew(self) -> None:
        before = looked((100, 99, 0), (105, 99, 3))
        progress = hang_policy.observe(before, 500, 99, 300, starts_anew=True)
        assert (progress.since, progress.lost, hang_policy.deadline(progress, LIMIT)) == (500, 0, 510)
        # The last beat is older than that.
        progress = looked((505, 99, 301), before=progress)
        assert (progress.since, progress.lost) == (500, 1)
        assert looked((510, 509, 301), before=progress).since == 509


class TestNextLook:
    def test_a_server_that_beats_in_time_needs_none(self) -> None:
        assert hang_policy.next_look(looked((100, 98, 0)), LIMIT, PAUSE) == math.inf

    def test_a_late_beat_has_one_at_the_end_of_the_limit(self) -> None:
        assert hang_policy.next_look(looked((100, 97.9, 0)), LIMIT, PAUSE) == pytest.approx(107.9)


class TestLate:
    @pytest.mark.parametrize(
        ("now", "waited", "suspended", "is_late"),
        [
            (100.0, 0, 0, False),
            (99.0, 0, 0, False),
            (101.9, 0, 0, False),
            (102.1, 0, 0, True),
            # It has waited for a CPU.
            (105.0, 4, 0, False),
            (105.0, 2, 0, True),
            (100.0, 0, 60, True),
        ],
    )
    def test_the_main_process_was_away(
        self, now: float, waited: float, suspended: float, is_late: bool
    ) -> None:
        assert hang_policy.is_late(100, now, waited, suspended, PAUSE) is is_late


def test_the_backoff_doubles_up_to_a_bound() -> None:
    delays = [hang_policy.backoff(attempts, 60.0) for attempts in range(1, 9)]
    assert delays == [60, 120, 240, 480, 960, 960, 960, 960]


def looks_until(
    found: Callable[[float, Progress], bool],
    beat: Callable[[float], float],
    limit: float,
    first: float,
    end: float = math.inf,
    waited: Callable[[float], float] = lambda now: 0.0,
) -> tuple[list[float], Progress | None]:
    """Look at one server as the duty does, until it is found hung or ``end``; return the times."""
    now, progress, times = first, None, []
    while now <= end:
        times.append(now)
        progress = hang_policy.observe(progress, now, beat(now), waited(now))
        if found(now, progress):
            return times, progress
        now = min(now + limit, hang_policy.next_look(progress, limit, longest_pause(limit)))
    return times, None


limits = st.floats(2, 300)
parts = st.floats(0, 1, exclude_max=True)


@given(limits, parts, st.floats(0, 20))
def test_a_hang_is_found_within_a_fifth_of_the_limit(limit: float, phase: float, hung_after: float) -> None:
    """Whenever the last beat comes between two looks, and however many came before."""
    last, pause = hung_after * limit, longest_pause(limit)

    def beat(now: float) -> float:
        return last - pause * math.ceil(max(0.0, last - now) / pause - 1e-9)

    times, progress = looks_until(
        lambda now, seen: now >= hang_policy.deadline(seen, limit), beat, limit, phase * limit
    )
    assert progress is not None
    assert progress.beat == pytest.approx(last, abs=1e-6)
    assert limit - 1e-6 <= times[-1] - last <= 1.2 * limit + 1e-6
    # One more look than there would be without the hang.
    assert len(times) <= (times[-1] - times[0]) / limit + 2 + 1e-6


@given(limits, parts, parts)
def test_a_server_that_beats_is_never_hung_nor_looked_at_more_often(
    limit: float, phase: float, lateness: float
) -> None:
    pause = longest_pause(limit)

    def beat(now: float) -> float:
        return pause * math.floor(now / pause)

    times, progress = looks_until(
        lambda now, seen: now >= hang_policy.deadline(seen, limit),
        beat,
        limit,
        (1 + phase) * limit,
        50 * limit,
    )
    assert progress is None
    assert len(times) <= 50


@given(limits, parts, st.integers(2, 16))
def test_a_server_that_spins_beside_others_on_one_cpu_is_found(
    limit: float, phase: float, servers: int
) -> None:
    """It runs for one n-th of the time, and still hangs after at most four times the limit."""
    share = 1 - 1 / servers
    times, progress = looks_until(
        lambda now, seen: now >= hang_policy.deadline(seen, limit),
        lambda now: 0.0,
        limit,
        phase * limit / 5,
        10 * limit,
        waited=lambda now: share * now,
    )
    assert progress is not None
    expected = min(servers, 4) * limit
    assert expected - 1e-6 <= times[-1] <= max(expected, limit * 1.2) + 1.2 * limit + 1e-6


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 50), st.floats(0, 100)), min_size=1))
def test_a_deadline_is_never_before_the_limit_nor_after_four_times(
    steps: list[tuple[float, float, float]],
) -> None:
    at = waited = 1000.0
    progress: Progress | None = None
    for pause, age, more in steps:
        at, waited = at + pause, waited + more
        beat = max(at - age, -math.inf if progress is None else progress.beat)
        progress = hang_policy.observe(progress, at, beat, waited)
        assert progress.since == beat
        assert 0 <= progress.lost <= at - progress.since + 1e-9
        assert progress.since + LIMIT <= hang_policy.deadline(progress, LIMIT) <= progress.since + 4 * LIMIT
