"""Collects the stacks of a process, and waits for them."""

from __future__ import annotations

import threading

from worker._system.stacks import ANSWER, STEP, Collection, Stacks, State


def collect(state: State, name: str, pid: int, patience: float = ANSWER) -> Stacks:
    """Return the stacks; the arguments are those of ``Collection``."""
    collection = Collection(state, name, pid, patience)
    pause = threading.Event()
    while (found := collection.step()) is None:
        pause.wait(STEP)
    return found
