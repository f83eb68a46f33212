"""Measure the shared state at work: ``stated.py CONTENDER WHAT ENTRIES AMOUNT`` prints JSON.

This is a program of its own because a process has one core for good, which ``WORKER_CORE`` chooses. It
measures an application's view: ``app.m.state`` and ``app.m.workers`` are the ``WorkerState`` that is used
here.
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
# Reads or writes that are timed together, because one takes not much longer than reading the clock.
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
    """Return the state that the contender shares, and its ``WorkerState``."""
    if contender == "stock":
        with SyncManager(ctx=CONTEXT) as server:
            yield server.dict(), import_module("sanic.worker.state").WorkerState
    else:
        manager = import_module("worker.integration").StateManager()
        yield manager.dict(), import_module("worker.state").WorkerState
        manager.shutdown()


def fill(state: Any, entries: int) -> None:
    """Make as many entries as there are processes, of 8 keys each."""
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
    """Return the median of this many calls, in µs; a call of ``before`` ahead of each is not timed."""
    samples = []
    for number in range(times):
        if before is not None:
            before(number)
        began = perf_counter()
        act(number)
        samples.append(perf_counter() - began)
    return median(samples) * 1e6


def batch(act: Callable[[int], Any]) -> Callable[[int], Any]:
    """Repeat the call this often."""

    def acts(number: int) -> None:
        for one in range(number * BATCH, (number + 1) * BATCH):
            act(one)

    return acts


def read(own: Any, amount: int) -> Found:
    """Read one key of the own entry."""
    unchanged = timed(amount // BATCH, batch(lambda _: own["mine"])) / BATCH
    changed = timed(amount, lambda _: own["mine"], lambda number: own.update({"mine": number}))
    return {"unchanged": unchanged, "changed in between": changed}


def write(own: Any, amount: int) -> Found:
    """Write one key of the own entry."""

    def one(value: Callable[[int], Any]) -> float:
        return timed(amount // BATCH, batch(lambda number: own.update({"mine": value(number)}))) / BATCH

    return {name: one(value) for name, value in VALUES.items()}


def everything(own: Any, amount: int) -> Found:
    """Read all entries, one of which has changed."""
    return {"": timed(amount, lambda _: own.full(), lambda number: own.update({"mine": number}))}


def together(reads: Callable[[int], Found], processes: int) -> Found:
    """Read them in several processes at once; return the median of their figures."""
    ends = []
    for number in range(processes):
        hearing, telling = Pipe(False)
        CONTEXT.Process(target=lambda end=telling, one=number: end.send(reads(one)), daemon=True).start()
        # A process that fails must not block the others.
        telling.close()
        ends.append(hearing)
    found = [end.recv() for end in ends]
    return {row: median(one[row] for one in found) for row in found[0]}


def beat(state: Any, amount: int) -> Found:
    """Measure a heartbeat."""
    return {"": timed(amount // BATCH, batch(lambda _: state.beat(1))) / BATCH}


def lost(state: Any, kind: Any, amount: int) -> Found:
    """Return the percentage of their own writes that two processes do not find again."""

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
