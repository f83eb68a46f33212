"""The share of time in which an event loop is busy, and the report to the main process."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from worker._child import busy
from worker._child.busy import BUSY_SHARE, SAMPLE, BusyReporter, BusyShare


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=100.0, cpu=3.0)
    monkeypatch.setattr(busy, "monotonic", lambda: clock.now)
    monkeypatch.setattr(busy, "thread_time", lambda: clock.cpu)
    return clock


@pytest.fixture
def sample(clock: SimpleNamespace) -> Callable[[BusyShare, float, float, float], None]:
    """Let time pass until a timer runs: how long, how much of it is CPU time, how late it is."""

    def sample(share: BusyShare, passed: float, cpu: float, lag: float) -> None:
        clock.now += passed
        clock.cpu += cpu
        share.add(lag)

    return sample


class TestShare:
    @pytest.mark.parametrize(
        ("samples", "expected"),
        [
            ([(0.25, 0.0, 0.0)] * 4, 0.0),
            # Short steps take CPU time; no timer is late.
            ([(0.25, 0.1, 0.001)] * 4, 0.4),
            ([(0.25, 0.25, 0.001)] * 4, 1.0),
            # Steps that block take none. Two of four timers met one.
            ([(0.25, 0.0, 0.0), (0.35, 0.0, 0.1), (0.25, 0.0, 0.005), (0.35, 0.0, 0.1)], 0.7 / 1.2),
            # One long step.
            ([(30.25, 0.0, 30.0)], 1.0),
            # A thread may get more CPU time than a clock shows, by its resolution.
            ([(0.25, 0.26, 0.0)], 1.0),
            # An idle server has few timers. One that is late does not speak for all of the time.
            ([(5.02, 0.001, 0.02)], (SAMPLE + 0.02) / 5.02),
        ],
    )
    def test_it_is_cpu_time_or_lateness(
        self,
        samples: list[tuple[float, float, float]],
        expected: float,
        sample: Callable[[BusyShare, float, float, float], None],
    ) -> None:
        share = BusyShare()
        for one in samples:
            sample(share, *one)
        assert share.take() == pytest.approx(expected)
        # Each beat has its own.
        assert share.take() is None
        sample(share, 0.25, 0.05, 0.0)
        assert share.take() == pytest.approx(0.2)

    def test_without_a_timer_it_is_not_known(self, clock: SimpleNamespace) -> None:
        share = BusyShare()
        clock.now += 5
        assert share.take() is None


class TestReporter:
    def test_it_reports_each_time_the_server_becomes_busy(self) -> None:
        told: list[None] = []
        reporter = BusyReporter(lambda: told.append(None) or True)  # type: ignore[func-returns-value]
        for share, count in ((None, 0), (0.1, 0), (BUSY_SHARE, 1), (1.0, 1), (0.4, 1), (0.9, 2), (None, 2)):
            reporter.note(share)
            assert len(told) == count

    def test_without_room_it_tries_again(self) -> None:
        rooms = [False, False, True]
        reporter = BusyReporter(lambda: rooms.pop(0))
        for _ in range(5):
            reporter.note(1.0)
        assert rooms == []

    def test_a_main_process_that_is_gone_is_not_missed(self) -> None:
        def tell() -> bool:
            raise BrokenPipeError

        BusyReporter(tell).note(1.0)
