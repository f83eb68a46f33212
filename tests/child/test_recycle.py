"""A server judges itself at its beat, and tells the main process once that it has reached a limit."""

from __future__ import annotations

import math
import os
import random
from multiprocessing import Pipe
from typing import Any

import pytest

from worker._child import recycle
from worker._child.recycle import Limits, Reached, Recycler, draw, judge
from worker._control import send
from worker.multiplexer import WorkerMultiplexer
from worker.settings import Settings, resolve

MIB = 1 << 20


def settings(**given: Any) -> Settings:
    return resolve(given)


def never() -> int:
    raise AssertionError("the proportional memory was read")


class TestJudge:
    """The pure decision."""

    @pytest.mark.parametrize(
        ("limits", "found"),
        [
            (Limits(), None),
            (Limits(requests=100), Reached("max_requests", 100, 100)),
            (Limits(requests=101), None),
            (Limits(lifetime=60.0), Reached("max_lifetime", 60.0, 60.0)),
            (Limits(lifetime=60.1), None),
            (Limits(memory=41 * MIB), None),
        ],
    )
    def test_a_limit_is_reached_by_its_figure(self, limits: Limits, found: Reached | None) -> None:
        assert judge(limits, 100, 60.0, 40 * MIB, never) == found

    def test_shared_memory_counts_in_proportion(self) -> None:
        limits = Limits(memory=30 * MIB, memory_cause="max_memory_percent")
        assert judge(limits, 0, 0.0, 40 * MIB, lambda: 29 * MIB) is None
        found = judge(limits, 0, 0.0, 40 * MIB, lambda: 31 * MIB)
        assert found == Reached("max_memory_percent", 31 * MIB, 30 * MIB)

    def test_resident_memory_counts_where_the_kernel_tells_no_other(self) -> None:
        found = judge(Limits(memory=30 * MIB), 0, 0.0, 40 * MIB, lambda: None)
        assert found == Reached("max_rss", 40 * MIB, 30 * MIB)


class TestDraw:
    """The limits of one process."""

    @pytest.mark.parametrize(
        ("chance", "requests", "lifetime"), [(0.0, 1000, 60.0), (0.5, 900, 54.0), (1.0, 800, 48.0)]
    )
    def test_the_jitter_only_lowers(self, chance: float, requests: int, lifetime: float) -> None:
        given = settings(max_requests=1000, max_lifetime=60, recycle_jitter=0.2)
        found = draw(given, lambda: chance, never)
        assert found.requests == requests
        assert found.lifetime == pytest.approx(lifetime)
        assert found.memory == math.inf

    def test_a_limit_is_at_least_one_request(self) -> None:
        given = settings(max_requests=1, recycle_jitter=1)
        assert draw(given, lambda: 1.0, never).requests == 1

    def test_processes_draw_different_limits_even_if_the_application_seeds(self) -> None:
        given = settings(max_requests=1_000_000, recycle_jitter=0.1)
        found, before = set(), random.getstate()
        for _ in range(8):
            random.seed(1)
            found.add(Recycler(given, lambda *reached: True)._limits.requests)
        random.setstate(before)
        assert len(found) > 4
        assert 900_000 <= min(found) <= max(found) <= 1_000_000

    @pytest.mark.parametrize(
        ("given", "group", "memory", "cause"),
        [
            ({"max_memory_percent": 20}, 1000, 200, "max_memory_percent"),
            ({"max_memory_percent": 20}, None, math.inf, "max_rss"),
            ({"max_memory_percent": 20, "max_rss": 100}, 1000, 100, "max_rss"),
            ({"max_memory_percent": 5, "max_rss": 100}, 1000, 50, "max_memory_percent"),
        ],
    )
    def test_the_lower_limit_of_memory_counts(
        self, given: dict[str, Any], group: int | None, memory: float, cause: str
    ) -> None:
        found = draw(settings(**given), lambda: 0.0, lambda: group)
        assert (found.memory, found.memory_cause) == (memory, cause)


class TestTelling:
    """The message to the main process."""

    def test_a_limit_is_told_once(self) -> None:
        told: list[Any] = []
        recycler = Recycler(
            settings(max_requests=10, recycle_jitter=0), lambda *reached: not told.append(reached)
        )
        for requests in (9, 10, 11):
            recycler.check(requests)
        assert told == [("max_requests", 10, 10)]

    def test_it_is_told_at_a_later_beat_if_the_channel_is_full(self) -> None:
        subscriber, publisher = Pipe(True)
        with subscriber, publisher:
            os.set_blocking(publisher.fileno(), False)
            while send.has_room(publisher):
                os.write(publisher.fileno(), bytes(1))
            tell = WorkerMultiplexer(publisher, {})._request_recycling
            recycler = Recycler(settings(max_requests=10, recycle_jitter=0), tell)
            recycler.check(10)
            while subscriber.poll(0):
                os.read(subscriber.fileno(), 65536)
            os.set_blocking(publisher.fileno(), True)
            recycler.check(12)
            recycler.check(13)
            assert subscriber.recv() == ("__RECYCLE__", "max_requests", 12, 10)
            assert not subscriber.poll(0)

    def test_a_main_process_that_is_gone_is_no_error(self) -> None:
        subscriber, publisher = Pipe(True)
        subscriber.close()
        with publisher:
            tell = WorkerMultiplexer(publisher, {})._request_recycling
            Recycler(settings(max_requests=1), tell).check(1)

    def test_the_proportional_memory_is_read_seldom(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now, read = [100.0], []
        monkeypatch.setattr(recycle, "monotonic", lambda: now[0])
        monkeypatch.setattr(recycle.proc, "pss_bytes", lambda pid: read.append(now[0]) or 1)
        recycler = Recycler(settings(max_rss="1K"), lambda *reached: True)
        for _ in range(25):
            recycler.check(0)
            now[0] += 1.0
        assert read == [100.0, 110.0, 120.0]
