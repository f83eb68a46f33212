"""The main process scales real servers by their load, and sleeps while there is none."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from support.running import House, errors, until

from worker._state.event_log import read_events
from worker._supervisor.duties import autoscale, scaling_policy
from worker._supervisor.duties.autoscale import Autoscaler
from worker._supervisor.duties.scaling_policy import Load, Room
from worker._supervisor.operation import Kind

pytestmark = [pytest.mark.usefixtures("main_is_heard"), pytest.mark.native, pytest.mark.slow]


LOOKS = 20
measured_room = Autoscaler._room


@pytest.fixture(autouse=True)
def looks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Shorten all pauses; return the times of the looks at the load."""
    for name, seconds in (("LOOK", 0.02), ("DOWN_WINDOW", 0.3)):
        monkeypatch.setattr(scaling_policy, name, seconds)
        monkeypatch.setattr(autoscale, name, seconds)
    monkeypatch.setattr(scaling_policy, "RISE_PAUSE", 0.1)
    monkeypatch.setattr(scaling_policy, "FALL_PAUSE", 0.1)
    # The load of this machine must not limit it.
    monkeypatch.setattr(Autoscaler, "_room", lambda *_: Room())
    looks: list[float] = []
    perform = Autoscaler.perform

    def performed(self: Autoscaler, now: float) -> None:
        perform(self, now)
        looks.append(now)

    monkeypatch.setattr(Autoscaler, "perform", performed)
    return looks


@pytest.fixture
def load(tmp_path: Path) -> Callable[[float], None]:
    """Set the share of time in which each event loop is busy."""

    def load(share: float) -> None:
        new = tmp_path / "new"
        new.write_text(f"{share}")
        new.rename(tmp_path / "load")

    load(0.1)
    return load


def open_house(folder: Path, workers: str = "1..3", **settings: Any) -> House:
    return House(folder, f"serves_under_load {folder / 'load'}", workers=workers, **settings)


def scaler(house: House) -> Autoscaler:
    """Return the duty; the loop makes it when it opens."""
    found = (one for one in house.manager._loop._duties if isinstance(one, Autoscaler))
    return next(found)


def scalings(house: House) -> list[dict[str, Any]]:
    return [event for event in read_events(house.state) if event["type"] == "scaled"]


def wait_for_servers(house: House, number: int) -> None:
    """Wait for a number at which it stays."""
    until(lambda: house.manager.num_server == number, f"{number} servers")


def wait_for_a_rise(house: House) -> None:
    until(lambda: house.manager.num_server > 1, "more than one server")


def wait_for_looks(looks: list[float]) -> None:
    seen = len(looks)
    until(lambda: len(looks) >= seen + LOOKS, "looks at the load")


def wait_for_sleep(house: House) -> None:
    until(lambda: scaler(house).due_at == math.inf, "its sleep")


def test_it_rises_with_the_load_and_falls_without(
    tmp_path: Path, load: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    house = open_house(tmp_path)
    found = []

    def act() -> None:
        house.said("ready")
        load(1.0)
        wait_for_servers(house, 3)
        house.said("ready", 3)
        load(0.1)
        wait_for_servers(house, 1)
        wait_for_sleep(house)
        found.extend(scalings(house))
        load(1.0)
        wait_for_a_rise(house)

    house.run(act)
    assert errors(caplog) == []
    assert [(one["before"], one["after"]) for one in found] == [(1, 2), (2, 3), (3, 2), (2, 1)]
    assert {one["by"] for one in found} == {"Sanic-Main"}
    reason = found[0]["reason"]
    assert reason == "loop 100 % busy, 9 requests in flight; 1 of 1..3 workers"
    assert found[2]["reason"].startswith("loop at most ")
    assert f"Scaling from 1 to 2 workers: {reason}" in caplog.messages


def test_it_sleeps_while_the_servers_are_idle(
    tmp_path: Path, load: Callable[[float], None], looks: list[float]
) -> None:
    house = open_house(tmp_path, "2..3")

    def act() -> None:
        house.said("ready", 2)
        load(0.4)
        house.call(lambda: None)
        assert scaler(house).due_at == math.inf
        assert looks == []
        # One server that is busy is a reason to look, but not to scale.
        pids = [said.pid for said in house.heard]
        os.kill(pids[0], signal.SIGSTOP)
        load(0.6)
        wait_for_looks(looks)
        load(0.1)
        os.kill(pids[0], signal.SIGCONT)
        wait_for_sleep(house)
        assert scalings(house) == []

    house.run(act)


def test_it_waits_for_the_end_of_a_rollout(
    tmp_path: Path, load: Callable[[float], None], looks: list[float]
) -> None:
    house = open_house(tmp_path)

    def act() -> None:
        house.said("ready")
        house.plan("never_acks")
        house.send("__ALL_PROCESSES__:")
        house.said("ready", 2)
        load(1.0)
        wait_for_looks(looks)
        assert scalings(house) == []

    house.run(act)


def test_it_waits_for_the_end_of_an_upgrade(
    tmp_path: Path, load: Callable[[float], None], looks: list[float]
) -> None:
    house = open_house(tmp_path)
    operations = house.manager._supervisor.operations

    def act() -> None:
        house.said("ready")
        begun = []
        house.call(lambda: begun.append(operations.start(Kind.UPGRADE)))
        load(1.0)
        wait_for_looks(looks)
        assert scalings(house) == []
        house.call(lambda: operations.finish(begun[0]))
        wait_for_a_rise(house)

    house.run(act)


def test_a_replaced_verb_is_obeyed(
    tmp_path: Path, load: Callable[[float], None], looks: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    house = open_house(tmp_path)
    asked: list[int] = []

    def refuse(number: int) -> None:
        asked.append(number)
        raise ValueError("not now")

    house.manager.scale = refuse  # type: ignore[method-assign]

    def act() -> None:
        house.said("ready")
        load(1.0)
        until(lambda: len(asked) > 1, "another attempt")
        assert house.manager.num_server == 1

    house.run(act)
    assert set(asked) == {2}
    # No attempt without a pause.
    assert len(asked) <= 2 + (looks[-1] - looks[0]) / 0.1


def test_the_number_of_an_operator_is_kept_for_a_while(tmp_path: Path, load: Callable[[float], None]) -> None:
    house = open_house(tmp_path)
    found = []

    def act() -> None:
        house.said("ready")
        wait_for_sleep(house)
        house.send("__SCALE__:3")
        until(lambda: len(scalings(house)) == 3, "three scalings")
        found.extend(scalings(house))

    house.run(act)
    assert [one["after"] for one in found] == [3, 2, 1]
    times = [datetime.fromisoformat(one["time"]).timestamp() for one in found]
    assert times[1] - times[0] >= 0.29


def test_a_limit_is_logged_once(
    tmp_path: Path,
    load: Callable[[float], None],
    looks: list[float],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Autoscaler, "_room", lambda *_: Room(cpus=2.0, cpus_used=1.9))
    house = open_house(tmp_path)

    def act() -> None:
        house.said("ready")
        load(1.0)
        wait_for_looks(looks)
        assert scalings(house) == []

    house.run(act)
    assert caplog.messages.count("Not scaling up from 1 of 1..3 workers: 1.9 of 2 CPUs are in use.") == 1


def test_a_server_that_hangs_is_no_load(
    tmp_path: Path, load: Callable[[float], None], looks: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autoscale, "STALE", 0.05)
    house = open_house(tmp_path)

    def act() -> None:
        pid = house.said("ready")[0].pid
        os.kill(pid, signal.SIGSTOP)
        os.waitid(os.P_PID, pid, os.WSTOPPED)
        # It was busy before it hung.
        house.state._table.beat(0, pid, (9, None, None, None, 1.0))
        until(lambda: monotonic() - house.state.last_beat(pid) > autoscale.STALE, "an old beat")
        house.watched(pid).is_busy = True
        house.call(lambda: None)
        wait_for_looks(looks)
        assert scalings(house) == []
        load(1.0)
        os.kill(pid, signal.SIGCONT)
        wait_for_a_rise(house)

    house.run(act)


def test_the_room_is_measured(tmp_path: Path, load: Callable[[float], None]) -> None:
    house = open_house(tmp_path)

    def act() -> None:
        pid = house.said("ready")[0].pid
        duty = scaler(house)
        first = measured_room(duty, 0.0, [pid])
        assert first.cpus_used == 0.0
        assert 0 < first.cpus <= len(os.sched_getaffinity(0))
        assert 0 < first.per_server < first.memory < math.inf
        duty._history = [Load(0.0, 1, 1, 0.0)]
        duty._cpu[pid] -= 3.0
        assert 1.5 <= measured_room(duty, 2.0, [pid]).cpus_used < 3
        assert measured_room(duty, 4.0, [2**22 + 1]).per_server == 0

    house.run(act)
