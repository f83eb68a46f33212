"""How much is measured, and who takes part."""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

CONTENDERS = ("native", "pure", "stock")
"""Our two cores, and the manager that comes with Sanic."""


class Scale(NamedTuple):
    """How much is measured.

    Attributes:
        rounds: How often all is measured; what counts is the median of the rounds.
        repeats: How often in a round, where that is cheap.
        seconds: How long a flood of messages lasts.
        samples: How many single messages are timed in a round.
        deaths: How many processes are killed in a round.
        trees: Files in the trees that are swept.
        streamed: Bytes that are sent of each size of message.
        changes: How often a key of the state is read, or written.
        idle: How long a manager is watched that has nothing to do, seconds.
        reloads: In how many of the rounds a reloader is measured, which takes its time.
        edits: How often a file is edited in one of these.
        rest: How long a reloader is watched that has nothing to do, seconds.
    """

    rounds: int
    repeats: int
    seconds: float
    samples: int
    deaths: int
    trees: tuple[int, ...]
    streamed: int
    changes: int
    idle: float
    reloads: int
    edits: int
    rest: float


FULL = Scale(5, 30, 2.0, 120, 50, (1_000, 10_000, 100_000), 12_000_000, 20_000, 20.0, 3, 6, 5.0)
QUICK = Scale(2, 10, 0.4, 30, 10, (1_000, 10_000), 4_000_000, 4_000, 2.0, 1, 3, 2.0)


def core(contender: str) -> Any:
    """One of our cores, whatever ``WORKER_CORE`` says."""
    return import_module("worker._core.pure" if contender == "pure" else "worker._native")
