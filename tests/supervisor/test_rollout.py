"""The plan of a rollout: the servers to replace next."""

from __future__ import annotations

import pytest

from worker._supervisor.rollout import AFTERWARDS, AT_ONCE, BESIDE, How, Seat, Wish, merged, turns
from worker.constants import Phase, RestartOrder

UP, DOWN = RestartOrder.STARTUP_FIRST, RestartOrder.SHUTDOWN_FIRST
READY, STARTING, REPLACING = Phase.READY, Phase.STARTING, Phase.REPLACING
VACATING, WAITING, FAILED = Phase.DRAINING, Phase.BACKOFF, Phase.FAILED


def plan(
    order: RestartOrder,
    *phases: Phase,
    wanted: str | None = None,
    max_surge: int = 1,
    max_unavailable: int = 1,
    **seat: bool,
) -> dict[str, How]:
    """Return the next servers among those called a, b, ...; all are requested, or the named ones."""
    names = "abcdefgh"[: len(phases)]
    seats = {name: Seat(phase, **seat) for name, phase in zip(names, phases, strict=True)}
    wishes = {name: Wish(order, 0.0) for name in (names if wanted is None else wanted)}
    return dict(turns(wishes, seats, max_surge, max_unavailable))


class TestStartupFirst:
    def test_one_after_the_other(self) -> None:
        assert plan(UP, READY, READY, READY) == {"a": BESIDE}

    @pytest.mark.parametrize("phase", [STARTING, REPLACING])
    def test_none_while_one_starts(self, phase: Phase) -> None:
        assert plan(UP, phase, READY, wanted="b") == {}

    def test_a_surge(self) -> None:
        assert plan(UP, READY, READY, READY, max_surge=2) == {"a": BESIDE, "b": BESIDE}
        assert plan(UP, REPLACING, READY, READY, wanted="bc", max_surge=2) == {"b": BESIDE}

    @pytest.mark.parametrize("phase", [WAITING, FAILED, Phase.STOPPED])
    def test_where_nobody_serves_one_starts_at_once(self, phase: Phase) -> None:
        assert plan(UP, READY, phase, phase) == {"b": AT_ONCE, "c": AT_ONCE}

    def test_of_an_only_one(self) -> None:
        assert plan(UP, READY) == {"a": BESIDE}

    def test_what_cannot_be_bound_twice(self) -> None:
        assert plan(UP, READY, exclusive=True) == {"a": AFTERWARDS}
        assert plan(UP, READY, READY, exclusive=True) == {"a": AFTERWARDS}


class TestShutdownFirst:
    def test_one_after_the_other(self) -> None:
        assert plan(DOWN, READY, READY, READY) == {"a": AFTERWARDS}

    @pytest.mark.parametrize("phase", [STARTING, VACATING, WAITING])
    def test_none_while_one_is_out(self, phase: Phase) -> None:
        assert plan(DOWN, phase, READY, READY, wanted="bc") == {}

    def test_several_out_of_service(self) -> None:
        assert plan(DOWN, READY, READY, READY, max_unavailable=2) == {"a": AFTERWARDS, "b": AFTERWARDS}

    def test_one_always_stays(self) -> None:
        assert plan(DOWN, READY, READY, max_unavailable=9) == {"a": AFTERWARDS}
        assert plan(DOWN, VACATING, READY, wanted="b", max_unavailable=9) == {}

    def test_of_an_only_one(self) -> None:
        assert plan(DOWN, READY) == {"a": AT_ONCE}
        assert plan(DOWN, FAILED, READY, wanted="b") == {"b": AT_ONCE}

    def test_who_can_start_starts_before_anybody_leaves(self) -> None:
        assert plan(DOWN, READY, FAILED) == {"b": AT_ONCE}
        assert plan(DOWN, READY, WAITING) == {"b": AT_ONCE}

    def test_who_is_leaving_has_its_turn_already(self) -> None:
        assert plan(DOWN, VACATING) == {}
        assert plan(UP, VACATING) == {}
        assert plan(UP, Phase.STOPPING) == {}


class TestNewcomers:
    @pytest.mark.parametrize("order", [UP, DOWN])
    def test_make_way_once(self, order: RestartOrder) -> None:
        assert plan(order, STARTING) == {"a": AT_ONCE}
        assert plan(order, REPLACING) == {"a": BESIDE}
        assert plan(order, STARTING, displaced=True) == {}
        assert plan(order, REPLACING, displaced=True) == {}


class TestOthers:
    def test_what_is_no_server_waits_for_nobody(self) -> None:
        assert plan(UP, READY, READY, STARTING, wanted="ab", is_server=False) == {"a": BESIDE, "b": BESIDE}
        assert plan(DOWN, READY, READY, is_server=False) == {"a": AT_ONCE, "b": AT_ONCE}

    def test_what_is_no_server_does_not_count(self) -> None:
        seats = {"a": Seat(READY), "b": Seat(STARTING, is_server=False), "c": Seat(READY, is_server=False)}
        assert dict(turns({"a": Wish(UP, 0.0)}, seats, 1, 1)) == {"a": BESIDE}
        assert dict(turns({"a": Wish(DOWN, 0.0)}, seats, 1, 1)) == {"a": AT_ONCE}


class TestMerging:
    def test_the_later_order_and_time(self) -> None:
        assert merged(Wish(UP, 1.0), Wish(DOWN, 2.0)) == Wish(DOWN, 2.0)
        assert merged(None, Wish(DOWN, 2.0)) == Wish(DOWN, 2.0)

    @pytest.mark.parametrize(
        ("earlier", "later", "both"),
        [("a,b", "b,c", "a,b,c"), ("a", None, "a"), ("", "b", "b"), (None, None, None)],
    )
    def test_the_files_of_both(self, earlier: str | None, later: str | None, both: str | None) -> None:
        one = Wish(UP, 1.0, {"reloaded_files": earlier, "first": 1})
        two = Wish(UP, 2.0, {"reloaded_files": later, "second": 2})
        assert merged(one, two).config == {"reloaded_files": both, "first": 1, "second": 2}
