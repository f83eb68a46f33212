"""A stop that waits for the drain delay, and what ends or skips the delay."""

from __future__ import annotations

import os
import signal
from datetime import datetime
from pathlib import Path

import pytest
from sanic.exceptions import ServerKilled
from support.running import House, errors, lives, logged, until, wait_for_end

from worker._inspect.health import readiness
from worker._inspect.status import Sampler
from worker._state.event_log import read_events
from worker._supervisor.model import ServerPhase
from worker.constants import MAIN_NAME

ONE = "Sanic-Server-0-0"
# Longer than a test may take: it does not end by itself.
LONG = 600.0

pytestmark = [pytest.mark.usefixtures("main_is_heard"), pytest.mark.slow]


def is_ready(house: House) -> bool:
    return readiness(Sampler(house.state, {}))["status"] == "ok"


def is_delayed(caplog: pytest.LogCaptureFixture) -> str:
    """Wait until a stop was requested that is delayed; return the line."""
    return logged(caplog, "It is not ready from now on")


def running(house: House) -> None:
    until(lambda: house.manager._supervisor.phase is ServerPhase.RUNNING, "the end of the start")
    # The event of the start follows.
    house.call(lambda: None)


def ready(house: House) -> int:
    """Wait until the server is ready, and the start has ended; return its pid."""
    pid = house.said("ready")[-1].pid
    running(house)
    until(lambda: is_ready(house), "a server that is ready")
    return pid


class TestDelay:
    def test_the_server_accepts_and_is_not_ready_until_the_delay_is_over(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path, drain_delay=1.0)

        def act() -> None:
            pid = ready(house)
            assert "stop_at" not in house.entry(MAIN_NAME)
            os.kill(os.getpid(), signal.SIGTERM)
            line = is_delayed(caplog)
            assert not is_ready(house)
            assert line == (
                "The stop of the server was requested by signal SIGTERM. It is not ready from now on, and "
                "accepts requests for another 1 s (drain_delay)."
            )
            assert isinstance(house.entry(MAIN_NAME)["stop_at"], datetime)
            assert "SIGINT" not in [said.what for said in house.heard]
            house.said("SIGINT")
            assert "The drain delay is over: no more requests are accepted." in caplog.messages
            wait_for_end(pid)

        house.run(act, stops=False)
        assert errors(caplog) == []
        assert [said.what for said in house.heard] == ["ready", "SIGINT"]

    def test_it_is_not_ready_before_the_stop_is_seen_in_the_log(self, tmp_path: Path) -> None:
        house = House(tmp_path, drain_delay=LONG)
        log = house.manager._supervisor.log
        seen: list[tuple[str, bool]] = []
        append = log.append

        def appended(event: object) -> None:
            seen.append((type(event).__name__, is_ready(house)))
            append(event)  # type: ignore[arg-type]

        def act() -> None:
            ready(house)
            log.append = appended  # type: ignore[method-assign]
            os.kill(os.getpid(), signal.SIGTERM)
            until(lambda: seen, "the event")
            os.kill(os.getpid(), signal.SIGTERM)

        house.run(act, stops=False)
        assert seen[0] == ("StopRequested", False)

    @pytest.mark.parametrize("request_", ["__TERMINATE__", "shutdown"])
    def test_a_requested_stop_is_delayed_too(
        self, request_: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path, drain_delay=LONG)

        def act() -> None:
            pid = ready(house)
            # The second one does not end the delay: each of many workers may have asked for the stop.
            for _ in range(2):
                if request_ == "shutdown":
                    house.manager.shutdown()
                else:
                    house.send(request_)
                is_delayed(caplog)
            house.call(lambda: None)
            assert lives(pid) and not is_ready(house)
            requested = [event for event in read_events(house.state) if event["type"] == "stop_requested"]
            assert [event["delay"] for event in requested] == [LONG]

        house.run(act)

    def test_workers_are_replaced_during_the_delay(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path, drain_delay=LONG, restart_policy="always")

        def act() -> None:
            pid = ready(house)
            os.kill(os.getpid(), signal.SIGTERM)
            is_delayed(caplog)
            os.kill(pid, signal.SIGKILL)
            new = house.said("ready", 2)[-1].pid
            house.send("__ALL_PROCESSES__:")
            house.said("ready", 3)
            wait_for_end(new)

        house.run(act)
        assert [said.what for said in house.heard].count("SIGINT") == 1


class TestEnds:
    @pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
    def test_a_second_signal_ends_the_delay_and_a_third_one_kills(
        self, second: signal.Signals, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path, "stubborn", drain_delay=LONG)

        def act() -> None:
            house.said(None)
            running(house)
            os.kill(os.getpid(), signal.SIGTERM)
            is_delayed(caplog)
            assert house.entry(ONE)["state"] == "ACKED"
            os.kill(os.getpid(), second)
            house.until(ONE, state="TERMINATED")
            assert "Shutdown interrupted. Killing." not in caplog.messages
            os.kill(os.getpid(), signal.SIGTERM)

        with pytest.raises(ServerKilled):
            house.run(act, stops=False)
        assert "Shutdown interrupted. Killing." in caplog.messages

    def test_sigint_stops_at_once(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        house = House(tmp_path, drain_delay=LONG)

        def act() -> None:
            ready(house)
            os.kill(os.getpid(), signal.SIGINT)

        house.run(act, stops=False)
        assert [said.what for said in house.heard] == ["ready", "SIGINT"]

    def test_a_stop_during_the_start_is_not_delayed(self, tmp_path: Path) -> None:
        house = House(tmp_path, "never_acks", drain_delay=LONG)

        def act() -> None:
            house.said("ready")
            os.kill(os.getpid(), signal.SIGTERM)

        house.run(act, stops=False)
        assert [said.what for said in house.heard] == ["ready", "SIGINT"]

    def test_a_signal_that_ends_the_wait_for_the_start_is_not_delayed(self, tmp_path: Path) -> None:
        """It is queued while the loop is about to wait, and is handled when the start has ended."""
        house = House(tmp_path, "never_acks", drain_delay=LONG)
        loop = house.manager._loop
        begin = house.manager._supervisor.begin_start

        def signalled() -> None:
            begin()
            loop.on_signal(signal.SIGTERM, None)

        house.manager._supervisor.begin_start = signalled  # type: ignore[method-assign]
        house.run(stops=False)
        # SIGTERM is for a process that has not begun; it may begin before the signal comes.
        stops = (["ready", signum.name] for signum in (signal.SIGINT, signal.SIGTERM))
        assert [said.what for said in house.heard] in ([], ["ready"], *stops)

    @pytest.mark.parametrize("is_waiting", [False, True])
    def test_a_server_whose_workers_have_all_failed_stops_at_once(
        self, is_waiting: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path, drain_delay=LONG, restart_policy="never")

        def act() -> None:
            pid = ready(house)
            if is_waiting:
                os.kill(os.getpid(), signal.SIGTERM)
                is_delayed(caplog)
            os.kill(pid, signal.SIGKILL)

        with pytest.raises(ServerKilled):
            house.run(act, stops=False)
        assert "No server can run any more. Shutting down." in caplog.messages
