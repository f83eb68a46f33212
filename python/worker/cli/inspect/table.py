"""Tables of workers and operations, made by ``rich``; output as JSON does without this module."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from worker.cli.inspect.text import UNKNOWN, duration, one_line, parse_time, short_number, size
from worker.cli.inspect.workers import Row

__all__ = ["PS", "TOP", "Column", "console", "operations_table", "workers_table"]

# The output goes into a file or a pipe: no line is cut.
UNLIMITED = 1000
GAP = 2
# The narrowest column of notes.
NOTE = 12

PHASES = {
    "ready": "green",
    "starting": "cyan",
    "replacing": "cyan",
    "draining": "yellow",
    "backoff": "yellow",
    "stopping": "yellow",
    "failed": "bold red",
    "stopped": "dim",
}
STATUSES = {"done": "green", "failed": "bold red", "running": "cyan"}


class Column(NamedTuple):
    """One column of the table of workers.

    Attributes:
        title: The heading.
        text: Makes the text of a cell.
        attribute: The attribute of a row that it shows.
        is_text: Whether it is text, and stands to the left.
        rank: A table that is too wide loses the column of the highest rank first; one of rank 0 stays.
    """

    title: str
    text: Callable[[Row], str]
    attribute: str
    is_text: bool = False
    rank: int = 0


def _percent(share: float | None) -> str:
    return UNKNOWN if share is None else f"{share * 100:.0f}"


def _count(value: int | None) -> str:
    return UNKNOWN if value is None else str(value)


NAME = Column("NAME", lambda row: row.name, "name", is_text=True)
PHASE = Column("PHASE", lambda row: row.phase, "phase", is_text=True)
PID = Column("PID", lambda row: _count(row.pid), "pid", rank=4)
UPTIME = Column("UPTIME", lambda row: duration(row.uptime), "uptime", rank=5)
RESTARTS = Column("RESTARTS", lambda row: _count(row.restarts), "restarts", rank=3)
REQUESTS = Column("REQUESTS", lambda row: _count(row.requests), "requests", rank=2)
RATE = Column("REQ/S", lambda row: short_number(row.rate), "rate")
IN_FLIGHT = Column("IN FLIGHT", lambda row: _count(row.in_flight), "in_flight", rank=2)
CONNECTIONS = Column("CONNS", lambda row: _count(row.connections), "connections", rank=7)
LAG = Column("LAG", lambda row: duration(row.lag), "lag", rank=2)
CPU_TIME = Column("CPU TIME", lambda row: duration(row.cpu_seconds), "cpu_seconds", rank=6)
CPU = Column("CPU %", lambda row: _percent(row.cpu), "cpu", rank=1)
MEMORY = Column("RSS", lambda row: size(row.memory), "memory", rank=1)

PS = (NAME, PHASE, PID, UPTIME, RESTARTS, REQUESTS, IN_FLIGHT, CONNECTIONS, LAG, CPU_TIME, MEMORY)
TOP = (NAME, PHASE, PID, UPTIME, RESTARTS, RATE, IN_FLIGHT, CONNECTIONS, LAG, CPU, MEMORY)


def console() -> Console:
    """Return the console of stdout; a line is as wide as the terminal, and in a file as long as it is."""
    return Console(width=None if sys.stdout.isatty() else UNLIMITED, highlight=False)


def workers_table(
    columns: Sequence[Column], rows: Sequence[Row], width: int, *, selected: str = "", sort: str = ""
) -> Table:
    """Return the table of workers.

    Args:
        columns (Sequence[Column]): The columns; some are left out if the table is too wide.
        rows (Sequence[Row]): The workers, in order.
        width (int): The width of the terminal.
        selected (str): The name of the worker that is shown as selected.
        sort (str): The attribute by which the rows are sorted; its heading is underlined.
    """
    table = _plain_table(expand=bool(selected))
    kept = _fitting(columns, rows, width)
    for column in kept:
        title = Text(column.title, "underline" if column.attribute == sort else "")
        table.add_column(title, justify="left" if column.is_text else "right", no_wrap=True)
    table.add_column("NOTE", overflow="ellipsis", ratio=1 if selected else None)
    for row in rows:
        cells = [Text(column.text(row), _style(column, row)) for column in kept]
        cells.append(Text(row.note, no_wrap=bool(selected), overflow="ellipsis"))
        table.add_row(*cells, style="reverse" if row.name == selected else "")
    return table


def operations_table(operations: Sequence[dict[str, Any]]) -> Table:
    """Return the table of operations."""
    table = _plain_table()
    for title in ("ID", "KIND", "STATUS", "REQUESTED", "TOOK", "BY", "TEXT"):
        table.add_column(title, no_wrap=title != "TEXT", justify="right" if title == "TOOK" else "left")
    for one in operations:
        status = one_line(one["status"])
        said = "; ".join(one_line(part) for part in (one["text"], one["reason"]) if part)
        cells = (
            one_line(one["id"]),
            one_line(one["kind"]),
            status,
            parse_time(one["requested_at"]).strftime("%Y-%m-%d %H:%M:%S"),
            duration(one["seconds"]),
            one_line(one["by"]),
            said,
        )
        table.add_row(*(Text(cell, STATUSES.get(status, "") if cell is status else "") for cell in cells))
    return table


def _plain_table(*, expand: bool = False) -> Table:
    return Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="bold", expand=expand)


def _style(column: Column, row: Row) -> str:
    return PHASES.get(row.phase, "") if column is PHASE else ""


def _fitting(columns: Sequence[Column], rows: Sequence[Row], width: int) -> list[Column]:
    kept = list(columns)
    while _width(kept, rows) > width:
        last = max(kept, key=lambda column: column.rank)
        if not last.rank:
            break
        kept.remove(last)
    return kept


def _width(columns: Sequence[Column], rows: Sequence[Row]) -> int:
    widths = (max([len(column.title), *(len(column.text(row)) for row in rows)]) for column in columns)
    note = NOTE if any(row.note for row in rows) else len("NOTE")
    return sum(width + GAP for width in widths) + note
