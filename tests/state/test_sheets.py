"""Sheets: tables of cells beside the entries, written by one process and read by any."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from support.running import until
from support.tables import SCHEMA, Memory

from worker._spawn.state_process import StateProcess
from worker._state import schema
from worker._state.foreign import ForeignState, adapted
from worker._state.shared import SharedState
from worker.settings.values import MIN_STATE_BYTES

native = pytest.mark.native


@pytest.fixture(
    params=[pytest.param("shared", marks=native), pytest.param("process", marks=pytest.mark.slow)]
)
def state(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The state as the main process has it: in shared memory, or in a process of its own."""
    if request.param == "shared":
        own = SharedState()
        yield own
        own.close()
        return
    process = StateProcess(schema.SHEETS)
    proxy = process.dict()
    yield adapted(proxy)
    proxy.close()
    process.shutdown()


@pytest.fixture
def shared() -> Iterator[SharedState]:
    state = SharedState()
    yield state
    state.close()


class TestCells:
    """The two ways to keep the state have the same sheets."""

    def test_a_new_sheet_has_no_data(self, state: Any) -> None:
        for name, (cells, _) in schema.SHEETS.items():
            assert state.cells(name) == [None] * cells

    def test_a_cell_holds_the_last_data_written(self, state: Any) -> None:
        for data in (b"first", b"", bytes(range(256)) * 4, b"last"):
            state.write_cell("operations", 1, data)
            assert state.cells("operations") == [None, data, *[None] * 98]
        state.write_cell("operations", 99, b"end")
        state.write_cell("pong", 0, b"token")
        assert state.cells("operations") == [None, b"last", *[None] * 97, b"end"]
        assert state.cells("pong") == [b"token"]
        assert state.cells("totals") == [None]

    def test_data_that_do_not_fit_are_refused(self, state: Any) -> None:
        state.write_cell("pong", 0, b"x" * 64)
        with pytest.raises(ValueError, match="65 bytes for a cell of the sheet 'pong', 64 are allowed"):
            state.write_cell("pong", 0, b"y" * 65)
        assert state.cells("pong") == [b"x" * 64]

    @pytest.mark.parametrize("index", [-1, 1, 2**63 - 1])
    def test_a_cell_beyond_the_sheet_is_an_error(self, state: Any, index: int) -> None:
        with pytest.raises(IndexError, match="the sheet 'pong' has 1 cells"):
            state.write_cell("pong", index, b"")

    def test_an_unknown_sheet_is_an_error(self, state: Any) -> None:
        with pytest.raises(KeyError, match="nothing"):
            state.write_cell("nothing", 0, b"")
        with pytest.raises(KeyError, match="nothing"):
            state.cells("nothing")

    def test_entries_and_sheets_are_apart(self, state: Any) -> None:
        mapping = state._state if isinstance(state, ForeignState) else state
        mapping["pong"] = {"x": 1}
        state.write_cell("pong", 0, b"token")
        assert dict(mapping["pong"]) == {"x": 1}
        assert list(mapping.keys()) == ["pong"]


class TestForeign:
    """Any other mapping has no sheets."""

    def test_writes_are_dropped(self) -> None:
        state = adapted({})
        state.write_cell("pong", 0, b"token")
        assert state.cells("pong") == []
        assert state.usage() == (0, 0)


@native
class TestShared:
    def test_a_fork_reads_and_writes_the_same_cells(self, shared: SharedState) -> None:
        shared.write_cell("pong", 0, b"main")
        pid = os.fork()
        if pid == 0:
            is_right = shared.cells("pong") == [b"main"]
            shared.write_cell("pong", 0, b"fork" if is_right else b"wrong")
            os._exit(0)
        os.waitpid(pid, 0)
        assert shared.cells("pong") == [b"fork"]

    def test_only_cells_in_use_take_memory(self) -> None:
        def taken(state: SharedState) -> int:
            return os.fstat(state._memory).st_blocks * 512

        state = SharedState()
        empty = taken(state)
        for name in schema.SHEETS:
            state.cells(name)
        # The page with the numbers of cells in use.
        assert taken(state) - empty <= 4096
        state.write_cell("events", 0, b"x" * 1024)
        state.cells("events")
        assert taken(state) - empty <= 3 * 4096
        state.close()

    def test_usage_grows_with_the_entries(self, shared: SharedState) -> None:
        used, most = shared.usage()
        assert used == 0
        shared["a"] = {"x": b"x" * 1_000_000}
        large, same = shared.usage()
        assert 1_000_000 <= large < 3_000_000
        assert same == most > 900 << 20
        del shared["a"]
        shared["b"] = {"x": b"x" * 1_000_000}
        assert shared.usage()[0] == large

    def test_sheets_and_entries_fit_into_the_smallest_state(self) -> None:
        state = SharedState(MIN_STATE_BYTES)
        for name, (cells, size) in schema.SHEETS.items():
            for index in range(cells):
                state.write_cell(name, index, bytes([index % 256]) * size)
        for number in range(64):
            state[f"Sanic-Server-{number}-0"] = {"pid": number, "x": b"x" * 10_000}
        for name, (cells, size) in schema.SHEETS.items():
            assert state.cells(name) == [bytes([index % 256]) * size for index in range(cells)]
        assert {len(entry["x"]) for entry in state.values()} == {10_000}
        used, most = state.usage()
        assert 640_000 < used < most < MIN_STATE_BYTES
        state.close()

    def test_a_writer_killed_at_any_moment_leaves_whole_cells_and_at_most_one_without_data(
        self, shared: SharedState
    ) -> None:
        for _ in range(20):
            pid = os.fork()
            if pid == 0:
                while True:
                    for byte in range(1, 256):
                        for index in range(3):
                            shared.write_cell("events", index, bytes([byte]) * (byte * 4))
            try:
                seen: set[bytes] = set()

                def sees(seen: set[bytes] = seen) -> bool:
                    for cell in filter(None, shared.cells("events")):
                        assert cell == cell[:1] * (cell[0] * 4)
                        seen.add(cell)
                    return len(seen) > 10

                until(sees, "ten writes")
            finally:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            assert shared.cells("events")[:3].count(None) <= 1
            for index in range(3):
                shared.write_cell("events", index, b"")
            assert shared.cells("events")[:3] == [b""] * 3

    def test_a_table_with_other_sheets_is_refused(self, core: ModuleType, memory: Memory) -> None:
        memory.table()
        with pytest.raises(ValueError, match="no table"):
            core.Table(memory.fd, memory.wake, **{**SCHEMA, "sheets": {"events": (10, 1024)}})

    def test_sheets_that_do_not_fit_are_refused(self, core: ModuleType, memory: Memory) -> None:
        for sheets in ({"a": (2**32 - 1, 2**32 - 1)}, {"a": (memory.size, 8)}):
            with pytest.raises(ValueError, match="no table"):
                core.Table(memory.fd, memory.wake, **{**SCHEMA, "sheets": sheets})
        for sizes in ((-1, 8), (1, 2**32)):
            with pytest.raises(OverflowError):
                core.Table(memory.fd, memory.wake, **{**SCHEMA, "sheets": {"a": sizes}})

    def test_a_closed_state_has_no_sheets(self) -> None:
        state = SharedState()
        state.close()
        for use in (lambda: state.cells("pong"), lambda: state.write_cell("pong", 0, b""), state.usage):
            with pytest.raises(ValueError, match="closed"):
                use()
