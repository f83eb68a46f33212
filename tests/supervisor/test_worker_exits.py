"""Workers that exit are replaced by the policy: real processes, really killed."""

from __future__ import annotations

import os
import re
import signal
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from sanic.exceptions import ServerKilled
from support import targets
from support.running import House, errors, lives, logged, until, wait_for_end

from worker._core import IS_NATIVE
from worker.constants import Phase

ONE, TWO, THREE = (f"Sanic-Server-{number}-0" for number in range(3))
OTHER = "Sanic-Other-0"

pytestmark = [pytest.mark.usefixtures("main_is_heard"), pytest.mark.slow]


def other(house: House, folder: Path, plan: str, **how: Any) -> None:
    """Manage one process that is no server."""
    (folder / "other").write_text(plan)
    house.manager.manage("Other", targets.server, {**house.kwargs, "plan": str(folder / "other")}, **how)


class TestServers:
    @pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
    def test_a_killed_server_is_replaced_under_its_name(
        self, method: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path, number=2, method=method)

        def act() -> None:
            old = {said.name: said.pid for said in house.said("ready", 2)}
            house.until(ONE, phase="ready")
            os.kill(old[ONE], signal.SIGKILL)
            new = house.said("ready", 3)[2]
            assert new.name == ONE and new.pid != old[ONE]
            entry = house.until(ONE, pid=new.pid, state="ACKED", serving=True, restarts=1, starts=2)
            assert entry["last_exit"] == "SIGKILL"
            age = datetime.now(timezone.utc) - entry["last_exit_at"]
            assert 0 <= age.total_seconds() < 60
            assert entry["next_restart_at"] is None
            assert "was killed by SIGKILL after" in entry["why"]
            assert house.entry(TWO)["pid"] == old[TWO]

        house.run(act)
        (line,) = errors(caplog)
        assert re.fullmatch(
            rf"{ONE} \[\d+\] was killed by SIGKILL after \d+\.\d s\. "
            r"Restarting it in 0\.\d\d s \(failure 1 of 8 in a row\)\.",
            line,
        )

    def test_a_server_after_min_uptime_is_replaced_at_once(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path, min_uptime=0, backoff_initial=1000, backoff_max=1000)

        def act() -> None:
            for count in range(1, 4):
                ready = house.said("ready", count)[count - 1]
                house.until(ONE, pid=ready.pid, state="ACKED", serving=True)
                until(lambda: phase(house) is Phase.READY, "main to know that it serves")
                os.kill(ready.pid, signal.SIGKILL)
            house.said("ready", 4)

        house.run(act)
        assert [line.partition(" s. ")[2] for line in errors(caplog)] == ["Restarting it now."] * 3

    def test_a_server_that_exits_with_code_0_is_replaced(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path, "acks_and_exits 0")

        def act() -> None:
            house.said("acked")
            house.all_acked()
            house.plan("serves")
            house.open_gate()
            house.said("ready")
            house.until(ONE, state="ACKED", serving=True, last_exit="exit code 0")

        house.run(act)
        assert len(errors(caplog)) == 1

    def test_scaling_is_obeyed_during_a_backoff(self, tmp_path: Path) -> None:
        """The backoff is a deadline: the main process does all other work meanwhile, a stop included."""
        house = House(tmp_path, number=2, backoff_initial=1000, backoff_max=1000)

        def act() -> None:
            old = {said.name: said.pid for said in house.said("ready", 2)}
            house.all_acked()
            os.kill(old[ONE], signal.SIGKILL)
            entry = house.until(ONE, state="FAILED", serving=False, last_exit="SIGKILL")
            assert (entry["next_restart_at"] - entry["last_exit_at"]).total_seconds() > 700
            house.send("__SCALE__:3")
            house.until(THREE, state="ACKED", serving=True)

        house.run(act)

    def test_an_elapsed_backoff_does_not_wake_a_stopping_server(self, tmp_path: Path) -> None:
        """The main process waits for stopping workers; an elapsed backoff does not wake it repeatedly."""
        house = House(tmp_path, "stubborn", number=2, backoff_initial=0.1, graceful_timeout=0.8)
        turns: list[None] = []
        turn = house.manager._loop.turn

        def act() -> None:
            old = {said.name: said.pid for said in house.said(None, 2)}
            house.all_acked()
            house.manager._loop.turn = lambda *at_most: turns.append(None) or turn(*at_most)  # type: ignore[method-assign, func-returns-value]
            os.kill(old[ONE], signal.SIGKILL)
            house.until(ONE, last_exit="SIGKILL")

        house.run(act)
        assert len(turns) < 20

    def test_a_restart_does_not_wait_for_the_backoff(self, tmp_path: Path) -> None:
        house = House(tmp_path, number=2, backoff_initial=1000, backoff_max=1000)

        def act() -> None:
            old = {said.name: said.pid for said in house.said("ready", 2)}
            house.all_acked()
            os.kill(old[ONE], signal.SIGKILL)
            house.until(ONE, state="FAILED")
            house.send(f"{ONE}:")
            house.until(ONE, state="ACKED", serving=True, next_restart_at=None)

        house.run(act)

    def test_scaling_down_removes_the_server_in_backoff(self, tmp_path: Path) -> None:
        house = House(tmp_path, number=3, backoff_initial=1000, backoff_max=1000)

        def act() -> None:
            old = {said.name: said.pid for said in house.said("ready", 3)}
            house.all_acked()
            os.kill(old[ONE], signal.SIGKILL)
            house.until(ONE, state="FAILED")
            house.send("__SCALE__:2")
            until(lambda: set(house.state.copy()) == {"Sanic-Main", TWO, THREE}, "its entry gone")
            house.call(lambda: None)
            assert lives(old[TWO]) and lives(old[THREE])

        house.run(act)


def phase(house: House, name: str = ONE) -> Phase:
    """Return the phase of a slot."""
    return next(
        house.manager._supervisor.slot_phase(one)
        for one in house.manager.transient_processes
        if one.name == name
    )


class TestCrashLoops:
    def test_a_server_that_exits_repeatedly_becomes_failed(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path, number=2, max_consecutive_failures=3, backoff_initial=0.01)

        def act() -> None:
            old = {said.name: said.pid for said in house.said("ready", 2)}
            house.all_acked()
            house.plan("exits 7")
            os.kill(old[ONE], signal.SIGKILL)
            logged(caplog, "It is FAILED")
            until(lambda: phase(house) is Phase.FAILED, "it given up")
            assert house.entry(ONE)["state"] == "FAILED"
            assert lives(old[TWO])
            house.plan("serves")
            again(house)
            house.until(ONE, phase="ready")
            assert house.entry(TWO)["pid"] == old[TWO]
            # Its count of failures is zero.
            house.plan("exits 7")
            os.kill(house.entry(ONE)["pid"], signal.SIGKILL)
            until(lambda: len(errors(caplog)) == 6, "as many deaths as before")

        def again(house: House) -> None:
            house.send(f"{ONE}:")

        house.run(act)
        lines = [re.sub(r".*? \S+ s[.)]+ ", "", line, count=1) for line in errors(caplog)]
        assert re.fullmatch(r"Restarting it in 0\.01 s \(failure 1 of 3 in a row\)\.", lines[0])
        assert re.fullmatch(r"Restarting it in 0\.02 s \(failure 2 of 3 in a row\)\.", lines[1])
        assert (
            lines[2]
            == lines[5]
            == (
                "Not restarting it: 3 failures in a row (SIGKILL; exit code 7, 2 times) before 10 s of "
                "service. It is FAILED until a restart or scale command."
            )
        )

    def test_scaling_starts_a_failed_server_again(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path, number=2, max_consecutive_failures=1)

        def act() -> None:
            old = {said.name: said.pid for said in house.said("ready", 2)}
            house.all_acked()
            os.kill(old[ONE], signal.SIGKILL)
            logged(caplog, "It is FAILED")
            house.send("__SCALE__:2")
            house.until(ONE, state="ACKED", serving=True)

        house.run(act)
        assert "No change needed. There are already 2 workers." not in caplog.messages

    def test_the_main_process_ends_when_all_servers_failed(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The exit code is 1, by Sanic's exception for it; all other processes are stopped in order."""
        house = House(tmp_path, number=2, max_consecutive_failures=2, backoff_initial=0.01)
        other(house, tmp_path, "serves")

        def act() -> None:
            old = [said.pid for said in house.said("ready", 3) if said.name != OTHER]
            house.all_acked(but=OTHER)
            house.plan("exits 7")
            for pid in old:
                os.kill(pid, signal.SIGKILL)

        with pytest.raises(ServerKilled):
            house.run(act, stops=False)
        assert [said.what for said in house.heard if said.name == OTHER] == ["ready", "SIGINT"]
        assert errors(caplog)[-1] == "No server can run any more. Shutting down."

    def test_under_a_reloader_failed_servers_wait_for_a_change(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path, number=2, max_consecutive_failures=1)
        house.manager.manage("Reloader", targets.Watches(house.kwargs["journal"]), {}, transient=False)

        def act() -> None:
            old = [said for said in house.said("ready", 3) if said.name != "Sanic-Reloader-0"]
            house.all_acked()
            for said in old:
                os.kill(said.pid, signal.SIGKILL)
            logged(caplog, "No server can run any more. Waiting for the next file change.")
            house.send("__ALL_PROCESSES__:a.py")
            for name in (ONE, TWO):
                house.until(name, state="ACKED", serving=True)

        house.run(act)

    def test_a_failed_restart_keeps_its_error_in_the_entry(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The rollout ends with the first failure, and the previous process serves on."""
        house = House(tmp_path, number=3)

        def act() -> None:
            old = {said.name: said.pid for said in house.said("ready", 3)}
            house.all_acked()
            house.plan("fails_with EADDRINUSE: nobody is to know")
            house.send("__ALL_PROCESSES__:a.py")
            line = logged(caplog, "Keeping the previous worker; rollout aborted, 2 workers not restarted.")
            assert ": EADDRINUSE: nobody is to know. " in line
            name = line.split()[0]
            entry = house.until(name, last_exit="exit code 1", state="ACKED", serving=True, pid=old[name])
            assert entry["why"] == line
            house.call(lambda: None)
            assert {one.name: one.pid for one in house.manager.transient_processes} == old
            house.plan("serves")
            house.send("__ALL_PROCESSES__:a.py")
            for pid in old.values():
                wait_for_end(pid)
            house.all_acked()

        house.run(act)
        assert len(errors(caplog)) == 1


class TestPolicies:
    def test_servers_follow_the_setting(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        house = House(tmp_path, restart_policy="never")

        def act() -> None:
            pid = house.said("ready")[0].pid
            house.until(ONE, phase="ready")
            os.kill(pid, signal.SIGKILL)

        with pytest.raises(ServerKilled):
            house.run(act, stops=False)
        assert errors(caplog)[0].endswith(" s. Not restarting it (restart policy: never).")

    def test_a_managed_process_is_not_replaced_by_default(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path)
        other(house, tmp_path, "serves")

        def act() -> None:
            ready = {said.name: said.pid for said in house.said("ready", 2)}
            os.kill(ready[OTHER], signal.SIGKILL)
            entry = house.until(OTHER, state="FAILED", last_exit="SIGKILL", next_restart_at=None)
            assert entry["starts"] == 1

        house.run(act)
        assert len(errors(caplog)) == 1

    @pytest.mark.parametrize(
        ("policy", "code", "again"),
        [("always", 0, True), ("on-failure", 3, True), ("on-failure", 0, False)],
    )
    def test_a_managed_process_follows_its_own_policy(
        self, policy: str, code: int, again: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path)
        other(house, tmp_path, f"acks_and_exits {code}", restart_policy=policy)

        def act() -> None:
            house.said("acked")
            (tmp_path / "other").write_text("serves")
            house.open_gate()
            if again:
                house.said("ready", 2)
                house.until(OTHER, restarts=1, starts=2)
            else:
                house.until(OTHER, state="COMPLETED", starts=1)

        house.run(act)
        assert len(errors(caplog)) == again

    def test_an_unknown_policy_is_refused(self, tmp_path: Path) -> None:
        house = House(tmp_path)
        with pytest.raises(ValueError, match=r"restart_policy of manage\(\) cannot be 'sometimes'"):
            other(house, tmp_path, "serves", restart_policy="sometimes")
        house.run(lambda: house.said("ready") and None)

    def test_reloaders_are_replaced(self, tmp_path: Path) -> None:
        """A target declares this about itself, as the reloader and the inspector do."""
        house = House(tmp_path)
        house.manager.manage("Reloader", targets.Watches(house.kwargs["journal"]), {}, transient=False)

        def act() -> None:
            for count in (2, 3):
                ready = [one for one in house.said("ready", count) if one.name == "Sanic-Reloader-0"]
                os.kill(ready[-1].pid, signal.SIGKILL)
            house.said("ready", 4)

        house.run(act)

    def test_a_reloader_never_becomes_failed(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """It is started again without limit, because broken code can be mended only while it runs."""
        house = House(tmp_path, max_consecutive_failures=2, backoff_initial=0.01, backoff_max=0.02)
        house.manager.manage("Reloader", targets.Watches(house.kwargs["journal"]), {}, transient=False)

        def act() -> None:
            for count in range(2, 7):
                ready = [one for one in house.said("ready", count) if one.name == "Sanic-Reloader-0"]
                os.kill(ready[-1].pid, signal.SIGKILL)
            house.said("ready", 7)
            logged(caplog, "No file change is noticed until it runs.")

        house.run(act)
        assert not any("FAILED" in line for line in caplog.messages)


class TestGroups:
    def test_the_children_of_an_exited_worker_are_killed(self, tmp_path: Path) -> None:
        house = House(tmp_path, "stubborn", number=2)

        def act() -> None:
            for said in house.said(None, 2):
                house.plan("serves")
                assert lives(said.what)
                os.kill(said.pid, signal.SIGKILL)
                wait_for_end(said.what)

        house.run(act)


class TestReadiness:
    def test_an_ack_alone_does_not_complete_a_handover(self, tmp_path: Path) -> None:
        house = House(tmp_path)

        def act() -> None:
            (old,) = house.said("ready")
            house.all_acked()
            house.plan("acks_then_serves_behind_the_gate")
            house.send("__ALL_PROCESSES__::STARTUP_FIRST")
            (new,) = house.said("acked")
            until(lambda: house.watched(new.pid).slot.state.name == "ACKED", "its ack seen")
            assert lives(old.pid)
            assert house.entry(ONE)["pid"] == (old.pid if IS_NATIVE else new.pid)
            house.open_gate()
            wait_for_end(old.pid)
            house.until(ONE, pid=new.pid, state="ACKED", serving=True)

        house.run(act)

    def test_an_ack_alone_completes_a_handover_after_the_threshold(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path)

        def act() -> None:
            (old,) = house.said("ready")
            house.all_acked()
            house.plan("acks_then_serves_behind_the_gate")
            house.send("__ALL_PROCESSES__::STARTUP_FIRST")
            new = house.watched(house.said("acked")[0].pid)
            until(lambda: new.slot.state.name == "ACKED", "its ack seen")
            new.start_limit, new.ready_by = 0.2, 0.0
            house.call(house.manager._supervisor.look_again)
            wait_for_end(old.pid)
            logged(caplog, "acknowledged its start but did not report that it serves within 0.2 s.")
            house.open_gate()

        house.run(act)
        assert errors(caplog) == []
