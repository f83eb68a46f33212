"""Define the scale of the benches, and the contenders."""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

CONTENDERS = ("native", "pure", "stock")
"""The two cores, and the manager that comes with Sanic."""


class Scale(NamedTuple):
    """The amounts of a run.

    Attributes:
        rounds: Rounds; the figures are their medians.
        repeats: Repetitions in a round, where that is cheap.
        seconds: The duration of a flood of messages.
        samples: Single messages timed in a round.
        exits: Processes killed in a round.
        trees: Files in the trees that are scanned.
        streamed: Bytes sent of each size of message.
        changes: Reads, or writes, of a key of the state.
        idle: The time for which an idle manager is watched, seconds.
        reloads: The rounds in which a reloader is measured, which is slow.
        edits: Edits of a file in each of these.
        rest: The time for which an idle reloader is watched, seconds.
    """

    rounds: int
    repeats: int
    seconds: float
    samples: int
    exits: int
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
    """Return the core of a contender, regardless of ``WORKER_CORE``."""
    return import_module("worker._core.pure" if contender == "pure" else "worker._native")
