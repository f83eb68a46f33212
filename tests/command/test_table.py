"""The tables of workers and operations, at the widths of terminals."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console, RenderableType
from support.fake_inspector import operation, status, worker

from worker.cli.inspect.table import operations_table, ps
from worker.cli.inspect.workers import rows

UNLIMITED = 1000
WHY = "exited with code 1 after 3.2 s: ModuleNotFoundError: No module named 'shop.models'"


def lines(shown: RenderableType, width: int) -> list[str]:
    console = Console(width=width, highlight=False)
    with console.capture() as captured:
        console.print(shown)
    found = captured.get().splitlines()
    return [line.rstrip() for line in found]


@pytest.mark.parametrize(
    ("width", "heading"),
    [
        (UNLIMITED, "ID KIND STATUS REQUESTED TOOK BY TEXT"),
        (80, "ID KIND STATUS REQUESTED TOOK TEXT"),
        (60, "ID KIND STATUS TOOK TEXT"),
        (40, "ID STATUS TEXT"),
    ],
)
def test_operations_keep_their_id_state_and_text(width: int, heading: str) -> None:
    found = [operation("failed", reason="SyntaxError: invalid syntax"), operation("done")]
    title, *shown = lines(operations_table(found, width), width)
    assert title.split() == heading.split()
    text = " ".join(" ".join(shown).split())
    assert text.count("3f2a9c01d4e8") == 2
    assert "failed" in text
    assert "SyntaxError:" in text


class TestPs:
    @pytest.mark.parametrize(
        ("width", "heading"),
        [
            (UNLIMITED, "NAME PHASE PID UPTIME RESTARTS REQUESTS IN FLIGHT CONNS LAG CPU TIME RSS"),
            (80, "NAME PHASE PID UPTIME RESTARTS REQUESTS LAG RSS"),
            (60, "NAME PHASE PID REQUESTS LAG RSS"),
        ],
    )
    @pytest.mark.parametrize("why", [None, WHY])
    def test_a_note_costs_no_column(self, width: int, heading: str, why: Any) -> None:
        found = rows(status(worker(), worker("Sanic-Server-1-0", why=why)))
        title = lines(ps(found, width), width)[0]
        assert title.removesuffix("NOTE").split() == heading.split()

    def test_notes_that_do_not_fit_stand_below(self) -> None:
        failing = worker("Sanic-Server-1-0", phase="backoff", why=WHY, next_restart_in=2.5)
        shown = lines(ps(rows(status(worker(), failing)), 80), 80)
        assert [line.split()[0] for line in shown[1:3]] == ["Sanic-Server-0-0", "Sanic-Server-1-0"]
        assert " ".join(shown[3:]) == f"Sanic-Server-1-0: next start in 2.5 s; {WHY}"

    def test_wide_characters_have_two_columns(self) -> None:
        name = "\u5de5\u4f5c" * 12
        title, shown = lines(ps(rows(status(worker(name))), 80), 80)
        assert shown.split()[:2] == [name, "ready"]
        assert "REQUESTS" not in title
