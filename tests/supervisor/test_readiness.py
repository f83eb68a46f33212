"""The loop learns that a server is ready, or that it has exited."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from sanic.exceptions import ServerKilled
from support import targets
from support.running import House, errors, lives, logged, wait_for_end

from worker.constants import ProcessState
from worker.manager import WorkerManager
from worker.process import WorkerProcess

ONE, TWO, THREE = (f"Sanic-Server-{number}-0" for number in range(3))
EIGHT = ("Errand", targets.errand, {}, False, True, True, True, 1)


pytestmark = [pytest.mark.usefixtures("main_is_heard"), pytest.mark.slow]


class TestAcks:
    @pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
    def test_the_start_ends_when_all_servers_acked(
        self, method: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path, number=2, method=method)

        def act() -> None:
            house.said("ready", 2)
            # A quick child acks before the main process has assigned the entry.
            house.all_acked()
            for name in (ONE, TWO):
                entry = house.until(name, state="ACKED", serving=True)
                assert entry["starts"] == 1
                assert lives(entry["pid"])

        house.run(act)
        assert sorted(said.name for said in house.heard if said.what == "SIGINT") == [ONE, TWO]
        assert errors(caplog) == []

    def test_a_serving_server_is_ready_without_an_ack(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The ack may be lost: another write has overwritten it."""
        house = House(tmp_path, "only_serves")
        house.run(lambda: house.until(ONE, state="ACKED") and None)
        assert errors(caplog) == []

    def test_acks_in_a_plain_dict(self, tmp_path: Path) -> None:
        """A fork has its own copy of the mapping; the ack comes from elsewhere."""
        state: dict[str, Any] = {}
        house = House(tmp_path, "never_acks", state=state)

        def act() -> None:
            (said,) = house.said("ready")
            # The last write of the main process, which an earlier ack would be lost in.
            house.until(ONE, state="STARTED", pid=said.pid)
            state[ONE] = {**state[ONE], "state": "ACKED"}
            house.all_acked()

        house.run(act)
        assert state == {"Sanic-Main": {"pid": os.getpid()}}

    def test_servers_without_an_ack_at_the_threshold_are_named(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for kind in (WorkerManager, WorkerProcess):
            monkeypatch.setattr(kind, "THRESHOLD", 4)
        house = House(tmp_path, "acks_behind_the_gate", number=3)
        wait_for_ack = house.manager.wait_for_ack

        def after_one_ack() -> None:
            house.said("at the gate", 3)
            house.open_gate()
            house.said("ready")
            # While the server starts, no limit of one process applies.
            house.manager._supervisor.begin_start()
            while not any(one.state is ProcessState.ACKED for one in house.manager.transient_processes):
                house.manager._loop.turn(0.1)
            wait_for_ack()

        house.manager.wait_for_ack = after_one_ack  # type: ignore[method-assign]
        with pytest.raises(ServerKilled):
            house.run(stops=False)
        (acked,) = (said.name for said in house.heard if said.what == "ready")
        slow = ", ".join(sorted({ONE, TWO, THREE} - {acked}))
        message = (
            "Not all workers acknowledged a successful startup. Shutting down. "
            f"{slow} did not acknowledge the start within 0.4 s. If the application needs longer to start, "
            "raise WorkerManager.THRESHOLD (in tenths of a second)."
        )
        assert errors(caplog) == [message]
        assert not any(lives(said.pid) for said in house.heard)
        assert "SIGINT" not in {said.what for said in house.heard}

    @pytest.mark.parametrize(
        ("plan", "how"),
        [
            ("exits 3", "exited with code 3"),
            ("exits 0", "exited with code 0"),
            ("kills_itself 9", "was killed by SIGKILL"),
            ("kills_itself 11", "was killed by SIGSEGV"),
            ("kills_itself 40", "was killed by signal 40"),
        ],
    )
    def test_an_exit_before_the_ack_ends_the_start(
        self, plan: str, how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path, plan)
        with pytest.raises(ServerKilled):
            house.run(stops=False)
        (message,) = errors(caplog)
        assert message.startswith(
            f"Not all workers acknowledged a successful startup. Shutting down. {ONE} ["
        )
        assert re.search(rf"\] {how} before it was ready \([0-9.]+ s\)\. If the log does not show", message)

    def test_a_failed_start_kills_other_processes_with_their_children(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path, "never_acks")
        (tmp_path / "other").write_text("stubborn")
        house.manager.manage("Other", targets.server, {**house.kwargs, "plan": str(tmp_path / "other")})
        grandchildren: list[int] = []

        def act() -> None:
            (ready,) = house.said("ready")
            grandchildren.extend(said.what for said in house.said(None, 2) if said.what != "ready")
            os.kill(ready.pid, signal.SIGKILL)

        with pytest.raises(ServerKilled):
            house.run(act, stops=False)
        assert len(errors(caplog)) == 1
        (grandchild,) = grandchildren
        wait_for_end(grandchild)

    def test_a_worker_that_reports_a_failed_start_ends_the_start(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path, "terminates_and_exits early")
        with pytest.raises(ServerKilled):
            house.run(stops=False)
        (message,) = errors(caplog)
        assert "] failed to start. Its error is in the log above." in message
        assert ONE in message

    def test_a_managed_process_may_exit_during_the_start(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path, "acks_behind_the_gate")
        for name, plan in (("Good", "exits 0"), ("Bad", "exits 2")):
            (tmp_path / name).write_text(plan)
            house.manager.manage(name, targets.server, {**house.kwargs, "plan": str(tmp_path / name)})

        def act() -> None:
            house.said("at the gate")
            house.until("Sanic-Good-0", state="COMPLETED")
            house.until("Sanic-Bad-0", state="FAILED")
            house.open_gate()
            house.said("ready")

        house.run(act)
        (message,) = errors(caplog)
        assert message.startswith("Sanic-Bad-0 [")
        assert "] exited with code 2 after " in message

    def test_a_managed_process_that_fails_to_start_is_logged(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path, "acks_behind_the_gate")
        (tmp_path / "other").write_text("fails_late")
        house.manager.manage("Other", targets.server, {**house.kwargs, "plan": str(tmp_path / "other")})

        def act() -> None:
            logged(caplog, "failed to start")
            house.open_gate()
            house.said("ready", 2)

        house.run(act)
        (message,) = errors(caplog)
        assert message.startswith("Sanic-Other-0 [")


class TestExits:
    @pytest.mark.parametrize(
        ("plan", "how", "state"),
        [
            ("acks_and_exits 0", "exited with code 0", "COMPLETED"),
            ("acks_and_exits 5", "exited with code 5", "FAILED"),
        ],
    )
    def test_an_exit_after_the_ack_is_logged(
        self, plan: str, how: str, state: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path, plan, backoff_initial=1000, backoff_max=1000)

        def act() -> None:
            (said,) = house.said("acked")
            house.until(ONE, state="ACKED")
            house.all_acked()
            house.open_gate()
            house.until(ONE, state=state)
            logged(caplog, f"{ONE} [{said.pid}] {how}")

        house.run(act)

    def test_a_kill_of_a_server_is_logged(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        house = House(tmp_path, number=2, backoff_initial=1000, backoff_max=1000)

        def act() -> None:
            victim, _ = house.said("ready", 2)
            house.all_acked()
            os.kill(victim.pid, signal.SIGKILL)
            house.until(victim.name, state="FAILED")
            logged(caplog, f"{victim.name} [{victim.pid}] was killed by SIGKILL")

        house.run(act)
        assert [said.what for said in house.heard if said.what != "ready"] == ["SIGINT"]

    def test_a_message_is_handled_before_the_exit_of_its_sender(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """``app.stop()`` in a worker sends one message and exits: that is a stop, no failure."""
        house = House(tmp_path, "terminates_behind_the_gate")

        def act() -> None:
            house.said("at the gate")
            house.open_gate()

        house.run(act, stops=False)
        assert errors(caplog) == []

    def test_a_stop_before_the_ack_is_obeyed(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        house = House(tmp_path, "acks_behind_the_gate")

        def act() -> None:
            house.said("at the gate")
            house.send("__TERMINATE__")

        house.run(act, stops=False)
        assert errors(caplog) == []

    def test_exits_are_handled_without_the_state_process(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The process that holds the state may be killed; the main process goes on and ends in order."""
        house = House(tmp_path, number=2, proxied=True, backoff_initial=1000, backoff_max=1000)

        def act() -> None:
            victim, _ = house.said("ready", 2)
            house.all_acked()
            os.kill(house.state_pid, signal.SIGKILL)
            wait_for_end(house.state_pid)
            house.state = {}
            os.kill(victim.pid, signal.SIGKILL)
            assert logged(caplog, "was killed by SIGKILL").startswith(victim.name)

        house.run(act)
        assert len(errors(caplog)) == 1

    def test_the_start_fails_if_the_state_process_exits_before_the_ack(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """No process can report that the server is ready: its start fails at once."""
        house = House(tmp_path, "acks_behind_the_gate", proxied=True)

        def act() -> None:
            house.said("at the gate")
            os.kill(house.state_pid, signal.SIGKILL)
            wait_for_end(house.state_pid)
            house.state = {}
            house.open_gate()

        with pytest.raises(ServerKilled):
            house.run(act, stops=False)
        assert "exited with code 1" in errors(caplog)[0]
