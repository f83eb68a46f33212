"""The workers of a status as rows, with the rates that follow from two statuses."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from worker.cli.inspect.text import one_line, parse_time

__all__ = ["SORT_KEYS", "Row", "Totals", "rows", "sorted_rows", "totals"]

Status = dict[str, Any]


class Row(NamedTuple):
    """One worker. An unknown value is ``None``.

    Attributes:
        name: The name of the slot.
        is_server: Whether it serves requests.
        phase: The phase of the slot.
        pid: The process.
        uptime: The age of the process, in seconds.
        restarts: The number of times that it was restarted.
        requests: The number of requests that the process has answered.
        rate: The requests a second, since the previous status.
        in_flight: The requests in flight.
        connections: The open connections.
        lag: The 99th percentile of the lag of its event loop over the last minute, in seconds.
        cpu_seconds: The CPU time of the process.
        cpu: The share of one CPU, since the previous status; 1.0 is a whole one.
        memory: The resident memory, in bytes.
        note: The reason of the phase, or the time until the next start.
    """

    name: str
    is_server: bool
    phase: str
    pid: int | None
    uptime: float | None
    restarts: int | None
    requests: int | None
    rate: float | None
    in_flight: int | None
    connections: int | None
    lag: float | None
    cpu_seconds: float | None
    cpu: float | None
    memory: int | None
    note: str


class Totals(NamedTuple):
    """Sums over all workers; ``None`` where no value is known."""

    rate: float | None
    in_flight: float | None
    cpu: float | None
    memory: float | None


# The keys by which workers are sorted, each with the attribute of a row.
SORT_KEYS = {
    "n": "name",
    "p": "phase",
    "u": "uptime",
    "s": "restarts",
    "r": "rate",
    "f": "in_flight",
    "l": "lag",
    "c": "cpu",
    "m": "memory",
}
ASCENDING = ("name", "phase")


def rows(status: Status, previous: Status | None = None) -> list[Row]:
    """Return the workers of a status.

    Args:
        status (Status): The status.
        previous (Status | None): An earlier one, for the rates. Those of a process that has started since are
            unknown.
    """
    before, seconds = {}, 0.0
    if previous:
        before = {worker["name"]: worker for worker in previous["workers"]}
        seconds = (parse_time(status["time"]) - parse_time(previous["time"])).total_seconds()
    found = []
    for worker in status["workers"]:
        earlier = before.get(worker["name"], {})
        same = earlier if seconds > 0 and earlier.get("pid") == worker["pid"] else {}
        found.append(
            Row(
                name=one_line(worker["name"]),
                is_server=bool(worker["server"]),
                phase=one_line(worker["phase"] or worker["state"] or ""),
                pid=worker["pid"],
                uptime=worker["uptime"],
                restarts=worker["restarts"],
                requests=worker["requests"],
                rate=_rate(worker, same, "requests", seconds),
                in_flight=worker["in_flight"],
                connections=worker["connections"],
                lag=worker["loop_lag_p99"],
                cpu_seconds=worker["cpu_seconds"],
                cpu=_rate(worker, same, "cpu_seconds", seconds),
                memory=worker["rss_bytes"],
                note=_note(worker),
            )
        )
    return found


def _rate(worker: Status, earlier: Status, key: str, seconds: float) -> float | None:
    now, then = worker[key], earlier.get(key)
    return None if now is None or then is None else max(0.0, (now - then) / seconds)


def _note(worker: Status) -> str:
    # The name of the worker stands in its own column.
    why = re.sub(rf"^{re.escape(worker['name'])} \[\d+\] ", "", one_line(worker["why"] or ""))
    wait = worker["next_restart_in"]
    return f"next start in {wait:.1f} s; {why}".removesuffix("; ") if wait is not None else why


def sorted_rows(found: list[Row], attribute: str, *, inverted: bool = False) -> list[Row]:
    """Return rows in the order of an attribute, unknown values last.

    Numbers descend and text ascends, ``inverted`` the other way round. Rows of equal value stay in order. By
    name, servers come before other workers.
    """
    known = [row for row in found if getattr(row, attribute) is not None]
    unknown = [row for row in found if getattr(row, attribute) is None]
    descends = (attribute not in ASCENDING) != inverted

    def key(row: Row) -> Any:
        rank = _rank(getattr(row, attribute))
        return (not row.is_server, rank) if attribute == "name" else rank

    return [*sorted(known, key=key, reverse=descends), *unknown]


def _rank(value: Any) -> Any:
    """Return the key of a value: a number within text counts as one, so Sanic-Server-2-0 is before 10-0."""
    if not isinstance(value, str):
        return value
    return [(len(part), part) if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", value)]


def totals(found: list[Row]) -> Totals:
    """Return the sums over all workers."""
    return Totals(*(_sum(found, attribute) for attribute in Totals._fields))


def _sum(found: list[Row], attribute: str) -> float | None:
    values = [value for row in found if (value := getattr(row, attribute)) is not None]
    return sum(values) if values else None
