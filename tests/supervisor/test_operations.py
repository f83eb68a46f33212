"""Each restart and scaling reports its outcome; code that does not start stops no server that serves."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from support import targets
from support.running import House, errors, lives, logged, until, wait_for_end

ONE, TWO, THREE = (f"Sanic-Server-{number}-0" for number in range(3))
STOP_FIRST, START_FIRST = "__ALL_PROCESSES__:", "__ALL_PROCESSES__::STARTUP_FIRST"
BROKEN = "fails_with SyntaxError: broken on purpose"

pytestmark = [pytest.mark.usefixtures("main_is_heard"), pytest.mark.slow]


def all_serve(house: House, count: int) -> dict[str, int]:
    """Return the pids of the servers by name, once the main process knows that all are ready."""
    house.said("ready", count)
    house.all_acked()
    until(lambda: all(entry.get("phase") == "ready" for entry in servers(house).values()), "all ready")
    return {name: entry["pid"] for name, entry in servers(house).items()}


def servers(house: House) -> dict[str, dict[str, object]]:
    return {name: entry for name, entry in house.state.copy().items() if entry.get("server")}


class TestCanary:
    @pytest.mark.parametrize("message", [STOP_FIRST, START_FIRST, f"{ONE}:", "__ALL_PROCESSES__:app.py"])
    @pytest.mark.parametrize("number", [1, 2])
    def test_broken_code_stops_no_server(
        self, number: int, message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path, number=number, max_surge=4)

        def act() -> None:
            old = all_serve(house, number)
            house.plan(BROKEN)
            house.send(message)
            logged(caplog, "Keeping the previous worker; rollout aborted")
            house.call(lambda: None)
            assert {name: entry["pid"] for name, entry in servers(house).items()} == old
            assert all(map(lives, old.values()))
            assert all(entry["phase"] == "ready" for entry in servers(house).values())
            house.plan("serves")
            house.send(message)
            logged(caplog, "Restart finished")

        house.run(act)
        (line,) = errors(caplog)
        others = ", 1 worker not restarted" if number == 2 and message != f"{ONE}:" else ""
        assert line.endswith(f". Keeping the previous worker; rollout aborted{others}.")
        assert ": SyntaxError: broken on purpose. " in line

    def test_the_servers_after_the_canary_use_the_requested_order(self, tmp_path: Path) -> None:
        house = House(tmp_path, number=2)

        def act() -> None:
            old = all_serve(house, 2)
            house.plan("acks_behind_the_gate")
            house.send(STOP_FIRST)
            (canary,) = house.said("at the gate")
            # Beside the process that it is to replace.
            assert lives(old[canary.name])
            house.open_gate()
            (_, second) = house.said("at the gate", 2)
            # After the process that it replaces.
            assert not lives(old[second.name])
            house.open_gate()

        house.run(act)

    @pytest.mark.parametrize("settings", [{"canary": "off"}, {"reload_order": "SHUTDOWN_FIRST"}])
    def test_settings_turn_the_canary_off(self, settings: dict[str, str], tmp_path: Path) -> None:
        house = House(tmp_path, number=2, **settings)

        def act() -> None:
            old = all_serve(house, 2)
            house.plan("acks_behind_the_gate")
            house.send(STOP_FIRST)
            (first,) = house.said("at the gate")
            assert not lives(old[first.name])
            house.open_gate(2)
            house.said("ready", 4)

        house.run(act)

    def test_no_canary_if_no_server_is_ready(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        house = House(tmp_path, number=2, backoff_initial=1000, backoff_max=1000)

        def act() -> None:
            for pid in all_serve(house, 2).values():
                os.kill(pid, signal.SIGKILL)
            for name in (ONE, TWO):
                house.until(name, phase="backoff")
            house.plan("acks_behind_the_gate")
            house.send(STOP_FIRST)
            house.said("at the gate", 2)
            house.open_gate(2)
            logged(caplog, "Restart finished: 2 of 2 workers replaced in ")

        house.run(act)

    def test_an_address_in_use_leads_to_a_restart_with_shutdown_first(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An application that binds a port of its own: a second process of it cannot."""
        house = House(tmp_path, f"binds_its_own {tmp_path}", number=2)

        def act() -> None:
            old = all_serve(house, 2)
            house.send(STOP_FIRST)
            for pid in old.values():
                wait_for_end(pid)
            logged(caplog, "Restart finished: 2 of 2 workers replaced in ")

        house.run(act)
        (line,) = [line for line in caplog.messages if "until it is restarted with SHUTDOWN_FIRST" in line]
        assert "EADDRINUSE" in line
        assert errors(caplog) == []


class TestOutcomes:
    @pytest.mark.parametrize("how", ["message", "signal", "verb"])
    def test_a_finished_restart_is_reported(
        self, how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path, number=3)

        def act() -> None:
            all_serve(house, 3)
            if how == "signal":
                os.kill(os.getpid(), signal.SIGHUP)
            elif how == "message":
                house.send(STOP_FIRST)
            else:
                house.manager.restart()
            logged(caplog, "Restart finished")

        house.run(act)
        (line,) = [line for line in caplog.messages if line.startswith("Restart finished")]
        assert re.fullmatch(r"Restart finished: 3 of 3 workers replaced in \d+\.\d s\.", line)

    def test_a_restart_that_fails_half_way_is_reported(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path, "acks_behind_the_gate", number=3)

        def act() -> None:
            house.said("at the gate", 3)
            house.open_gate(3)
            all_serve(house, 3)
            house.send(START_FIRST)
            house.said("at the gate", 4)
            house.plan("exits 3")
            house.open_gate()
            line = logged(caplog, "rollout aborted, 1 worker not restarted.")
            assert re.match(r"Sanic-Server-\d-0 \[\d+\] exited with code 3 before it was ready \(", line)

        house.run(act)

    def test_a_restart_aborted_by_a_stop_is_reported(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path, number=2)

        def act() -> None:
            all_serve(house, 2)
            house.plan("acks_behind_the_gate")
            house.send(START_FIRST)
            house.said("at the gate")

        house.run(act)
        assert "Restart aborted, 0 of 2 workers replaced: the server is stopping." in caplog.messages
        assert errors(caplog) == []

    def test_a_finished_scaling_is_reported(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        house = House(tmp_path)

        def act() -> None:
            all_serve(house, 1)
            house.send("__SCALE__:3")
            line = logged(caplog, "Scaling finished")
            assert re.fullmatch(r"Scaling finished: 2 of 2 workers started in \d+\.\d s\.", line)
            house.send("__SCALE__:2")
            logged(caplog, "Scaling finished: 1 of 1 worker stopped in ")

        house.run(act)

    def test_two_restarts_at_once_are_both_reported(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The second request is executed once, and both report it."""
        house = House(tmp_path, number=2)

        def act() -> None:
            all_serve(house, 2)
            house.plan("acks_behind_the_gate")
            house.send(START_FIRST)
            house.said("at the gate")
            house.send(f"{TWO}::STARTUP_FIRST")
            house.call(lambda: None)
            house.open_gate(4)
            logged(caplog, "Restart finished: 2 of 2 workers replaced")
            logged(caplog, "Restart finished: 1 of 1 worker replaced")

        house.run(act)

    def test_new_code_is_reported_once_no_previous_process_accepts(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path, "leaves_behind_the_gate")

        def act() -> None:
            (old,) = all_serve(house, 1).values()
            house.plan("serves")
            house.send("__ALL_PROCESSES__:app.py")
            house.said("SIGTERM")
            house.said("ready", 2)
            house.until(ONE, phase="ready")
            house.call(lambda: None)
            assert not [line for line in caplog.messages if "The new code serves" in line]
            house.open_gate()
            line = logged(caplog, "The new code serves")
            wait = r"\d+\.\d\d s after the change\."
            assert re.fullmatch(
                rf"Restart finished: 1 of 1 worker replaced in \d+\.\d s\. The new code serves {wait}", line
            )
            wait_for_end(old)

        house.run(act)


class TestEntries:
    def test_the_entry_shows_a_pending_restart(self, tmp_path: Path) -> None:
        house = House(tmp_path, number=2, backoff_initial=1000, backoff_max=1000)

        def act() -> None:
            os.kill(all_serve(house, 2)[ONE], signal.SIGKILL)
            entry = house.until(ONE, phase="backoff", state="FAILED")
            assert entry["next_restart_at"] > entry["last_exit_at"]
            house.send(f"{ONE}:")
            until(lambda: house.entry(ONE)["why"].endswith(". It was replaced."), "the exit as past")
            entry = house.entry(ONE)
            assert (entry["phase"], entry["next_restart_at"]) == ("ready", None)
            assert "Restarting it" not in entry["why"]

        house.run(act)

    def test_the_entry_shows_a_failed_slot(self, tmp_path: Path) -> None:
        house = House(tmp_path, number=2, max_consecutive_failures=1)

        def act() -> None:
            os.kill(all_serve(house, 2)[ONE], signal.SIGKILL)
            entry = house.until(ONE, phase="failed", state="FAILED")
            assert entry["next_restart_at"] is None

        house.run(act)


class TestServers:
    def test_a_managed_process_named_like_a_server_needs_no_ack(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A managed process called MetricsServer sends no ack, and nothing waits for one."""
        # Longer than the test waits.
        monkeypatch.setattr("worker.manager.WorkerManager.THRESHOLD", 10_000)
        house = House(tmp_path)
        house.manager.manage("MetricsServer", targets.errand, house.kwargs, transient=True)

        def act() -> None:
            house.said("ready")
            assert house.until("Sanic-MetricsServer-0", phase="ready")["server"] is False
            house.send("__SCALE__:2")
            logged(caplog, "Scaling finished: 1 of 1")
            assert house.manager.num_server == 2
            house.send("Sanic-MetricsServer-0:")
            logged(caplog, "Restart finished: 1 of 1")

        house.run(act)
        assert errors(caplog) == []

    def test_the_larger_threshold_limits_the_start(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr("worker.process.WorkerProcess.THRESHOLD", 1)
        house = House(tmp_path)

        def act() -> None:
            all_serve(house, 1)
            house.plan("acks_behind_the_gate")
            house.send(START_FIRST)
            (new,) = house.said("at the gate")
            assert house.watched(new.pid).start_limit == 30
            house.open_gate()
            logged(caplog, "Restart finished")

        house.run(act)
