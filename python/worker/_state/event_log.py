"""The event log of the manager, and the operations and totals beside it, in the shared state.

The main process alone writes, as it acts. Any process that has the shared state reads, without asking the
main process. Everything is kept as JSON, in cells of a fixed size. A text that is too long is cut.
"""

from __future__ import annotations

import json
import logging
from bisect import bisect_left
from collections.abc import Iterable, Mapping, MutableMapping
from contextlib import suppress
from datetime import datetime, timezone
from typing import Any

from sanic.log import error_logger, logger

from worker._state import events, schema
from worker._state.foreign import adapted
from worker.constants import NAME_LIMIT, excerpt

__all__ = [
    "EventLog",
    "last_seq",
    "read_events",
    "read_operations",
    "read_pong",
    "read_preload",
    "read_totals",
]

# The upper bounds of the buckets of the histograms, seconds.
BOUNDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
# Why a process was started in place of another one.
RESTART_REASONS = ("exit", "request", "reload")
# If a record does not fit into its cell, its texts are cut to the first of these lengths with which it does,
# and its lists to a few items.
SHORT_TEXTS = (150, 50, 10)
SHORT_LIST = 5


class EventLog:
    """Writes the events, the operations and the totals of a manager. Only the main process has one.

    A state without cells, or one that is unreachable, keeps none of it. The log lines are written all the
    same.

    Args:
        state (MutableMapping[str, Any]): The shared state.
    """

    def __init__(self, state: MutableMapping[str, Any]) -> None:
        self._state = adapted(state)
        self._mapping = state
        self._events = 0
        self._operations = 0
        # The cells of the kept operations, by their numbers, and the numbers of those that have ended.
        self._cells: dict[int, int] = {}
        self._ended: set[int] = set()
        self._totals = _Totals()

    def append(self, event: events.Event) -> None:
        """Keep an event, count it, and write its line to the log."""
        self._events += 1
        record = {
            "seq": self._events,
            "time": _now(),
            "type": event.type,
            "level": logging.getLevelName(event.level).lower() if event.level else "info",
            "text": event.text,
            **event.fields,
        }
        self._write("events", self._events, record)
        if self._totals.count(event):
            self._write("totals", 0, self._totals.values)
        # Logged last, so that the state shows the event when its line appears.
        if event.level:
            log = error_logger if event.level >= logging.ERROR else logger
            log.log(event.level, "%s", event.text, extra=event.fields)

    def new_operation(self) -> int:
        """Return the number of one more operation, for :meth:`show_operation`."""
        self._operations += 1
        return self._operations

    def show_operation(self, number: int, operation: Mapping[str, Any]) -> None:
        """Keep the present state of an operation, in place of the oldest one that has ended."""
        cell = self._cells.get(number)
        if cell is None:
            if self._cells and number < max(self._cells):
                # A later one has taken its cell.
                return
            cell = self._cells[number] = self._free_cell()
        if operation["status"] != "running":
            self._ended.add(number)
        self._write("operations", cell, {"number": number, **operation})

    def _free_cell(self) -> int:
        kept, _ = schema.SHEETS["operations"]
        if len(self._cells) < kept:
            return len(self._cells)
        oldest = next((number for number in self._cells if number in self._ended), next(iter(self._cells)))
        self._ended.discard(oldest)
        return self._cells.pop(oldest)

    def pong(self, token: str) -> None:
        """Answer a ping by its token."""
        self._write("pong", 0, token)

    def show_preload(self, shown: Mapping[str, Any] | None) -> None:
        """Keep the present state of the preload process; ``None`` if there is none."""
        self._write("preload", 0, shown)

    def _write(self, sheet: str, number: int, record: Any) -> None:
        cells, size = schema.SHEETS[sheet]
        data = _encode(record)
        for limit in SHORT_TEXTS:
            if len(data) > size:
                data = _encode(_shortened(record, limit))
        # The main process goes on without a state that is unreachable or closed.
        with suppress(OSError, EOFError, ValueError, RuntimeError):
            self._state.write_cell(sheet, number % cells, data)


def read_events(state: Mapping[str, Any], since: int = 0) -> list[dict[str, Any]]:
    """Return the kept events, oldest first.

    Args:
        state (Mapping[str, Any]): The shared state.
        since (int): The ``seq`` of the last event that is left out. Defaults to 0: none is.
    """
    cells = adapted(state).cells("events")  # type: ignore[arg-type]
    # A stream asks several times a second, mostly for nothing: decoding all would take ten times as long.
    newer = {seq: cell for cell in cells if cell is not None and (seq := _seq(cell)) > since}
    return [json.loads(newer[seq]) for seq in sorted(newer)]


def last_seq(state: Mapping[str, Any], known: int = 0) -> int:
    """Return the ``seq`` of the last event; 0 if there is none.

    Args:
        state (Mapping[str, Any]): The shared state.
        known (int): An earlier result: only events after it are decoded. Defaults to 0.
    """
    cells = adapted(state).cells("events")  # type: ignore[arg-type]
    # The event after `known` is in the next cell, unless a later one has replaced it.
    while cells and (cell := cells[(known + 1) % len(cells)]) is not None:
        seq = json.loads(cell)["seq"]
        if seq <= known:
            break
        known = seq
    return known


def read_operations(state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the kept operations, newest first."""
    found = sorted(_read(state, "operations"), key=lambda operation: -operation["number"])
    return [{key: operation[key] for key in operation if key != "number"} for operation in found]


def read_totals(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the counts since the start of the main process."""
    return next(iter(_read(state, "totals")), None) or _Totals().values


def read_pong(state: Mapping[str, Any]) -> str:
    """Return the token of the last ping that the main process has answered; empty if there is none."""
    return next(iter(_read(state, "pong")), "")


def read_preload(state: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the state of the preload process; ``None`` if there is none."""
    return next(iter(_read(state, "preload")), None)


def _read(state: Mapping[str, Any], sheet: str) -> Iterable[Any]:
    cells = adapted(state).cells(sheet)  # type: ignore[arg-type]
    return [json.loads(cell) for cell in cells if cell is not None]


def _seq(cell: bytes) -> int:
    """Return the number of an event, which its cell begins with."""
    return int(cell[len(b'{"seq":') : cell.index(b",")])


def _encode(record: Any) -> bytes:
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":"), default=str)
    return text.encode(errors="backslashreplace")


def _shortened(record: Mapping[str, Any], limit: int) -> dict[str, Any]:
    """Return a record with short texts and lists."""

    def short(value: Any) -> Any:
        if isinstance(value, str):
            return excerpt(value, limit)
        if isinstance(value, (list, tuple)):
            more = [f"and {len(value) - SHORT_LIST} more"] if len(value) > SHORT_LIST else []
            return [excerpt(one, max(NAME_LIMIT, limit) // SHORT_LIST) for one in value[:SHORT_LIST]] + more
        return value

    return {key: short(value) for key, value in record.items()}


def _now() -> str:
    return datetime.now(tz=timezone.utc).isoformat()


class _Totals:
    """Sums over all events since the start of the main process."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {
            "starts": 0,
            "restarts": dict.fromkeys(RESTART_REASONS, 0),
            "exits": {},
            "oom_kills": 0,
            "recycles": {},
            "hangs": {},
            "start_seconds": _histogram(),
            "rollout_seconds": _histogram(),
        }

    def count(self, event: events.Event) -> bool:
        """Count an event; return whether it changes a total."""
        values = self.values
        match event:
            case events.ProcessStarted(reason=reason):
                values["starts"] += 1
                if reason in RESTART_REASONS:
                    values["restarts"][reason] += 1
            case events.ProcessExited(exit_code=code, signal=name, oom=oom):
                values["oom_kills"] += oom
                status = name or ("unknown" if code is None else str(code))
                values["exits"][status] = values["exits"].get(status, 0) + 1
            case events.Recycled(cause=cause):
                values["recycles"][cause] = values["recycles"].get(cause, 0) + 1
            case events.HangDetected(cause=cause):
                values["hangs"][cause] = values["hangs"].get(cause, 0) + 1
            case events.ProcessReady(server=True, seconds=seconds):
                _observe(values["start_seconds"], seconds)
            case events.OperationEnded(kind="restart" | "reload", outcome="done", seconds=seconds):
                _observe(values["rollout_seconds"], seconds)
            case _:
                return False
        return True


def _histogram() -> dict[str, Any]:
    return {"bounds": [*BOUNDS], "counts": [0] * (len(BOUNDS) + 1), "sum": 0.0}


def _observe(histogram: dict[str, Any], value: float) -> None:
    histogram["counts"][bisect_left(BOUNDS, value)] += 1
    histogram["sum"] += value
