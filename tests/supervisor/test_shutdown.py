"""The loop stops all processes, and ends."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from sanic.exceptions import ServerKilled
from support import targets
from support.running import House, errors, lives, logged, until, wait_for_end

from worker._child import descriptors
from worker._supervisor.model import ServerPhase
from worker.process import WorkerProcess

ONE, TWO, THREE = (f"Sanic-Server-{number}-0" for number in range(3))
EIGHT = ("Errand", targets.errand, {}, False, True, True, True, 1)


pytestmark = [pytest.mark.usefixtures("main_is_heard"), pytest.mark.slow]


class TestStops:
    @pytest.mark.parametrize("signum", targets.STOPS)
    def test_a_signal_stops_all_servers(
        self, signum: signal.Signals, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path, number=2)

        def act() -> None:
            house.said("ready", 2)
            os.kill(os.getpid(), signum)

        house.run(act, stops=False)
        assert [said.what for said in house.heard] == ["ready", "ready", "SIGINT", "SIGINT"]
        assert f"Received signal {signum.name}. Shutting down." in caplog.messages
        assert errors(caplog) == []

    def test_a_signal_before_the_run_prevents_the_start(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path, number=2)
        house.manager.manage("Errand", targets.errand, {}, auto_start=False)
        signal.raise_signal(signal.SIGTERM)
        house.run(stops=False)
        assert house.heard == []
        assert "Received signal SIGTERM. Shutting down." in caplog.messages

    def test_a_signal_between_two_starts_prevents_the_second(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        house = House(tmp_path, "never_acks", number=3)
        start = WorkerProcess.start

        def interrupted(process: WorkerProcess) -> None:
            start(process)
            signal.raise_signal(signal.SIGTERM)

        monkeypatch.setattr(WorkerProcess, "start", interrupted)
        house.run(stops=False)
        assert {said.name for said in house.heard} <= {ONE}

    def test_a_stop_before_the_acks_drops_deferred_commands(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path, "never_acks", number=2)

        def act() -> None:
            house.said("ready", 2)
            house.send("__SCALE__:3")
            house.call(lambda: None)

        house.run(act)
        assert [said.what for said in house.heard] == ["ready", "ready", "SIGINT", "SIGINT"]
        assert errors(caplog) == []
        # Commands that waited for the acks are dropped.
        assert "Scaling from 2 to 3 workers" not in caplog.messages

    def test_an_exit_by_the_same_signal_is_no_failure(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """SIGTERM to all at once, while the servers start: the main process's own comes first."""
        house = House(tmp_path, "acks_behind_the_gate", number=2)
        the_loop = house.manager._loop
        turn = the_loop.turn

        def all_at_once(at_most: float | None = None) -> None:
            the_loop.turn = turn  # type: ignore[method-assign]
            for said in house.said("at the gate", 2):
                os.kill(said.pid, signal.SIGTERM)
                wait_for_end(said.pid)
            signal.raise_signal(signal.SIGTERM)
            turn(at_most)

        the_loop.turn = all_at_once  # type: ignore[method-assign]
        house.run(stops=False)
        assert errors(caplog) == []

    @pytest.mark.parametrize("word", ["a signal", "a message"])
    def test_a_stop_while_new_processes_exit_stops_the_previous_ones(
        self, word: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """In one turn of the loop: the worker that it was to replace is stopped, and not kept."""
        house = House(tmp_path, number=2, max_surge=2, canary="off")

        def act() -> None:
            house.said("ready", 2)
            house.all_acked()
            house.plan("acks_behind_the_gate")
            house.send("__ALL_PROCESSES__::STARTUP_FIRST")
            new = house.said("at the gate", 2)
            the_loop = house.manager._loop
            turn = the_loop.turn

            def all_at_once(at_most: float | None = None) -> None:
                the_loop.turn = turn  # type: ignore[method-assign]
                for said in new:
                    os.kill(said.pid, signal.SIGKILL)
                    os.waitid(os.P_PID, said.pid, os.WEXITED | os.WNOWAIT)
                if word == "a message":
                    house.send("__TERMINATE__")
                else:
                    signal.raise_signal(signal.SIGTERM)
                turn(at_most)

            the_loop.turn = all_at_once  # type: ignore[method-assign]
            the_loop.do(lambda: None)

        house.run(act, stops=False)
        assert [said.what for said in house.heard].count("SIGINT") == 2

    def test_terminate_in_another_thread_stops_all_servers(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path, number=2)

        def act() -> None:
            house.said("ready", 2)
            house.all_acked()
            house.manager.terminate()

        house.run(act, stops=False)
        assert [said.what for said in house.heard] == ["ready", "ready", "SIGINT", "SIGINT"]
        assert errors(caplog) == []

    def test_a_second_signal_kills_workers_and_their_children(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path, "stubborn", number=2)
        grandchildren: list[int] = []

        def act() -> None:
            grandchildren.extend(said.what for said in house.said(None, 2))
            os.kill(os.getpid(), signal.SIGINT)
            logged(caplog, "Received signal SIGINT. Shutting down.")
            assert all(lives(said.pid) for said in house.heard)
            os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(ServerKilled):
            house.run(act, stops=False)
        assert "Shutdown interrupted. Killing." in caplog.messages
        for pid in grandchildren:
            wait_for_end(pid)
        assert errors(caplog) == []

    def test_a_worker_that_ignores_its_stop_is_killed_with_its_children(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path, "stubborn", graceful_timeout=0.3)
        said = []

        def act() -> None:
            said.extend(house.said(None))

        house.run(act)
        assert errors(caplog) == [f"{ONE} [{said[0].pid}] did not exit within 0.3 s of the stop. Killing it."]
        wait_for_end(said[0].what)

    def test_a_replaced_worker_that_ignores_its_stop_is_killed(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path, "stubborn", graceful_timeout=0.3)

        def act() -> None:
            (old,) = house.said(None)
            house.plan("serves")
            house.send("__ALL_PROCESSES__:")
            house.said("ready")
            logged(caplog, f"{ONE} [{old.pid}] did not exit within 0.3 s of the stop. Killing it.")
            wait_for_end(old.pid)
            wait_for_end(old.what)
            assert house.until(ONE, state="ACKED")["pid"] != old.pid

        house.run(act)

    @pytest.mark.parametrize(
        ("plan", "proxied"),
        [
            ("tells_its_stops", False),
            pytest.param("tells_its_stops stoppable", False, marks=pytest.mark.native),
            ("tells_its_stops", True),
        ],
    )
    def test_a_stop_is_sent_once(
        self,
        plan: str,
        proxied: bool,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        # It has handlers of its own, as a server has.
        monkeypatch.setattr(targets.server, "handles_stop_itself", True, raising=False)
        house = House(tmp_path, plan, proxied=proxied)
        house.run(lambda: house.said("ready") and None)
        assert [said.what for said in house.heard] == ["ready", "SIGINT"]
        assert errors(caplog) == []

    @pytest.mark.native
    def test_a_lost_stop_is_sent_once_more(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        house = House(tmp_path, "loses_a_stop")

        def act() -> None:
            house.said("deaf")
            os.kill(os.getpid(), signal.SIGTERM)
            # From then on, the first stop was sent.
            until(lambda: house.manager._supervisor.phase is ServerPhase.STOPPING, "the stop")
            house.open_gate()

        house.run(act, stops=False)
        assert [said.what for said in house.heard] == ["deaf", "SIGINT"]
        assert errors(caplog) == []

    @pytest.mark.native
    def test_a_lost_stop_of_a_restart_is_sent_once_more(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path, "loses_a_stop")

        def act() -> None:
            (deaf,) = house.said("deaf")
            house.plan("serves")
            house.send("__ALL_PROCESSES__:")
            house.said("ready")
            until(lambda: house.watched(deaf.pid).stop_sent_at is not None, "the stop of the first one")
            house.open_gate()
            wait_for_end(deaf.pid)

        house.run(act)
        assert [said.what for said in house.heard] == ["deaf", "ready", "SIGTERM", "SIGINT"]
        assert errors(caplog) == []

    def test_a_stop_during_a_restart_skips_workers_already_stopped(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """No SIGINT follows the SIGTERM of processes that were stopped before."""
        house = House(tmp_path, "tells_its_stops", number=2)

        def act() -> None:
            house.said("ready", 2)
            house.send("__ALL_PROCESSES__:")
            house.said("SIGTERM")
            os.kill(os.getpid(), signal.SIGTERM)

        house.run(act, stops=False)
        for left in house.said("SIGTERM"):
            assert [said.what for said in house.heard if said.pid == left.pid] == ["ready", "SIGTERM"]
        assert errors(caplog) == []

    def test_messages_after_a_stop_are_ignored(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path)

        def act() -> None:
            house.said("ready")
            house.send("__TERMINATE__")
            house.send("__SCALE__:3")

        house.run(act, stops=False)
        assert [said.what for said in house.heard] == ["ready", "SIGINT"]
        assert "Scaling from 1 to 3 workers" not in caplog.messages

    def test_the_wakeup_descriptor_is_restored(self, tmp_path: Path) -> None:
        house = House(tmp_path)
        one, other = os.pipe()
        os.set_blocking(other, False)
        before = signal.set_wakeup_fd(other)
        try:
            house.run()
            assert signal.set_wakeup_fd(before) == other
        finally:
            os.close(one)
            os.close(other)

    def test_a_signal_during_the_close_of_the_monitor_is_harmless(self, tmp_path: Path) -> None:
        house = House(tmp_path)
        the_loop = house.manager._loop

        class Closing:
            """A monitor during whose close a signal comes."""

            def __init__(self, monitor: Any) -> None:
                self.monitor = monitor

            def __getattr__(self, name: str) -> Any:
                return getattr(self.monitor, name)

            def close(self) -> None:
                self.monitor.close()
                signal.raise_signal(signal.SIGTERM)

        def replace_monitor() -> None:
            assert the_loop._monitor is not None
            descriptors.forget(the_loop._monitor)
            the_loop._monitor = Closing(the_loop._monitor)
            descriptors.close_in_children(the_loop._monitor)

        def act() -> None:
            house.said("ready")
            house.call(lambda: the_loop.do(replace_monitor))

        house.run(act)
