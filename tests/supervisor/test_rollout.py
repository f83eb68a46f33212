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
    """Return the plan for servers called a, b, ...; all are to restart, or those in ``wanted``."""
    names = "abcdefgh"[: len(phases)]
    slots = {name: SlotView(phase, **view) for name, phase in zip(names, phases, strict=True)}
    requests = {name: RestartRequest(order, 0.0) for name in (names if wanted is None else wanted)}
    return dict(rollout.plan(requests, slots, max_surge, max_unavailable))


class TestStartupFirst:
    def test_servers_are_replaced_one_after_the_other(self) -> None:
        assert plan(UP, READY, READY, READY) == {"a": BESIDE}

    @pytest.mark.parametrize("phase", [STARTING, REPLACING])
    def test_no_server_is_replaced_while_another_starts(self, phase: Phase) -> None:
        assert plan(UP, phase, READY, wanted="b") == {}

    def test_max_surge_servers_are_replaced_at_once(self) -> None:
        assert plan(UP, READY, READY, READY, max_surge=2) == {"a": BESIDE, "b": BESIDE}
        assert plan(UP, REPLACING, READY, READY, wanted="bc", max_surge=2) == {"b": BESIDE}

    @pytest.mark.parametrize("phase", [BACKOFF, FAILED, Phase.STOPPED])
    def test_slots_without_a_process_start_at_once(self, phase: Phase) -> None:
        assert plan(UP, READY, phase, phase) == {"b": AT_ONCE, "c": AT_ONCE}

    def test_the_only_server_is_replaced_beside_its_process(self) -> None:
        assert plan(UP, READY) == {"a": BESIDE}

    def test_an_exclusive_server_is_replaced_after_its_exit(self) -> None:
        assert plan(UP, READY, exclusive=True) == {"a": AFTER_EXIT}
        assert plan(UP, READY, READY, exclusive=True) == {"a": AFTER_EXIT}


class TestShutdownFirst:
    def test_servers_are_replaced_one_after_the_other(self) -> None:
        assert plan(DOWN, READY, READY, READY) == {"a": AFTER_EXIT}

    @pytest.mark.parametrize("phase", [STARTING, DRAINING, BACKOFF])
    def test_no_server_is_replaced_while_another_is_unavailable(self, phase: Phase) -> None:
        assert plan(DOWN, phase, READY, READY, wanted="bc") == {}

    def test_max_unavailable_servers_are_replaced_at_once(self) -> None:
        assert plan(DOWN, READY, READY, READY, max_unavailable=2) == {"a": AFTER_EXIT, "b": AFTER_EXIT}

    def test_at_least_one_server_stays_ready(self) -> None:
        assert plan(DOWN, READY, READY, max_unavailable=9) == {"a": AFTER_EXIT}
        assert plan(DOWN, DRAINING, READY, wanted="b", max_unavailable=9) == {}

    def test_the_only_ready_server_is_replaced_at_once(self) -> None:
        assert plan(DOWN, READY) == {"a": AT_ONCE}
        assert plan(DOWN, FAILED, READY, wanted="b") == {"b": AT_ONCE}

    def test_slots_without_a_process_start_before_a_server_stops(self) -> None:
        assert plan(DOWN, READY, FAILED) == {"b": AT_ONCE}
        assert plan(DOWN, READY, BACKOFF) == {"b": AT_ONCE}

    def test_stopping_servers_are_not_replaced_again(self) -> None:
        assert plan(DOWN, DRAINING) == {}
        assert plan(UP, DRAINING) == {}
        assert plan(UP, Phase.STOPPING) == {}


class TestStartingServers:
    @pytest.mark.parametrize("order", [UP, DOWN])
    def test_are_replaced_once(self, order: RestartOrder) -> None:
        assert plan(order, STARTING) == {"a": AT_ONCE}
        assert plan(order, REPLACING) == {"a": BESIDE}
        assert plan(order, STARTING, has_replaced_starting=True) == {}
        assert plan(order, REPLACING, has_replaced_starting=True) == {}


class TestManagedProcesses:
    def test_are_replaced_without_waiting(self) -> None:
        assert plan(UP, READY, READY, STARTING, wanted="ab", is_server=False) == {"a": BESIDE, "b": BESIDE}
        assert plan(DOWN, READY, READY, is_server=False) == {"a": AT_ONCE, "b": AT_ONCE}

    def test_do_not_count_as_servers(self) -> None:
        slots = {
            "a": SlotView(READY),
            "b": SlotView(STARTING, is_server=False),
            "c": SlotView(READY, is_server=False),
        }
        assert dict(rollout.plan({"a": RestartRequest(UP, 0.0)}, slots, 1, 1)) == {"a": BESIDE}
        assert dict(rollout.plan({"a": RestartRequest(DOWN, 0.0)}, slots, 1, 1)) == {"a": AT_ONCE}


class TestMerging:
    def test_the_later_order_and_time_apply(self) -> None:
        assert merge(RestartRequest(UP, 1.0), RestartRequest(DOWN, 2.0)) == RestartRequest(DOWN, 2.0)
        assert merge(None, RestartRequest(DOWN, 2.0)) == RestartRequest(DOWN, 2.0)

    @pytest.mark.parametrize(
        ("earlier", "later", "both"),
        [("a,b", "b,c", "a,b,c"), ("a", None, "a"), ("", "b", "b"), (None, None, None)],
    )
    def test_the_files_of_both_are_kept(
        self, earlier: str | None, later: str | None, both: str | None
    ) -> None:
        one = RestartRequest(UP, 1.0, {"reloaded_files": earlier, "first": 1})
        two = RestartRequest(UP, 2.0, {"reloaded_files": later, "second": 2})
        assert merge(one, two).config == {"reloaded_files": both, "first": 1, "second": 2}
