"""Zero-downtime restarts under the loop: two processes in one slot, for a while."""

from __future__ import annotations

import os
import re
import signal
from multiprocessing import active_children
from pathlib import Path

import pytest
from sanic.exceptions import ServerKilled
from support import targets
from support.running import House, Said, errors, lives, logged, until, wait_for_end

from worker.constants import ProcessState
from worker.manager import WorkerManager
from worker.process import WorkerProcess

ONE, TWO = "Sanic-Server-0-0", "Sanic-Server-1-0"
OTHER = {ONE: TWO, TWO: ONE}
ROLL = "__ALL_PROCESSES__::STARTUP_FIRST"


pytestmark = [pytest.mark.usefixtures("main_is_heard"), pytest.mark.slow]


def first(house: House) -> Said:
    """Return the first process of the only server, once it serves."""
    (said,) = house.said("ready")
    house.all_acked()
    return said


def still_obeys(house: House) -> None:
    """The next commands are obeyed after any failure."""
    house.plan("serves")
    served = len(house.said("ready"))
    house.send("__SCALE__:2")
    house.said("ready", served + 1)
    house.send(ROLL)
    house.said("ready", served + 3)
    house.all_acked()


@pytest.mark.parametrize("proxied", [pytest.param(False, marks=pytest.mark.native), True])
def test_the_previous_process_stops_when_the_new_one_is_ready(
    proxied: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    house = House(tmp_path, number=2, proxied=proxied)

    def act() -> None:
        old = {said.name: said.pid for said in house.said("ready", 2)}
        house.all_acked()
        if not proxied:
            for name in old:
                house.until(name, phase="ready")
        before = house.state.copy()
        house.plan("acks_behind_the_gate")
        house.send(ROLL)
        (first,) = house.said("at the gate")
        assert all(lives(pid) for pid in [*old.values(), first.pid])
        if proxied:
            assert house.entry(first.name)["serving"] is False
        else:
            house.until(first.name, phase="replacing")
            found = house.state.copy()
            del found[first.name]["phase"]
            assert before[first.name].pop("phase") == "ready"
            assert found == before
        house.open_gate()
        new = {said.name: said.pid for said in house.said("at the gate", 2)}
        house.until(first.name, pid=first.pid, state="ACKED", serving=True)
        assert lives(old[OTHER[first.name]])
        house.open_gate()
        assert {said.pid for said in house.said("SIGTERM", 2)} == {*old.values()}
        for pid in old.values():
            wait_for_end(pid)
        for name, pid in new.items():
            # The last write of the previous process said that it does not serve any more.
            entry = house.until(name, pid=pid, state="ACKED", serving=True)
            assert entry["starts"] == 2
            assert lives(pid)
        still_obeys_with_two(house)

    def still_obeys_with_two(house: House) -> None:
        house.send("__SCALE__:1")
        house.said("SIGINT")
        until(lambda: set(house.state.copy()) == {"Sanic-Main", ONE}, "its entry gone")

    house.run(act)
    assert errors(caplog) == []


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_handover_with_other_start_methods(
    method: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    house = House(tmp_path, method=method)

    def act() -> None:
        old = first(house)
        house.send(ROLL)
        house.said("ready", 2)
        house.said("SIGTERM")
        wait_for_end(old.pid)
        house.until(ONE, state="ACKED", serving=True, starts=2)

    house.run(act)
    assert errors(caplog) == []


class TestNewProcessFails:
    @pytest.mark.parametrize(
        ("plan", "how"), [("exits 3", "exited with code 3"), ("kills_itself 9", "was killed by SIGKILL")]
    )
    def test_the_previous_process_stays_if_the_new_one_exits(
        self, plan: str, how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path)

        def act() -> None:
            old = first(house)
            house.plan(plan)
            house.send(ROLL)
            line = logged(caplog, "Keeping the previous worker")
            assert f"{how} before it was ready (" in line
            assert line.startswith(ONE)
            house.until(ONE, pid=old.pid, state="ACKED", serving=True)
            assert lives(old.pid)

        house.run(act)
        (line,) = errors(caplog)
        assert line.endswith(". Keeping the previous worker; rollout aborted.")
        assert [said.what for said in house.heard] == ["ready", "SIGINT"]

    def test_commands_are_obeyed_after_the_new_process_exits(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path)

        def act() -> None:
            first(house)
            house.plan("exits 3")
            house.send(ROLL)
            logged(caplog, "Keeping the previous worker")
            still_obeys(house)

        house.run(act)
        (line,) = errors(caplog)
        assert line.endswith(". Keeping the previous worker; rollout aborted.")

    def test_the_previous_process_stays_if_the_new_one_times_out(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        house = House(tmp_path)

        def act() -> None:
            old = first(house)
            for kind in (WorkerManager, WorkerProcess):
                monkeypatch.setattr(kind, "THRESHOLD", 3)
            house.plan("never_acks")
            house.send(ROLL)
            line = logged(caplog, "Keeping the previous worker")
            assert "s): not ready within 0.3 s (WorkerManager.THRESHOLD). " in line
            # It may not have come so far as to report.
            new = re.match(rf"{ONE} \[(\d+)\] ", line)
            assert new is not None and int(new[1]) != old.pid
            wait_for_end(int(new[1]))
            house.until(ONE, pid=old.pid, state="ACKED", serving=True)
            assert lives(old.pid)

        house.run(act)
        (line,) = errors(caplog)
        assert line.endswith(". Keeping the previous worker; rollout aborted.")

    def test_commands_are_obeyed_after_the_new_process_times_out(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        house = House(tmp_path)

        def act() -> None:
            first(house)
            for kind in (WorkerManager, WorkerProcess):
                monkeypatch.setattr(kind, "THRESHOLD", 1)
            house.plan("never_acks")
            house.send(ROLL)
            logged(caplog, "Keeping the previous worker")
            monkeypatch.undo()
            still_obeys(house)

        house.run(act)
        (line,) = errors(caplog)
        assert line.endswith(". Keeping the previous worker; rollout aborted.")

    def test_a_new_process_that_exits_after_the_previous_one_is_replaced(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(tmp_path)

        def act() -> None:
            old = first(house)
            house.plan("never_acks")
            house.send(ROLL)
            new = house.said("ready", 2)[1]
            os.kill(old.pid, signal.SIGKILL)
            line = logged(caplog, "The worker that replaces it is starting.")
            assert line.startswith(f"{ONE} [{old.pid}] was killed by SIGKILL after ")
            house.plan("serves")
            os.kill(new.pid, signal.SIGKILL)
            third = house.said("ready", 3)[2]
            house.until(ONE, pid=third.pid, state="ACKED", serving=True, restarts=1, last_exit="SIGKILL")

        house.run(act)
        assert "] was killed by SIGKILL before it was ready (" in errors(caplog)[1]


def test_an_exit_of_the_previous_process_during_a_handover(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    house = House(tmp_path)

    def act() -> None:
        old = first(house)
        house.plan("acks_behind_the_gate")
        house.send(ROLL)
        house.said("at the gate")
        os.kill(old.pid, signal.SIGKILL)
        logged(caplog, "The worker that replaces it is starting.")
        house.open_gate()
        new = house.said("ready", 2)[1]
        house.until(ONE, pid=new.pid, state="ACKED", serving=True)
        house.all_acked()
        still_obeys(house)

    house.run(act)
    assert len(errors(caplog)) == 1


@pytest.mark.parametrize("plan", ["serves", "stubborn"])
def test_a_second_restart_replaces_the_starting_process(
    plan: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    house = House(tmp_path)

    def act() -> None:
        old = first(house)
        house.plan("never_acks" if plan == "serves" else "stubborn_without_ack")
        house.send(ROLL)
        made_way = house.said(None, 2)[1]
        assert made_way.name == ONE
        if plan == "stubborn":
            house.watched(made_way.pid).grace = 0.3
        house.plan("acks_behind_the_gate")
        house.send(ROLL)
        (new,) = house.said("at the gate")
        wait_for_end(made_way.pid)
        assert lives(old.pid)
        house.open_gate()
        wait_for_end(old.pid)
        house.until(ONE, pid=new.pid, state="ACKED", serving=True)
        house.all_acked()

    house.run(act)
    assert len(errors(caplog)) == (plan == "stubborn")


def test_shutdown_first_during_a_handover_stops_both_processes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    house = House(tmp_path)

    def act() -> None:
        old = first(house)
        house.plan("never_acks")
        house.send(ROLL)
        newcomer = house.said("ready", 2)[1]
        house.plan("serves")
        house.send("__ALL_PROCESSES__:")
        for said in (old, newcomer):
            wait_for_end(said.pid)
        new = house.said("ready", 3)[2]
        house.until(ONE, pid=new.pid, state="ACKED", serving=True)

    house.run(act)
    assert errors(caplog) == []


def test_a_stop_during_a_handover_stops_both_processes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    house = House(tmp_path)

    def act() -> None:
        first(house)
        house.plan("never_acks")
        house.send(ROLL)
        house.said("ready", 2)

    house.run(act)
    assert sorted(said.what for said in house.heard)[:2] == ["SIGINT", "SIGINT"]
    assert errors(caplog) == []


def test_a_second_signal_during_a_handover_kills_both_processes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    house = House(tmp_path, "stubborn")

    def act() -> None:
        house.said(None)
        house.all_acked()
        house.plan("stubborn_without_ack")
        house.send(ROLL)
        house.said(None, 2)
        os.kill(os.getpid(), signal.SIGINT)
        logged(caplog, "Received signal SIGINT")

    with pytest.raises(ServerKilled):
        house.run(act)
    for said in house.heard:
        wait_for_end(said.what)


def test_scaling_down_during_a_handover_stops_both_processes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    house = House(tmp_path, number=2)

    def act() -> None:
        old = {said.name: said.pid for said in house.said("ready", 2)}
        house.all_acked()
        house.plan("never_acks")
        house.send(f"{TWO}::STARTUP_FIRST")
        newcomer = house.said("ready", 3)[2]
        house.send("__SCALE__:1")
        wait_for_end(newcomer.pid)
        wait_for_end(old[TWO])
        until(lambda: set(house.state.copy()) == {"Sanic-Main", ONE}, "its entry gone")
        assert lives(old[ONE])

    house.run(act)
    assert errors(caplog) == []


def test_a_transient_process_without_acks_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It sends no ack: the previous process is stopped when the new one has started."""
    house = House(tmp_path)
    (tmp_path / "other").write_text("never_acks")
    kwargs = {**house.kwargs, "plan": str(tmp_path / "other")}
    house.manager.manage("Other", targets.server, kwargs, transient=True)

    def act() -> None:
        old = {said.name: said.pid for said in house.said("ready", 2)}
        house.send(ROLL)
        wait_for_end(old["Sanic-Other-0"])
        new = {said.name: said.pid for said in house.said("ready", 4)[2:]}
        wait_for_end(old[ONE])
        house.all_acked(but="Sanic-Other-0")
        assert lives(new["Sanic-Other-0"])
        entry = house.entry("Sanic-Other-0")
        assert (entry["pid"], entry["starts"]) == (new["Sanic-Other-0"], 2)
        assert "serving" not in entry

    house.run(act)
    assert errors(caplog) == []


def test_removed_servers_leak_no_descriptors(tmp_path: Path) -> None:
    """Scaling up and down without end must not use up the main process's descriptors."""
    house = House(tmp_path)
    counts: list[int] = []

    def count() -> int:
        active_children()
        return len(os.listdir("/proc/self/fd"))

    def act() -> None:
        first(house)
        for _ in range(4):
            house.send("__SCALE__:4")
            until(lambda: len([*house.manager.transient_processes]) == 4, "four")
            house.all_acked()
            house.send("__SCALE__:1")
            until(lambda: set(house.state.copy()) == {"Sanic-Main", ONE}, "one")
            # The turn of the loop that has removed them may still go on.
            until(lambda: not counts or count() - min(counts) < 3, f"as few descriptors as before: {counts}")
            counts.append(count())

    house.run(act)


def test_the_ack_of_the_previous_process_does_not_count_for_the_new_one(tmp_path: Path) -> None:
    """The new process is acked by its own write, not by the previous one's leftovers in the entry."""
    house = House(tmp_path)

    def act() -> None:
        old = first(house)
        house.plan("never_acks")
        house.send(ROLL)
        house.said("ready", 2)
        house.call(lambda: None)
        (process,) = house.manager.transient_processes
        assert process.state is ProcessState.STARTED
        assert process.previous is not None and process.previous.pid == old.pid
        assert lives(old.pid)

    house.run(act)
