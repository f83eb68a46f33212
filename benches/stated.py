"""The state of the processes at work: ``stated.py CONTENDER WHAT ENTRIES AMOUNT`` prints JSON.

A program of its own, since a process has one core for good, which ``WORKER_CORE`` chooses. What is measured
is what an application does: ``app.m.state`` and ``app.m.workers`` are the ``WorkerState`` that is used here.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib import import_module
from multiprocessing import Pipe, get_context
from multiprocessing.managers import SyncManager
from statistics import median
from time import perf_counter
from typing import Any

CONTEXT = get_context("fork")
OWN, SHARED = "Sanic-Server-0-0", "Sanic-Server-1-0"
# Reads or writes that are timed together, as one takes not much longer than to look at the clock.
BATCH = 100
# Processes that read at once.
READERS = 4
NOW = datetime.now(tz=timezone.utc)
VALUES: dict[str, Callable[[int], Any]] = {
    "a str": lambda number: f"value {number}",
    "an int": lambda number: number,
    "a bool": lambda number: number % 2 == 0,
    "a datetime": lambda number: NOW.replace(microsecond=number),
}

Found = dict[str, float]
"""Row to figure."""


@contextmanager
def state_of(contender: str) -> Iterator[tuple[Any, Any]]:
    """The state that the contender shares, and its ``WorkerState``."""
    if contender == "stock":
        with SyncManager(ctx=CONTEXT) as server:
            yield server.dict(), import_module("sanic.worker.state").WorkerState
    else:
        manager = import_module("worker.integration").StateManager()
        yield manager.dict(), import_module("worker.state").WorkerState
        manager.shutdown()


def fill(state: Any, entries: int) -> None:
    """As many entries as there are processes, of 8 keys each."""
    for number in range(entries):
        state[f"Sanic-Server-{number}-0"] = {
            "server": True,
            "state": "ACKED",
            "start_at": NOW,
            "starts": 1,
            "serving": True,
            "restart_at": NOW,
            "mine": 1.5,
            "more": "text",
        }


def timed(times: int, act: Callable[[int], Any], before: Callable[[int], Any] | None = None) -> float:
    """The median of so many, in µs; what comes ``before`` each of them is not timed."""
    samples = []
    for number in range(times):
        if before is not None:
            before(number)
        began = perf_counter()
        act(number)
        samples.append(perf_counter() - began)
    return median(samples) * 1e6


def batch(act: Callable[[int], Any]) -> Callable[[int], Any]:
    """The same many times over."""

    def acts(number: int) -> None:
        for one in range(number * BATCH, (number + 1) * BATCH):
            act(one)

    return acts


def read(own: Any, amount: int) -> Found:
    """One key of the own entry."""
    unchanged = timed(amount // BATCH, batch(lambda _: own["mine"])) / BATCH
    changed = timed(amount, lambda _: own["mine"], lambda number: own.update({"mine": number}))
    return {"unchanged": unchanged, "changed in between": changed}


def write(own: Any, amount: int) -> Found:
    """One key of the own entry."""

    def one(value: Callable[[int], Any]) -> float:
        return timed(amount // BATCH, batch(lambda number: own.update({"mine": value(number)}))) / BATCH

    return {name: one(value) for name, value in VALUES.items()}


def everything(own: Any, amount: int) -> Found:
    """All entries, of which one has changed."""
    return {"": timed(amount, lambda _: own.full(), lambda number: own.update({"mine": number}))}


def together(reads: Callable[[int], Found], processes: int) -> Found:
    """The same in several processes at once; the median of their figures."""
    ends = []
    for number in range(processes):
        hearing, telling = Pipe(False)
        CONTEXT.Process(target=lambda end=telling, one=number: end.send(reads(one)), daemon=True).start()
        # So that one which fails is not waited for.
        telling.close()
        ends.append(hearing)
    found = [end.recv() for end in ends]
    return {row: median(one[row] for one in found) for row in found[0]}


def beat(state: Any, amount: int) -> Found:
    """A sign of life."""
    return {"": timed(amount // BATCH, batch(lambda _: state.beat(1))) / BATCH}


def lost(state: Any, kind: Any, amount: int) -> Found:
    """How many of their own writes two processes do not find again, in percent."""

    def write(key: str) -> Found:
        own = kind(state, SHARED)
        missing = 0
        for number in range(amount):
            own.update({key: number})
            missing += own.get(key) != number
        return {"": 100 * missing / amount}

    return together(lambda number: write(f"key {number}"), 2)


def main() -> None:
    """Make the state, measure, print the result."""
    contender, what, entries, amount = sys.argv[1:]
    with state_of(contender) as (state, kind):
        fill(state, int(entries))
        own, count = kind(state, OWN), int(amount)
        acts: dict[str, Callable[[], Found]] = {
            "read": lambda: read(own, count),
            "write": lambda: write(own, count),
            "all": lambda: everything(own, count),
            "all-at-once": lambda: together(
                lambda number: everything(kind(state, f"Sanic-Server-{number}-0"), count), READERS
            ),
            "lost": lambda: lost(state, kind, count),
            "beat": lambda: beat(state, count),
        }
        print(json.dumps(acts[what]()))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
    os._exit(0)
