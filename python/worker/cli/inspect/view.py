"""The state of ``top``: sorting, selection, questions; and the effect of each key on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from worker.cli.inspect.workers import SORT_KEYS, Row, sorted_rows

__all__ = ["HELP", "Action", "View"]

HELP = (
    ("up, down, k, j", "select a worker; page up, page down, home, end"),
    ("n p u s", "sort by name, phase, uptime, restarts"),
    ("r f l c m", "sort by requests a second, requests in flight, lag, CPU, memory"),
    ("i", "invert the order"),
    ("R", "restart the selected worker"),
    ("Z", "restart all workers with zero downtime, one after the other"),
    ("+ -", "start one more worker, stop one"),
    ("?", "show or hide this help"),
    ("q, Ctrl-C", "quit"),
)
PAGE = 10
MOVES = {"up": -1, "k": -1, "down": 1, "j": 1, "page up": -PAGE, "page down": PAGE}
EDGES = {"home": 0, "end": -1}


class Action(NamedTuple):
    """A request to the inspector.

    Attributes:
        name: The action.
        arguments: The members of the JSON object in its body.
        text: The effect in words; the question before it is made of them.
    """

    name: str
    arguments: dict[str, Any]
    text: str


ADD = Action("scale", {"replicas": "+1"}, "Start one more worker")
REMOVE = Action("scale", {"replicas": "-1"}, "Stop one worker")
ROLL = Action("reload", {"zero_downtime": True}, "Restart all workers with zero downtime")


@dataclass
class View:
    """The state of ``top`` between two frames.

    Attributes:
        sort: The attribute by which the rows are sorted.
        inverted: Whether the order is inverted.
        selected: The name of the selected worker.
        question: The action that waits for a yes.
        helps: Whether the help is shown.
        is_over: Whether the user has quit.
        rows: The workers, in the order in which they are shown.
    """

    sort: str = "name"
    inverted: bool = False
    selected: str = ""
    question: Action | None = None
    helps: bool = False
    is_over: bool = False
    rows: list[Row] = field(default_factory=list)

    def show(self, rows: Sequence[Row]) -> None:
        """Take the rows of a new status; the selection stays on its worker, or on its place."""
        index = self.index
        self.rows = sorted_rows(list(rows), self.sort, inverted=self.inverted)
        if self.selected not in (row.name for row in self.rows):
            self._select(index)

    @property
    def index(self) -> int:
        """The place of the selected worker, from 0 on."""
        return next((index for index, row in enumerate(self.rows) if row.name == self.selected), 0)

    def press(self, key: str) -> Action | None:
        """Take a key; return the action to be sent now, if any."""
        if self.question:
            action, self.question = self.question, None
            return action if key in ("y", "Y") else None
        if key in SORT_KEYS:
            self.sort, self.inverted = SORT_KEYS[key], False
            self.show(self.rows)
        elif key == "i":
            self.inverted = not self.inverted
            self.show(self.rows)
        elif key in MOVES:
            self._select(self.index + MOVES[key])
        elif key in EDGES:
            self._select(EDGES[key] % max(1, len(self.rows)))
        elif key == "R" and self.rows:
            self.question = _restart(self.rows[self.index])
        elif key == "Z":
            self.question = ROLL
        elif key == "-":
            self.question = REMOVE
        elif key == "+":
            return ADD
        elif key in ("?", "h"):
            self.helps = not self.helps
        elif key == "escape":
            self.helps = False
        elif key == "q":
            self.is_over = True
        return None

    def _select(self, index: int) -> None:
        if self.rows:
            self.selected = self.rows[max(0, min(index, len(self.rows) - 1))].name


def _restart(row: Row) -> Action:
    # A process that is no server may not stand a second one of its kind beside it.
    return Action("restart", {"names": [row.name], "zero_downtime": row.is_server}, f"Restart {row.name}")
