"""The plan of a rollout: the servers to replace next."""

from __future__ import annotations

import pytest

from worker._supervisor import rollout
from worker._supervisor.model import RestartMode, RestartRequest, SlotView
from worker._supervisor.rollout import AFTER_EXIT, AT_ONCE, BESIDE, merge
from worker.constants import Phase, RestartOrder

UP, DOWN = RestartOrder.STARTUP_FIRST, RestartOrder.SHUTDOWN_FIRST
READY, STARTING, REPLACING = Phase.READY, Phase.STARTING, Phase.REPLACING
DRAINING, BACKOFF, FAILED = Phase.DRAINING, Phase.BACKOFF, Phase.FAILED


def plan(
    order: RestartOrder,
    *phases: Phase,
    wanted: str | None = None,
    max_surge: int = 1,
    max_unavailable: int = 1,
    **view: bool,
) -> dict[str, RestartMode]:
    """Whose turn it is among servers called a, b, ...; all are wanted, or those named."""
    names = "abcdefgh"[: len(phases)]
    slots = {name: SlotView(phase, **view) for name, phase in zip(names, phases, strict=True)}
    requests = {name: RestartRequest(order, 0.0) for name in (names if wanted is None else wanted)}
    return dict(rollout.plan(requests, slots, max_surge, max_unavailable))


class TestStartupFirst:
    def test_one_after_the_other(self) -> None:
        assert plan(UP, READY, READY, READY) == {"a": BESIDE}

    @pytest.mark.parametrize("phase", [STARTING, REPLACING])
    def test_none_while_one_starts(self, phase: Phase) -> None:
        assert plan(UP, phase, READY, wanted="b") == {}

    def test_a_surge(self) -> None:
        assert plan(UP, READY, READY, READY, max_surge=2) == {"a": BESIDE, "b": BESIDE}
        assert plan(UP, REPLACING, READY, READY, wanted="bc", max_surge=2) == {"b": BESIDE}

    @pytest.mark.parametrize("phase", [BACKOFF, FAILED, Phase.STOPPED])
    def test_where_nobody_serves_one_starts_at_once(self, phase: Phase) -> None:
        assert plan(UP, READY, phase, phase) == {"b": AT_ONCE, "c": AT_ONCE}

    def test_of_an_only_one(self) -> None:
        assert plan(UP, READY) == {"a": BESIDE}

    def test_what_cannot_be_bound_twice(self) -> None:
        assert plan(UP, READY, exclusive=True) == {"a": AFTER_EXIT}
        assert plan(UP, READY, READY, exclusive=True) == {"a": AFTER_EXIT}


class TestShutdownFirst:
    def test_one_after_the_other(self) -> None:
        assert plan(DOWN, READY, READY, READY) == {"a": AFTER_EXIT}

    @pytest.mark.parametrize("phase", [STARTING, DRAINING, BACKOFF])
    def test_none_while_one_is_out(self, phase: Phase) -> None:
        assert plan(DOWN, phase, READY, READY, wanted="bc") == {}

    def test_several_out_of_service(self) -> None:
        assert plan(DOWN, READY, READY, READY, max_unavailable=2) == {"a": AFTER_EXIT, "b": AFTER_EXIT}

    def test_one_always_stays(self) -> None:
        assert plan(DOWN, READY, READY, max_unavailable=9) == {"a": AFTER_EXIT}
        assert plan(DOWN, DRAINING, READY, wanted="b", max_unavailable=9) == {}

    def test_of_an_only_one(self) -> None:
        assert plan(DOWN, READY) == {"a": AT_ONCE}
        assert plan(DOWN, FAILED, READY, wanted="b") == {"b": AT_ONCE}

    def test_who_can_start_starts_before_anybody_leaves(self) -> None:
        assert plan(DOWN, READY, FAILED) == {"b": AT_ONCE}
        assert plan(DOWN, READY, BACKOFF) == {"b": AT_ONCE}

    def test_who_is_leaving_has_its_turn_already(self) -> None:
        assert plan(DOWN, DRAINING) == {}
        assert plan(UP, DRAINING) == {}
        assert plan(UP, Phase.STOPPING) == {}


class TestNewcomers:
    @pytest.mark.parametrize("order", [UP, DOWN])
    def test_make_way_once(self, order: RestartOrder) -> None:
        assert plan(order, STARTING) == {"a": AT_ONCE}
        assert plan(order, REPLACING) == {"a": BESIDE}
        assert plan(order, STARTING, has_replaced_starting=True) == {}
        assert plan(order, REPLACING, has_replaced_starting=True) == {}


class TestOthers:
    def test_what_is_no_server_waits_for_nobody(self) -> None:
        assert plan(UP, READY, READY, STARTING, wanted="ab", is_server=False) == {"a": BESIDE, "b": BESIDE}
        assert plan(DOWN, READY, READY, is_server=False) == {"a": AT_ONCE, "b": AT_ONCE}

    def test_what_is_no_server_does_not_count(self) -> None:
        slots = {
            "a": SlotView(READY),
            "b": SlotView(STARTING, is_server=False),
            "c": SlotView(READY, is_server=False),
        }
        assert dict(rollout.plan({"a": RestartRequest(UP, 0.0)}, slots, 1, 1)) == {"a": BESIDE}
        assert dict(rollout.plan({"a": RestartRequest(DOWN, 0.0)}, slots, 1, 1)) == {"a": AT_ONCE}


class TestMerging:
    def test_the_later_order_and_time(self) -> None:
        assert merge(RestartRequest(UP, 1.0), RestartRequest(DOWN, 2.0)) == RestartRequest(DOWN, 2.0)
        assert merge(None, RestartRequest(DOWN, 2.0)) == RestartRequest(DOWN, 2.0)

    @pytest.mark.parametrize(
        ("earlier", "later", "both"),
        [("a,b", "b,c", "a,b,c"), ("a", None, "a"), ("", "b", "b"), (None, None, None)],
    )
    def test_the_files_of_both(self, earlier: str | None, later: str | None, both: str | None) -> None:
        one = RestartRequest(UP, 1.0, {"reloaded_files": earlier, "first": 1})
        two = RestartRequest(UP, 2.0, {"reloaded_files": later, "second": 2})
        assert merge(one, two).config == {"reloaded_files": both, "first": 1, "second": 2}
