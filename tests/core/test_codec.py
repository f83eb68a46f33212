"""The main process decodes plain values only: no user code runs in it, for any value in the state."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sanic import Sanic
from support.running import House, errors

import worker
from worker._state.entry import Entry
from worker._state.shared import SharedState
from worker._supervisor.state_watcher import StateWatcher
from worker.process import WorkerProcess
from worker.state import WorkerState

NAME = "Sanic-Server-0-0"
NOW = datetime.now(tz=timezone.utc)
GOOD = {"state": "ACKED", "serving": True, "start_at": NOW, "starts": 3, "start_error": "ImportError: x"}

native = pytest.mark.native


def ends_whoever_unpickles_it() -> None:
    os._exit(7)


class Hostile:
    """A value that must not be unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return ends_whoever_unpickles_it, ()


class Text(str):
    """A text of a user's class."""

    __slots__ = ()


@pytest.fixture
def state() -> Iterator[SharedState]:
    state = SharedState()
    yield state
    state.close()


@native
@pytest.mark.parametrize("key", GOOD)
@pytest.mark.parametrize("value", [Hostile(), [Hostile()], Text("ACKED"), [1], NOW.astimezone().tzinfo])
def test_values_of_other_classes_are_skipped(key: str, value: Any, state: SharedState) -> None:
    state[NAME] = {"pid": 1, **GOOD, key: value}
    state.update_entry(NAME, {**GOOD, key: value}, 2)
    entry = Entry(state, NAME)
    rest = {one: known for one, known in GOOD.items() if one != key}
    assert entry.read() == entry.read(2) == rest
    entry.require(True)
    entry.record({"starts": 4})
    entry.hand_over(2, {"state": "STARTED"})
    entry.drop_staged(2)
    entry.remove()
    assert list(state) == []


@pytest.mark.parametrize("foreign", [pytest.param(False, marks=native), True], ids=["ours", "foreign"])
@pytest.mark.parametrize("value", [None, 1.5, b"x", NOW - timedelta(1), "many", 2])
def test_values_of_the_wrong_type_are_skipped(
    foreign: bool, value: Any, request: pytest.FixtureRequest
) -> None:
    mapping: Any = {} if foreign else request.getfixturevalue("state")
    for key, good in GOOD.items():
        if isinstance(value, type(good)):
            continue
        mapping[NAME] = {**GOOD, key: value}
        rest = {one: known for one, known in GOOD.items() if one != key}
        assert Entry(mapping, NAME).read() == rest
        slot = WorkerProcess(SimpleNamespace, NAME, print, {}, mapping)
        watcher = StateWatcher(mapping)
        watcher.changed(0.0)
        assert watcher.read(slot) == rest


@native
@pytest.mark.parametrize(
    "value",
    [None, True, 0, 300, -1, 2**31, 2**80, -(2**80), 2**3000, 1.5, "x" * 300, "\ud800", b"", b"b" * 300, NOW],
    ids=lambda value: f"{type(value).__name__}-{len(pickle.dumps(value))}",
)
def test_plain_values_are_decoded(value: Any, state: SharedState) -> None:
    state[NAME] = {"x": value, "not plain": (1,)}
    (seen,) = state.read_keys(NAME, ("x", "not plain")).values()
    assert (type(seen), seen) == (type(value), value)


@native
def test_reading_the_process_states_unpickles_no_values(state: SharedState) -> None:
    state[NAME] = {"state": "ACKED", "mine": Hostile()}
    state["Sanic-Server-1-0"] = {"state": "COMPLETED", "mine": Hostile()}
    state["Sanic-Server-2-0"] = {"state": Hostile()}
    stock = vars(Sanic.__mro__[-1]).get("_get_process_states")
    worker.install()
    try:
        assert Sanic._get_process_states(state) == ["ACKED"]
        assert Sanic._get_process_states({"a": {"state": "STARTED"}, "b": {"pid": 1}}) == ["STARTED"]
    finally:
        worker.uninstall()
    assert vars(Sanic.__mro__[-1]).get("_get_process_states") is stock
    assert Sanic._get_process_states({"a": {"state": "ACKED"}}) == ["ACKED"]


@native
@pytest.mark.usefixtures("main_is_heard")
def test_the_main_process_restarts_and_stops_with_hostile_values(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    house = House(tmp_path)

    def act() -> None:
        old = house.said("ready")[0].pid
        house.all_acked()
        mine = WorkerState(house.state, NAME)
        # As the worker itself does, so the entry is the worker's.
        house.state.update_entry(NAME, {"start_error": Hostile(), "mine": Hostile()})
        with pytest.raises(LookupError):
            mine["state"] = Hostile()
        house.plan("acks_then_serves_behind_the_gate")
        house.send(f"{NAME}::STARTUP_FIRST")
        new = house.said("acked")[0].pid
        house.state.update_entry(NAME, {"serving": Hostile()}, new)
        house.all_acked()
        os.kill(old, 0)
        house.open_gate()
        house.said("ready", 2)

    # The test's own reading must not meet the remaining values.
    copy = SharedState.copy
    SharedState.copy = lambda state: {name: state.read_keys(name, ("state",)) for name in state}  # type: ignore[method-assign]
    try:
        house.run(act)
    finally:
        SharedState.copy = copy  # type: ignore[method-assign]
    assert errors(caplog) == []
