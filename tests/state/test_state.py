from __future__ import annotations

import gc
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing import Manager
from typing import Any

import pytest

from worker._state.foreign import adapted, snapshot
from worker.state import WorkerState

RESTRICTED = ("health", "pid", "requests", "restart_at", "server", "start_at", "starts", "state")


def state_of(**entry: Any) -> WorkerState:
    return WorkerState({"me": entry, "other": {"pid": 2}}, "me")


class TestForeign:
    def test_a_change_is_merged_into_the_one_entry(self) -> None:
        state = {"a": {"x": 1, "y": 2}, "b": {"x": 1}}
        adapted(state).update_entry("a", {"y": 3, "z": 4}, 5)
        assert state == {"a": {"x": 1, "y": 3, "z": 4}, "b": {"x": 1}}

    def test_the_entry_is_written_not_changed_in_place(self) -> None:
        entry = {"x": 1}
        state = {"a": entry}
        adapted(state).update_entry("a", {"x": 2})
        assert (entry, state) == ({"x": 1}, {"a": {"x": 2}})

    def test_a_missing_entry_raises_a_key_error(self) -> None:
        state: dict[str, Any] = {}
        with pytest.raises(KeyError, match="gone"):
            adapted(state).update_entry("gone", {"x": 1})
        assert state == {}

    def test_a_handover_does_not_overwrite_concurrent_writes(self) -> None:
        class Written(dict[str, Any]):
            """A writer that reads the entry first comes too late: its process has written meanwhile."""

            def __getitem__(self, name: str) -> Any:
                read = super().__getitem__(name)
                self[name] = {**read, "serving": True}
                return read

        state = Written(a={"state": "ACKED", "starts": 1, "pid": 5})
        adapted(state).hand_over("a", 5, {"state": "ACKED", "starts": 1})
        assert state == {"a": {"state": "ACKED", "starts": 1, "pid": 5, "serving": True}}

    @pytest.mark.parametrize("changes", [{"state": "ACKED"}, {"starts": 1}, {}])
    def test_an_entry_is_handed_over(self, changes: dict[str, Any]) -> None:
        state = {"a": {"state": "STARTED", "pid": 4}}
        adapted(state).hand_over("a", 5, changes)
        assert state == {"a": {"state": "STARTED", "pid": 5, **changes}}

    def test_updates_over_a_sync_manager(self) -> None:
        with Manager() as manager:
            state = manager.dict({"a": {"x": 1}})
            adapted(state).update_entry("a", {"y": 2})
            with suppress(KeyError):
                adapted(state).update_entry("b", {"y": 2})
                pytest.fail("an entry came out of nothing")
            assert state.copy() == {"a": {"x": 1, "y": 2}}
        # An error that comes through a proxy is in a reference cycle, which holds the connection.
        gc.collect()


class TestSnapshot:
    def test_is_a_copy(self) -> None:
        state = {"a": {"x": 1}}
        taken = snapshot(state)
        taken["b"] = {}
        assert state == {"a": {"x": 1}}

    def test_asks_a_mapping_that_can_copy_once(self) -> None:
        class Proxy(dict[str, Any]):
            def __getitem__(self, name: str) -> Any:
                raise AssertionError("asked for one entry")

            def keys(self) -> Any:
                raise AssertionError("asked for the names")

            def copy(self) -> dict[str, Any]:
                return {"a": 1}

        assert snapshot(Proxy()) == {"a": 1}

    def test_of_a_mapping_that_cannot_copy(self) -> None:
        class Bare(Mapping[str, Any]):
            def __getitem__(self, name: str) -> Any:
                return {"name": name}

            def __iter__(self) -> Any:
                return iter("ab")

            def __len__(self) -> int:
                return 2

        assert snapshot(Bare()) == {"a": {"name": "a"}, "b": {"name": "b"}}


class TestReading:
    def test_as_a_mapping(self) -> None:
        state = state_of(one=1, two=2)
        assert state["one"] == 1
        assert "one" in state
        assert "three" not in state
        assert list(state) == list(state.keys()) == ["one", "two"]
        assert list(state.values()) == [1, 2]
        assert list(state.items()) == [("one", 1), ("two", 2)]
        assert len(state) == 2
        assert repr(state) == "{'one': 1, 'two': 2}"
        assert isinstance(state, Mapping)

    def test_get(self) -> None:
        state = state_of(one=1)
        assert state.get("one") == 1
        assert state.get("two") is None
        assert state.get("two", 5) == 5

    def test_equality(self) -> None:
        assert state_of(one=1) == {"one": 1}
        assert state_of(one=1) == state_of(one=1)
        assert state_of(one=1) != {"one": 2}

    def test_full(self) -> None:
        state = state_of(one=1)
        full = state.full()
        assert full == {"me": {"one": 1}, "other": {"pid": 2}}
        assert type(full) is dict
        full.clear()
        assert state["one"] == 1

    def test_a_missing_entry_raises_a_key_error(self) -> None:
        with pytest.raises(KeyError, match="me"):
            WorkerState({}, "me")["one"]


class TestWriting:
    def test_set(self) -> None:
        state = state_of(one=1)
        state["two"] = 2
        assert state._state == {"me": {"one": 1, "two": 2}, "other": {"pid": 2}}

    def test_update(self) -> None:
        state = state_of(one=1)
        state.update({"one": 2, "two": 2})
        assert state._state["me"] == {"one": 2, "two": 2}

    def test_delete(self) -> None:
        state = state_of(one=1, two=2)
        del state["one"]
        assert state._state["me"] == {"two": 2}
        del state["never there"]
        assert state._state["me"] == {"two": 2}

    def test_pop_is_not_offered(self) -> None:
        with pytest.raises(NotImplementedError):
            state_of(one=1).pop()

    def test_writes_over_a_sync_manager(self) -> None:
        with Manager() as manager:
            state = WorkerState(manager.dict({"me": {"one": 1}}), "me")
            state["two"] = {"deep": [1]}
            state.update({"three": 3})
            del state["one"]
            assert state == {"two": {"deep": [1]}, "three": 3}
            assert state.full() == {"me": {"two": {"deep": [1]}, "three": 3}}


class TestRestricted:
    def test_the_restricted_keys(self) -> None:
        assert WorkerState.RESTRICTED == RESTRICTED

    @pytest.mark.parametrize("key", RESTRICTED)
    def test_a_restricted_key_is_refused(self, key: str) -> None:
        state = state_of(**{key: 1})
        expected = f"^Cannot set restricted key on WorkerState: {key}$"
        with pytest.raises(LookupError, match=expected):
            state[key] = 2
        with pytest.raises(LookupError, match=expected):
            del state[key]
        with pytest.raises(LookupError, match=expected):
            state.update({"fine": 1, key: 2})
        assert state == {key: 1}

    @pytest.mark.parametrize("key", ["last_exit", "last_exit_at", "next_restart_at", "requests_before"])
    def test_a_key_that_the_manager_alone_has_is_refused(self, key: str) -> None:
        state = state_of()
        with pytest.raises(LookupError, match=f"^Cannot set restricted key on WorkerState: {key}$"):
            state[key] = 1
        assert state == {}

    def test_several_restricted_keys_are_refused(self) -> None:
        state = state_of()
        with pytest.raises(LookupError, match=r"^Cannot set restricted key on WorkerState: last_beat$"):
            state_of().update({"last_beat": 1})
        with pytest.raises(LookupError, match=r"^Cannot set restricted keys on WorkerState: state, pid$"):
            state.update({"state": 1, "fine": 2, "pid": 3})
        assert state == {}
