"""Tables of workers and operations, made by ``rich``; output as JSON does without this module."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rich.cells import cell_len
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from worker.cli.inspect.text import UNKNOWN, duration, one_line, parse_time, short_number, size
from worker.cli.inspect.workers import Row

__all__ = ["PS", "TOP", "Column", "console", "operations_table", "ps", "workers_table"]

# The output goes into a file or a pipe: no line is cut.
UNLIMITED = 1000
GAP = 2
# The narrowest column of notes, and that of the texts of operations, whose lines are broken.
NOTE = 12
TEXT = 16

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
    """One column of a table.

    Attributes:
        title: The heading.
        text: Makes the text of a cell.
        attribute: The attribute of a row, or the key of an operation, that it shows.
        is_text: Whether it is text, and stands to the left.
        rank: A table that is too wide loses the column of the highest rank first; one of rank 0 stays.
    """

    title: str
    text: Callable[[Any], str]
    attribute: str
    is_text: bool = False
    rank: int = 0


def _percent(share: float | None) -> str:
    return UNKNOWN if share is None else f"{share * 100:.0f}"


def _date(text: str) -> str:
    return parse_time(text).strftime("%Y-%m-%d %H:%M:%S")


def _count(value: int | None) -> str:
    return UNKNOWN if value is None else str(value)


NAME = Column("NAME", lambda row: row.name, "name", is_text=True)
PHASE = Column("PHASE", lambda row: row.phase, "phase", is_text=True)
PID = Column("PID", lambda row: _count(row.pid), "pid", rank=1)
UPTIME = Column("UPTIME", lambda row: duration(row.uptime), "uptime", rank=4)
RESTARTS = Column("RESTARTS", lambda row: _count(row.restarts), "restarts", rank=3)
REQUESTS = Column("REQUESTS", lambda row: _count(row.requests), "requests", rank=2)
RATE = Column("REQ/S", lambda row: short_number(row.rate), "rate")
IN_FLIGHT = Column("IN FLIGHT", lambda row: _count(row.in_flight), "in_flight", rank=5)
CONNECTIONS = Column("CONNS", lambda row: _count(row.connections), "connections", rank=7)
LAG = Column("LAG", lambda row: duration(row.lag), "lag", rank=2)
CPU_TIME = Column("CPU TIME", lambda row: duration(row.cpu_seconds), "cpu_seconds", rank=6)
CPU = Column("CPU %", lambda row: _percent(row.cpu), "cpu", rank=1)
MEMORY = Column("RSS", lambda row: size(row.memory), "memory", rank=1)

PS = (NAME, PHASE, PID, UPTIME, RESTARTS, REQUESTS, IN_FLIGHT, CONNECTIONS, LAG, CPU_TIME, MEMORY)
TOP = (NAME, PHASE, PID, UPTIME, RESTARTS, RATE, IN_FLIGHT, CONNECTIONS, LAG, CPU, MEMORY)


STATUS = Column("STATUS", lambda one: one_line(one["status"]), "status", is_text=True)
OPERATIONS = (
    Column("ID", lambda one: one_line(one["id"]), "id", is_text=True),
    Column("KIND", lambda one: one_line(one["kind"]), "kind", is_text=True, rank=1),
    STATUS,
    Column("REQUESTED", lambda one: _date(one["requested_at"]), "requested_at", is_text=True, rank=3),
    Column("TOOK", lambda one: duration(one["seconds"]), "seconds", rank=2),
    Column("BY", lambda one: one_line(one["by"]), "by", is_text=True, rank=4),
)


def console() -> Console:
    """Return the console of stdout; a line is as wide as the terminal, and in a file as long as it is."""
    return Console(width=None if sys.stdout.isatty() else UNLIMITED, highlight=False)


def ps(rows: Sequence[Row], width: int) -> Group:
    """Return the table of workers, with the notes below it if they do not fit into it."""
    noted = [row for row in rows if row.note]
    longest = max((cell_len(row.note) for row in noted), default=0)
    if _width(PS, rows) + longest <= width:
        return Group(workers_table(PS, rows, width))
    notes = (Text(f"{row.name}: {row.note}") for row in noted)
    return Group(workers_table(PS, rows, width, has_notes=False), *notes)


def workers_table(
    columns: Sequence[Column],
    rows: Sequence[Row],
    width: int,
    *,
    selected: str = "",
    sort: str = "",
    has_notes: bool = True,
) -> Table:
    """Return the table of workers.

    Args:
        columns (Sequence[Column]): The columns; some are left out if the table is too wide.
        rows (Sequence[Row]): The workers, in order.
        width (int): The width of the terminal.
        selected (str): The name of the worker that is shown as selected.
        sort (str): The attribute by which the rows are sorted; its heading is underlined.
        has_notes (bool): Whether it has the column of the notes.
    """
    table = _plain_table(expand=bool(selected))
    note = NOTE if any(row.note for row in rows) else len("NOTE")
    kept = _fitting(columns, rows, width - note if has_notes else width)
    for column in kept:
        title = Text(column.title, "underline" if column.attribute == sort else "")
        table.add_column(title, justify="left" if column.is_text else "right", no_wrap=True)
    if has_notes:
        table.add_column("NOTE", overflow="ellipsis", ratio=1 if selected else None)
    for row in rows:
        cells = [Text(column.text(row), _style(column, row)) for column in kept]
        if has_notes:
            cells.append(Text(row.note, no_wrap=bool(selected), overflow="ellipsis"))
        table.add_row(*cells, style="reverse" if row.name == selected else "")
    return table


def operations_table(operations: Sequence[dict[str, Any]], width: int) -> Table:
    """Return the table of operations.

    Args:
        operations (Sequence[dict[str, Any]]): The operations, in order.
        width (int): The width of the terminal; some columns are left out if the table is too wide.
    """
    table = _plain_table()
    kept = _fitting(OPERATIONS, operations, width - TEXT)
    for column in kept:
        table.add_column(column.title, justify="left" if column.is_text else "right", no_wrap=True)
    table.add_column("TEXT")
    for one in operations:
        said = "; ".join(one_line(part) for part in (one["text"], one["reason"]) if part)
        style = STATUSES.get(one["status"], "")
        cells = [Text(column.text(one), style if column is STATUS else "") for column in kept]
        table.add_row(*cells, Text(said))
    return table


def _plain_table(*, expand: bool = False) -> Table:
    return Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="bold", expand=expand)


def _style(column: Column, row: Row) -> str:
    return PHASES.get(row.phase, "") if column is PHASE else ""


def _fitting(columns: Sequence[Column], rows: Sequence[Any], width: int) -> list[Column]:
    kept = list(columns)
    while _width(kept, rows) > width:
        last = max(kept, key=lambda column: column.rank)
        if not last.rank:
            break
        kept.remove(last)
    return kept


def _width(columns: Sequence[Column], rows: Sequence[Any]) -> int:
    widths = (
        max(cell_len(text) for text in (column.title, *map(column.text, rows))) + GAP for column in columns
    )
    return sum(widths)
