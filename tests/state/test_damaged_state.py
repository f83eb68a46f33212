"""Other code has overwritten the memory of the state: the main process creates the entry again."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from sanic import Sanic
from support.running import House, errors, logged, until
from support.tables import SCHEMA

import worker
from worker._state.entry import Entry
from worker._state.shared import SharedState
from worker.multiplexer import WorkerMultiplexer
from worker.settings.values import MIN_STATE_BYTES

NAME = "Sanic-Server-0-0"
GONE = "something else has written to the memory of the table"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.native,
    pytest.mark.usefixtures("main_is_heard"),
]


def damage(state: SharedState, name: str = "") -> None:
    """Damage the entry of this name, or all entries, so that it cannot be read."""
    memory: int = state._memory
    # The size of the smallest state; the tests use no more.
    whole = os.pread(memory, MIN_STATE_BYTES, 0)
    # The event log, which lies before the blocks, has the name as a part of JSON.
    places = [
        found.start() for found in re.finditer(rb'%s(?![" ])' % re.escape(name or NAME).encode(), whole)
    ]
    if not name:
        # All values are in blocks; the beginning holds the index.
        places = [at for at in range(places[0] & -8, len(whole), 8) if any(whole[at : at + 8])]
    for at in places:
        os.pwrite(memory, bytes(byte ^ 0x55 for byte in whole[at : at + 3]), at)


@pytest.fixture
def _ends_with_what_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test reads all states when the manager has ended."""

    def readable(state: SharedState) -> dict[str, dict[str, object]]:
        found = {}
        for name in ("Sanic-Main", NAME):
            try:
                found[name] = state.read_keys(name, ("state", "pid", "serving", "phase"))
            except (KeyError, RuntimeError):
                continue
        return found

    monkeypatch.setattr(SharedState, "copy", readable)


def test_each_call_recreates_a_damaged_entry(caplog: pytest.LogCaptureFixture) -> None:
    state = SharedState()
    state[NAME] = {"pid": 1, "state": "ACKED"}
    state["other"] = {"pid": 2}
    lost = {"pid": 1, "starts": 3}
    entry = Entry(state, NAME, lambda: lost)
    for act, left in (
        (lambda: entry.record({"state": "STARTED"}), {**lost, "state": "STARTED"}),
        (lambda: entry.hand_over(5, {"state": "ACKED"}), {"pid": 5, "starts": 3, "state": "ACKED"}),
        (lambda: entry.drop_staged(5), lost),
        (lambda: entry.require(True), lost),
        (entry.read, lost),
        (lambda: entry.read(5), lost),
        (entry.remove, None),
    ):
        damage(state, NAME)
        # One that has seen it keeps what it has seen.
        state._table = type(state._table)(state._memory, state._wake, **SCHEMA)
        with pytest.raises(RuntimeError, match=GONE):
            state.copy()
        worker.install()
        assert Sanic._get_process_states(state) == []
        worker.uninstall()
        act()
        assert state.copy() == {"other": {"pid": 2}, **({} if left is None else {NAME: left})}
    assert errors(caplog) == [f"State entry of {NAME} is damaged: {GONE}. Creating it again."]
    state.close()


def test_a_worker_exits_with_a_damaged_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANIC_WORKER_NAME", NAME)
    state = SharedState()
    state[NAME] = {"pid": os.getpid()}
    multiplexer = WorkerMultiplexer(None, state)  # type: ignore[arg-type]
    damage(state, NAME)
    multiplexer.set_serving(False)
    multiplexer.exit()
    with pytest.raises(RuntimeError, match=GONE):
        multiplexer.ack()
    state.close()


def restarts(house: House) -> None:
    """A restart creates the entry again."""
    old = house.said("ready")[0].pid
    house.send(f"{NAME}:")
    new = house.said("ready", 2)[1].pid
    assert new != old
    until(lambda: house.state.read_keys(NAME, ("pid",)) == {"pid": new}, "its entry")
    house.all_acked()


def dies(house: House) -> None:
    """So does the exit of the worker."""
    os.kill(house.said("ready")[0].pid, signal.SIGKILL)
    new = house.said("ready", 2)[1].pid
    until(lambda: house.state.read_keys(NAME, ("pid",)) == {"pid": new}, "its entry")


def only_stops(house: House) -> None:
    """A stop needs no state."""


@pytest.mark.usefixtures("_ends_with_what_can_be_read")
@pytest.mark.parametrize("act", [restarts, dies, only_stops])
@pytest.mark.parametrize("name", [NAME, "", "a value"], ids=["one", "all", "value"])
def test_the_main_process_handles_damaged_entries(
    name: str,
    act: Callable[[House], None],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    house = House(tmp_path, backoff_initial=0.01)

    def acting() -> None:
        house.said("ready")
        # No process writes then.
        house.until(NAME, serving=True, phase="ready")
        house.state.update_entry(NAME, {"mine": "a value"})
        damage(house.state, name)
        act(house)
        if act is not only_stops:
            logged(caplog, f"State entry of {NAME} is damaged")

    house.run(acting)
    assert len([line for line in errors(caplog) if "is damaged" in line]) <= 2
