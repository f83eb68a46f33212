"""Draws one frame of ``top``, by ``rich``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.console import Console, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from worker.cli.inspect import events
from worker.cli.inspect.table import TOP, workers_table
from worker.cli.inspect.text import UNKNOWN, duration, one_line, parse_time, short_number, size
from worker.cli.inspect.view import HELP, View
from worker.cli.inspect.workers import Status, totals

__all__ = ["Frame", "lines"]

KEYS = "q quit  ? help  n p u s r f l c m sort  i invert  R restart  Z roll  + - scale"
# The lines of the header, of the heading of the table and of the foot.
FIXED = 2 + 1 + 1
# The events that are shown, if the workers leave room for them.
EVENTS = 6
BAR = 20


class Frame(NamedTuple):
    """Everything that one frame shows.

    Attributes:
        status: The last status.
        view: Sorting, selection, questions.
        events: The last events, the oldest first.
        message: The result of the last action.
        error: The reason why there is no connection; empty while there is one.
    """

    status: Status
    view: View
    events: Sequence[events.Event] = ()
    message: str = ""
    error: str = ""


def lines(console: Console, frame: Frame, width: int, height: int) -> list[str]:
    """Return the lines of a frame, with their colours.

    Args:
        console (Console): Knows the colours of the terminal.
        frame (Frame): The frame.
        width (int): The columns of the terminal.
        height (int): The lines of the terminal.
    """
    running = frame.status["operations"][: max(0, height - FIXED - 1)]
    parts: list[RenderableType] = [*_header(frame), *map(_operation, running)]
    room = max(1, height - FIXED - len(running))
    if frame.view.helps:
        parts += [Text(f"  {keys:<16}{meaning}") for keys, meaning in HELP]
    else:
        shown = min(len(frame.view.rows), max(1, room - min(EVENTS, len(frame.events)), room // 2))
        parts.append(_workers(frame.view, shown, width))
        last = frame.events[max(0, len(frame.events) - (room - shown)) :]
        parts += [Text(events.short_line(one), events.style(one)) for one in last]
    drawn: list[str] = []
    for part in parts:
        drawn += _rendered(console, part, width)
    drawn = drawn[: max(0, height - 1)]
    drawn += [""] * (height - 1 - len(drawn))
    return [*drawn, *_rendered(console, _foot(frame), width)[:1]]


def _rendered(console: Console, part: RenderableType, width: int) -> list[str]:
    options = console.options.update(width=width, no_wrap=True, overflow="ellipsis", highlight=False)
    with console.capture() as captured:
        for line in console.render_lines(part, options, pad=False):
            console.print(*_texts(line), sep="", end="\n", no_wrap=True, overflow="ignore", crop=False)
    return captured.get().splitlines()


def _texts(line: Sequence[Any]) -> list[Text]:
    return [Text(segment.text, segment.style or "", end="") for segment in line] or [Text("")]


def _header(frame: Frame) -> list[Text]:
    server, sums = frame.status["server"], totals(frame.view.rows)
    time = parse_time(frame.status["time"]).strftime("%H:%M:%S")
    title = Text(f"{one_line(server['app'])} [{server['pid']}]", "bold")
    title.append(
        f"  up {duration(server['uptime'])}  sanic-worker {one_line(server['version'])} "
        f"({one_line(server['core'])}), Sanic {one_line(server['sanic'])}  {time}",
        "default not bold",
    )
    ready, wanted = server["workers_ready"], server["workers_wanted"]
    facts = Text("workers ")
    facts.append(f"{ready}/{wanted} ready", "green" if ready == wanted else "bold yellow")
    cpu = UNKNOWN if sums.cpu is None else f"{sums.cpu * 100:.0f} %"
    in_flight = UNKNOWN if sums.in_flight is None else f"{sums.in_flight:.0f}"
    backlog = UNKNOWN if server["backlog"] is None else server["backlog"]
    facts.append(
        f"  req/s {short_number(sums.rate)}  in flight {in_flight}  cpu {cpu}  rss {size(sums.memory)}  "
        f"restarts {server['restarts']}  backlog {backlog}  "
        f"state {size(server['state_bytes'])} of {size(server['state_max_bytes'])}"
    )
    return [title, facts]


def _operation(operation: dict[str, Any]) -> Table:
    grid = Table.grid(padding=(0, 1, 0, 0))
    total, done = operation["total"] or 0, operation["done"] or 0
    bar = ProgressBar(total or 1, done, width=BAR, complete_style="cyan", finished_style="cyan")
    said = one_line(operation["text"] or operation["status"])
    name = f"{one_line(operation['kind'])} {one_line(operation['id'])}"
    grid.add_row(Text(name), bar, Text(f"{said}, by {one_line(operation['by'])}"))
    return grid


def _workers(view: View, shown: int, width: int) -> Table:
    # The selected row is in the middle, unless the table begins or ends there.
    start = max(0, min(view.index - shown // 2, len(view.rows) - shown))
    rows = view.rows[start : start + shown]
    return workers_table(TOP, rows, width, selected=view.selected, sort=view.sort)


def _foot(frame: Frame) -> Text:
    if frame.view.question:
        return Text(f"{frame.view.question.text}? y: yes, any other key: no", "bold yellow")
    if frame.error:
        return Text(f"Trying again. {one_line(frame.error)}", "bold red")
    return Text(one_line(frame.message) or KEYS, "" if frame.message else "dim")
