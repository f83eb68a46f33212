"""The shared state is passed between processes, and each entry has an owner."""

from __future__ import annotations

import os
import pickle
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from datetime import datetime, timezone
from multiprocessing import Pipe, get_context
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from support.running import House, errors, until

from worker._core.codec import PartialEntry, UnreadableError
from worker._state.entry import Entry
from worker._state.shared import SharedState
from worker.state import WorkerState

NAME = "Sanic-Server-0-0"
METHODS = ["spawn", "fork", "forkserver"]

pytestmark = [pytest.mark.native, pytest.mark.usefixtures("main_is_heard")]


@pytest.fixture
def state() -> Iterator[SharedState]:
    state = SharedState()
    yield state
    state.close()


class TestMapping:
    def test_reads_and_deletes_entries(self, state: SharedState) -> None:
        now = datetime.now(tz=timezone.utc)
        state["b"] = {"at": now, "deep": {"x": [1]}}
        state["a"] = {}
        assert (list(state), len(state), "b" in state, "c" in state) == (["b", "a"], 2, True, False)
        assert state.copy() == dict(state) == {"b": {"at": now, "deep": {"x": [1]}}, "a": {}}
        assert [*state.values()] == [state["b"], state["a"]]
        del state["b"]
        assert dict(state.items()) == {"a": {}}

    def test_returned_entries_are_copies(self, state: SharedState) -> None:
        state["a"] = {"deep": [1]}
        state["a"]["deep"].append(2)
        state["a"]["b"] = 1
        state.copy()["a"]["deep"].append(2)
        assert state["a"] == {"deep": [1]}

    def test_a_missing_entry_raises_a_key_error(self, state: SharedState) -> None:
        for act in (
            lambda: state["a"],
            lambda: state.update_entry("a", {"x": 1}),
            lambda: state.__delitem__("a"),
            lambda: state.value("a", "x"),
            lambda: state.discard_key("a", "x"),
        ):
            with pytest.raises(KeyError, match="'a'"):
                act()
        assert len(state) == 0

    def test_a_full_state_raises_a_memory_error(self) -> None:
        state = SharedState(8 << 20)
        state["a"] = {"x": 1}
        with pytest.raises(MemoryError, match=r"'a'.* 8388608 bytes"):
            state.update_entry("a", {"y": b"y" * (8 << 20)})
        assert state.copy() == {"a": {"x": 1}}
        state.update_entry("a", {"y": b"y" * 100_000})
        state.close()

    def test_uses_of_a_closed_state_raise(self) -> None:
        state = SharedState()
        state.close()
        state.close()
        for use in (len, pickle.dumps):
            with pytest.raises(ValueError, match="closed"):
                use(state)

    @pytest.mark.parametrize("max_bytes", [0, (8 << 20) - 1, 1 << 40, "much", 1.5, True])
    def test_a_size_out_of_range_is_refused(self, max_bytes: Any) -> None:
        with pytest.raises(
            ValueError, match=r"^state_max_bytes of SharedState\(\) cannot be .* from 8388608 to"
        ):
            SharedState(max_bytes)


class TestMemory:
    def test_is_an_anonymous_file_of_its_owner(self, state: SharedState) -> None:
        for name in ("_memory", "_wake"):
            descriptor = vars(state)[name]
            assert not os.get_inheritable(descriptor)
        file = os.fstat(vars(state)["_memory"])
        assert (stat.S_IMODE(file.st_mode), file.st_nlink) == (0o600, 0)

    def test_is_closed_by_an_exec(self, state: SharedState) -> None:
        listed = ["ls", "-l", "/proc/self/fd"]
        ended = subprocess.run(listed, capture_output=True, text=True, close_fds=False, check=True)
        assert "pipe:" in ended.stdout
        assert "memfd" not in ended.stdout and "eventfd" not in ended.stdout

    def test_is_allocated_on_use(self, state: SharedState) -> None:
        for number in range(64):
            state[f"Sanic-Server-{number}-0"] = {"pid": number, "state": "ACKED", "serving": True}
        assert len(state.copy()) == 64
        assert os.fstat(vars(state)["_memory"]).st_blocks * 512 < 1 << 20

    def test_is_smaller_under_a_limit_of_the_file_size(self) -> None:
        """As after `ulimit -f`."""
        code = """
            import os, resource
            from worker._state.shared import SharedState

            resource.setrlimit(resource.RLIMIT_FSIZE, (100 << 20, 100 << 20))
            state = SharedState()
            state["a"] = {"x": 1}
            print(os.fstat(state._memory).st_size >> 20, state["a"])
            try:
                SharedState(200 << 20)
            except OSError as error:
                print(error)
            """
        command = [sys.executable, "-c", textwrap.dedent(code)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.stderr == ""
        assert ended.stdout.splitlines() == [
            "64 {'x': 1}",
            "[Errno 27] File too large: the state of the workers, 209715200 bytes (`state_max_bytes`)",
        ]


def ends_whoever_unpickles_it() -> None:
    os._exit(7)


class Hostile:
    """A value that must not be unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return ends_whoever_unpickles_it, ()


def test_the_main_process_unpickles_no_values_of_users(state: SharedState) -> None:
    state[NAME] = {"pid": 1, "state": "ACKED", "mine": Hostile()}
    state.update_entry(NAME, {"state": "STARTED", "serving": True, "mine": Hostile()}, 2)
    entry = Entry(state, NAME)
    entry.require(True)
    assert entry.read() == {"state": "ACKED"}
    assert entry.read(2) == {"state": "STARTED", "serving": True}
    entry.record({"starts": 2})
    entry.hand_over(2, {"starts": 3})
    assert entry.read() == {"state": "STARTED", "serving": True, "starts": 3}
    entry.drop_staged(2)


def answers(state: SharedState, end: Any) -> None:
    """In a child: report the state; then write to it."""
    end.send((state.copy(), state.notify_fd))
    state.update_entry("a", {"child": os.getpid()})
    end.send(sorted(os.get_inheritable(vars(state)[name]) for name in ("_memory", "_wake")))


def marks(state: SharedState) -> None:
    """As a managed function."""
    state.update_entry(os.environ["SANIC_WORKER_NAME"], {"marked": True})


def sees(first: SharedState, others: list[SharedState], end: Any) -> None:
    """In a child: report whether a state that comes twice is one object."""
    end.send([other is first for other in others] + [pickle.loads(pickle.dumps(first)) is first])


@pytest.mark.slow
class TestPassing:
    @pytest.mark.parametrize("method", METHODS)
    def test_to_a_child(self, method: str, state: SharedState) -> None:
        state["a"] = {"x": 1}
        ours, theirs = Pipe()
        with ours, theirs:
            child = get_context(method).Process(target=answers, args=(state, theirs))
            child.start()
            seen, notify_fd = ours.recv()
            assert seen == {"a": {"x": 1}}
            assert notify_fd == (state.notify_fd if method == "fork" else None)
            assert ours.recv() == [False, False]
            child.join()
            assert state["a"] == {"x": 1, "child": child.pid}

    @pytest.mark.parametrize("method", METHODS)
    def test_a_state_passed_twice_is_one_object(self, method: str, state: SharedState) -> None:
        ours, theirs = Pipe()
        with ours, theirs:
            child = get_context(method).Process(target=sees, args=(state, [state], theirs))
            child.start()
            assert ours.recv() == [True, True]
            child.join()

    def test_as_a_token(self, state: SharedState) -> None:
        assert pickle.loads(pickle.dumps([state]))[0] is state

    def test_an_unknown_token_is_refused(self) -> None:
        state = SharedState()
        token = pickle.dumps(state)
        state.close()
        del state
        with pytest.raises(LookupError, match="pass the state in the arguments of the process"):
            pickle.loads(token)

    def test_in_the_arguments_of_a_managed_function(self, tmp_path: Path) -> None:
        house = House(tmp_path)

        def act() -> None:
            house.said("ready")
            house.send(("Other", marks, {"state": house.state}, False, True, True, True, 1))
            house.until("Sanic-Other-0", marked=True)

        house.run(act)


class Odd:
    """A class that this module has in one process only."""


class TestUnreadable:
    @pytest.fixture
    def odd(self, state: SharedState, monkeypatch: pytest.MonkeyPatch) -> SharedState:
        state["a"] = {"good": 1, "bad": Odd()}
        monkeypatch.delitem(globals(), "Odd")
        return state

    def test_the_error_names_entry_and_key(self, odd: SharedState) -> None:
        text = r"the value of 'bad' in the entry 'a' cannot be read here \(AttributeError: .*'Odd'"
        for act in (
            lambda: odd.value("a", "bad"),
            lambda: odd["a"]["bad"],
            lambda: odd["a"].get("bad"),
            lambda: odd.copy()["a"]["bad"],
            lambda: WorkerState(odd, "a")["bad"],
            lambda: WorkerState(odd, "a").get("bad"),
        ):
            with pytest.raises(UnreadableError, match=text):
                act()

    def test_other_keys_can_be_read(self, odd: SharedState) -> None:
        odd["b"] = {"x": 1}
        assert odd.copy() == {"a": {"good": 1}, "b": {"x": 1}}
        assert (odd["a"]["good"], odd.value("a", "good"), WorkerState(odd, "a")["good"]) == (1, 1, 1)
        assert (odd["a"].get("good"), odd["a"].get("none", 5)) == (1, 5)
        with pytest.raises(KeyError):
            odd["a"]["none"]
        assert isinstance(odd["a"], PartialEntry)

    def test_other_keys_can_be_set(self, odd: SharedState) -> None:
        WorkerState(odd, "a")["new"] = 2
        assert odd["a"] == {"good": 1, "new": 2}
        assert [*odd["a"].unreadable] == ["bad"]  # type: ignore[attr-defined]
        odd.update_entry("a", {"bad": 3})
        assert odd["a"] == {"good": 1, "bad": 3, "new": 2}


class TestOwner:
    def test_writes_of_another_process_are_staged(self, state: SharedState) -> None:
        state[NAME] = {"pid": 1, "state": "ACKED", "serving": True}
        before = state.copy()
        mine = WorkerState(state, NAME)
        mine["x"] = 5
        state.update_entry(NAME, {"state": "ACKED"}, os.getpid())
        assert state.copy() == before
        assert state.read_keys(NAME, ("x", "state"), os.getpid()) == {"x": 5, "state": "ACKED"}
        assert mine == {**before[NAME], "x": 5}
        del mine["x"]
        assert "x" not in mine
        mine["y"] = 6

        state.hand_over(NAME, os.getpid(), {"serving": False})
        assert state[NAME] == {"pid": os.getpid(), "state": "ACKED", "serving": False, "y": 6}
        # The last writes of the other process.
        state.update_entry(NAME, {"serving": True}, 1)
        assert state[NAME]["serving"] is False
        state.drop_staged(NAME, 1)
        assert state.read_keys(NAME, ("x",), 1) == {}

    @pytest.mark.parametrize("order", ["", ":STARTUP_FIRST"])
    def test_a_restart_hands_the_entry_over(
        self, order: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Each process keeps writing under its name until it is gone."""
        house = House(tmp_path, "serves_and_counts")

        def act() -> None:
            old = house.said("ready")[0].pid
            house.all_acked()
            house.plan("acks_behind_the_gate")
            house.send(f"{NAME}:{order}")
            new = house.said("at the gate")[0].pid
            if order:
                entry = house.entry(NAME)
                assert (entry["pid"], entry["state"], entry["serving"]) == (old, "ACKED", True)
                assert entry["starts"] == 1
            house.open_gate()
            entry = house.until(NAME, pid=new, state="ACKED", serving=True)
            assert entry["starts"] == 2
            until(
                lambda: not house.state.read_keys(NAME, ("state",), old), "the end of what the old one wrote"
            )
            house.all_acked()
            assert house.entry(NAME)["serving"] is True

        house.run(act)
        assert errors(caplog) == []

    def test_an_exit_of_the_previous_process_hands_the_entry_over(self, tmp_path: Path) -> None:
        house = House(tmp_path)

        def act() -> None:
            old = house.said("ready")[0].pid
            house.all_acked()
            house.plan("acks_behind_the_gate")
            house.send(f"{NAME}::STARTUP_FIRST")
            new = house.said("at the gate")[0].pid
            os.kill(old, signal.SIGKILL)
            entry = house.until(NAME, pid=new)
            assert (entry["state"], entry["serving"]) == ("STARTED", False)
            house.open_gate()
            house.until(NAME, pid=new, state="ACKED", serving=True)

        house.run(act)


class TestNumbers:
    def test_are_shown_in_the_entry(self, state: SharedState) -> None:
        state[NAME] = {"pid": os.getpid()}
        assert state[NAME] == {"pid": os.getpid()}
        before = datetime.now(tz=timezone.utc)
        state.beat(requests=3)
        state.beat(requests=4)
        state.flag(stoppable=True)
        entry = WorkerState(state, NAME).full()[NAME]
        beat = entry.pop("last_beat")
        assert before <= beat <= datetime.now(tz=timezone.utc)
        assert entry == {"pid": os.getpid(), "requests": 7, "stoppable": True, "stopping": False}
        state.flag(stopping=True, stoppable=False)
        assert state[NAME] == {**entry, "last_beat": beat, "stoppable": False, "stopping": True}
        assert WorkerState(state, NAME)["requests"] == 7
        assert 0 < (state.last_beat(os.getpid()) or 0) <= monotonic()
