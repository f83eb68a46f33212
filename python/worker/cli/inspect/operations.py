"""Waits for the end of an operation, with a progress bar in a terminal, and says how it ended."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from threading import Event
from time import monotonic
from typing import Any
from urllib.parse import quote

from worker.cli.inspect.client import Client
from worker.cli.inspect.exits import CommandError, ExitCode
from worker.cli.inspect.text import duration, one_line

__all__ = ["ENDED", "exit_code", "has_ended", "outcome", "path_of", "wait"]

ENDED = ("done", "failed")
# The time that the server holds one request, in seconds: that of one step of the bar.
STEP = 0.5
# An inspector that exits is started again within this time, in seconds.
RECONNECT = 10.0
# The time that the last answer may take after the end of the wait, in seconds.
GRACE = 1.0
PAUSE = 0.2

Operation = dict[str, Any]


def path_of(operation_id: str) -> str:
    """Return the path of an operation."""
    return f"/operations/{quote(operation_id, safe='')}"


def has_ended(operation: Operation) -> bool:
    """Return whether an operation is over."""
    return operation.get("status") in ENDED


def outcome(operation: Operation) -> str:
    """Return the state of an operation in one line: ``Restart 3f2a9c01d4e8 done in 1.2 s: …``."""
    kind, status = str(operation.get("kind", "operation")).capitalize(), operation.get("status")
    seconds = operation.get("seconds")
    took = f" in {duration(seconds)}" if seconds is not None else ""
    parts = [f"{kind} {operation.get('id')} {status}{took}"]
    parts += [str(part) for part in (operation.get("text"), operation.get("reason")) if part]
    if rolled_back := operation.get("rolled_back"):
        parts.append(f"kept the previous process of {', '.join(map(str, rolled_back))}")
    return one_line(": ".join(parts[:2]) + "".join(f"; {part}" for part in parts[2:]))


def exit_code(operation: Operation) -> ExitCode:
    """Return the exit code for the state of an operation."""
    if not has_ended(operation):
        return ExitCode.STILL_RUNNING
    return ExitCode.FAILED if operation["status"] == "failed" else ExitCode.DONE


def wait(client: Client, operation_id: str, deadline: float | None, *, shows: bool) -> Operation:
    """Wait until an operation has ended; return its last state.

    Args:
        client (Client): Sends the requests.
        operation_id (str): The operation.
        deadline (float | None): The end of the wait, in seconds of the monotonic clock; ``None`` for no
            limit.
        shows (bool): Show a progress bar on stderr, if that is a terminal.

    Raises:
        CommandError: The operation is unknown, or the inspector has not answered for 10 s.
    """
    with _progress(shows) as show:
        while True:
            left = inf if deadline is None else max(0.0, deadline - monotonic())
            path = f"{path_of(operation_id)}?wait={min(STEP, left):.3f}"
            operation: Operation = _ask(client, path, left)
            show(operation)
            if has_ended(operation) or left == 0.0:
                return operation


def _ask(client: Client, path: str, left: float) -> Any:
    """Send a request, and again while the inspector is being started anew."""
    deadline = monotonic() + min(RECONNECT, left)
    pause = Event()
    while True:
        try:
            return client.get(path, min(STEP + RECONNECT, left + GRACE))
        except CommandError as error:
            if error.code is not ExitCode.UNREACHABLE or monotonic() > deadline:
                raise
        pause.wait(PAUSE)


@contextmanager
def _progress(shows: bool) -> Iterator[Callable[[Operation], None]]:
    if not shows or not sys.stderr.isatty():
        yield lambda operation: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)

        def show(operation: Operation) -> None:
            text = one_line(operation.get("text") or operation.get("status"))
            total = operation.get("total") or None
            done = operation.get("done") or 0
            progress.update(task, description=text, total=total, completed=done, refresh=True)

        yield show
