"""When a server wakes up to measure itself, and when it writes to the state."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from sanic.http.constants import HTTP, Stage

from worker import serve
from worker._child import heartbeat
from worker._state.shared import SharedState


class Loop:
    """An event loop whose clock the test turns."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.pauses: list[float] = []

    def call_soon(self, act: Callable[[], None]) -> None:
        act()

    def call_later(self, pause: float, act: Callable[..., None], *args: Any) -> None:
        self.pauses.append(pause)
        self._next = self.now + pause, act, args

    def run(self, late: float = 0.0) -> None:
        """Run the next timer, this late."""
        due, act, args = self._next
        self.now = due + late
        act(*args)


class State:
    """Keeps the beats."""

    def __init__(self) -> None:
        self.beats: list[dict[str, Any]] = []

    def beat(self, requests: int, **numbers: Any) -> None:
        self.beats.append({"requests": requests, **numbers})


class TestClock:
    """The times at which a server wakes up and writes."""

    @pytest.fixture
    def loop(self, monkeypatch: pytest.MonkeyPatch) -> Loop:
        loop = Loop()
        monkeypatch.setattr(heartbeat, "monotonic", lambda: loop.now)
        return loop

    def test_an_idle_server_measures_at_each_beat_only(self, loop: Loop) -> None:
        state: Any = State()
        heartbeat.Heartbeat(cast(Any, loop), state, {}, set())
        for _ in range(3):
            loop.run(0.002)
        assert loop.pauses == [5.0] * 4
        assert [beat["loop_lag_p99"] for beat in state.beats] == [None, *[pytest.approx(0.002)] * 3]

    def test_a_busy_server_measures_four_times_a_second_and_writes_once(self, loop: Loop) -> None:
        state: Any = State()
        beating = heartbeat.Heartbeat(cast(Any, loop), state, {}, set())
        beating.counts["requests_count"] += 2
        loop.run()
        assert [beat["requests"] for beat in state.beats] == [0, 2]
        for _ in range(4):
            assert len(state.beats) == 2
            loop.run()
        # Idle again.
        assert [beat["requests"] for beat in state.beats] == [0, 2, 0]
        assert loop.pauses == [5.0, *[0.25] * 4, 5.0]

    def test_a_request_in_flight_keeps_a_server_busy(self, loop: Loop) -> None:
        state: Any = State()
        connection = SimpleNamespace(_http=SimpleNamespace(stage=Stage.HANDLER))
        heartbeat.Heartbeat(cast(Any, loop), state, {}, {id(connection): connection}.values())
        assert loop.pauses == [0.25]
        connection._http.stage = Stage.IDLE
        for _ in range(4):
            loop.run()
        assert [beat["in_flight"] for beat in state.beats] == [1, 0]
        assert loop.pauses[-1] == 5.0

    def test_what_is_not_known_is_not_written(self, loop: Loop) -> None:
        state: Any = State()
        heartbeat.Heartbeat(cast(Any, loop), state, {})
        assert state.beats[0]["in_flight"] is state.beats[0]["connections"] is None

    @pytest.mark.parametrize("connection", [object(), SimpleNamespace(_http=None)])
    def test_a_connection_of_another_kind_has_no_request(self, loop: Loop, connection: Any) -> None:
        state: Any = State()
        heartbeat.Heartbeat(cast(Any, loop), state, {}, [connection])
        assert (state.beats[0]["connections"], state.beats[0]["in_flight"]) == (1, 0)

    def test_the_lag_of_a_blocked_loop_is_written_at_once_and_forgotten_after_a_minute(
        self, loop: Loop
    ) -> None:
        state: Any = State()
        beating = heartbeat.Heartbeat(cast(Any, loop), state, {}, set())
        loop.run()
        counts = beating.counts

        def serve(seconds: float) -> None:
            until = loop.now + seconds
            while loop.now < until:
                counts["requests_count"] += 1
                loop.run()

        serve(60)
        assert state.beats[-1]["loop_lag_p99"] == 0
        beats = len(state.beats)
        loop.run(3.0)
        assert len(state.beats) == beats + 1
        # Of the 240 samples of a minute, 13 were due while the loop was blocked; 2 of them may be left out.
        assert state.beats[-1]["loop_lag_p99"] == pytest.approx(2.5)
        assert state.beats[-1]["loop_lag_p50"] == 0
        serve(50)
        assert state.beats[-1]["loop_lag_p99"] == pytest.approx(2.5)
        serve(15)
        assert state.beats[-1]["loop_lag_p99"] == 0

    def test_a_long_block_takes_no_more_memory_than_a_minute(self, loop: Loop) -> None:
        lag = heartbeat.LoopLag()
        lag.add(loop.now, loop.now + 1e9, 0.25)
        assert len(lag._samples) <= 241
        assert lag.percentiles() == (pytest.approx(30), pytest.approx(59.5))


@pytest.mark.native
def test_connections_of_http3_are_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat.Http3Protocol, "HTTP_CLASS", object)
    state, app = SharedState(), SimpleNamespace(after_server_stop=lambda listener: None)
    for version, known in ((HTTP.VERSION_3, False), (HTTP.VERSION_1, True)):
        counts = serve._begin_to_beat(app, cast(Any, Loop()), state, version, None, set())
        assert counts == {"requests_count": 0}
        shown = state.numbers(os.getpid())
        assert ("in_flight" in shown, "connections" in shown) == (known, known)
    state.close()
