"""Several commands that the loop receives in one wait."""

from __future__ import annotations

import threading
from multiprocessing import active_children
from pathlib import Path

import pytest
from support.running import House, errors, logged, until, wait_for_end

from worker._supervisor import loop

from .test_handover import ROLL, first, still_obeys

ONE, TWO = "Sanic-Server-0-0", "Sanic-Server-1-0"

pytestmark = [pytest.mark.usefixtures("main_is_heard"), pytest.mark.slow]


class TestCommandsInOneWait:
    """Several commands that the loop receives in one wait."""

    @pytest.fixture(autouse=True)
    def _all_in_one_turn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # However long the machine takes for each.
        monkeypatch.setattr(loop, "SLICE", 60.0)

    def at_once(self, house: House, *messages: str) -> None:
        house.call(
            lambda: house.manager._loop.do(lambda: [house.send(message) for message in messages] and None)
        )

    def test_several_restarts_leave_the_server_usable(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path)

        def act() -> None:
            old = first(house)
            self.at_once(house, *(f"__ALL_PROCESSES__:{file}:STARTUP_FIRST" for file in "abc"))
            wait_for_end(old.pid)
            house.all_acked()
            still_obeys(house)

        house.run(act)
        assert errors(caplog) == []

    def test_restarts_with_different_files_become_one(self, tmp_path: Path) -> None:
        """They are one restart, with the files of all."""
        house = House(tmp_path, "shows_its_birth")

        def act() -> None:
            first(house)
            self.at_once(house, "__ALL_PROCESSES__:a,b", f"{ONE}:b,c")
            house.said("ready", 2)
            house.all_acked()
            house.call(lambda: None)
            house.until(ONE, starts=2)

        house.run(act)
        assert [said.what["config"] for said in house.heard if isinstance(said.what, dict)] == [
            None,
            {"RELOADED_FILES": "a,b,c"},
        ]

    def test_a_server_added_in_the_same_wait_is_restarted(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path)
        threads: list[str] = []

        def act() -> None:
            first(house)
            noted = threading.Thread.start

            def start(thread: threading.Thread) -> None:
                if threading.current_thread() is threading.main_thread():
                    threads.append(thread.name)
                noted(thread)

            threading.Thread.start = start  # type: ignore[method-assign]
            try:
                self.at_once(house, "__SCALE__:2", ROLL)
                until(lambda: house.entry(TWO).get("starts") == 2, "the restart of the new one")
                house.all_acked()
                house.until(TWO, state="ACKED")
            finally:
                threading.Thread.start = noted  # type: ignore[method-assign]

        house.run(act)
        assert threads == []
        assert errors(caplog) == []

    def test_scaling_up_and_down_in_one_wait_leaves_one_server(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path)

        def act() -> None:
            old = first(house)
            self.at_once(house, "__SCALE__:3", "__SCALE__:1")
            logged(caplog, "Scaling from 3 to 1 workers")
            until(lambda: set(house.state.copy()) == {"Sanic-Main", ONE}, "their entries gone")
            house.call(lambda: None)
            assert {child.pid for child in active_children()} - {house.state_pid} == {old.pid}

        house.run(act)
        assert errors(caplog) == []
