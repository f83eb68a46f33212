"""Measure the cost of the warning of slow steps, beside a trivial handler: ``slow_loop.py [ROUNDS]``.

Requests go through a connection of Sanic's, one after another, over a transport that drops its output. The
program prints the CPU time of a request, in nanoseconds, all threads included: with the counts of stock, with
those of this package, and with these and the warning, at its default and at that of ``--debug``. It also
prints the share of a processor that the warning takes while a loop wakes up again and again. It ends with 1
if that is above 1 % at the default.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from statistics import median
from time import process_time_ns
from typing import Any

from counting import answer
from sanic import Sanic, text

from worker._child.heartbeat import Heartbeat
from worker._child.slow_loop import SlowLoop
from worker._state.shared import SharedState

# The limits of the contenders, seconds: 0 is off.
LIMITS = {"stock": 0.0, "ours": 0.0, "warning at 1 s": 1.0, "warning at 0.1 s": 0.1}
MOST = 0.01
# How often the loop wakes up, and the time between, seconds; each keeps the timer and the thread at work.
WAKEUPS, PAUSE = 100, 0.05
# The time in which the thread starts, seconds.
SETTLE = 0.05


@contextmanager
def watched(limit: float) -> Iterator[None]:
    """Watch the running loop in the body, if there is a limit."""
    if not limit:
        yield
        return
    watch = SlowLoop(asyncio.get_running_loop(), limit)
    watch.begin()
    try:
        yield
    finally:
        watch.end()


async def waking(limit: float) -> float:
    """Return the CPU time of a second of a loop that wakes up often, as a share of a processor."""
    with watched(limit):
        await asyncio.sleep(SETTLE)
        began = process_time_ns()
        for _ in range(WAKEUPS):
            await asyncio.sleep(PAUSE)
        return (process_time_ns() - began) / 1e9 / (WAKEUPS * PAUSE)


async def main(rounds: int) -> bool:
    """Measure the contenders in turns; return whether the cost is allowed."""
    app: Any = Sanic("slow_loop", configure_logging=False)
    app.config.ACCESS_LOG = False
    app.get("/")(lambda request: text("watched"))
    await app._startup()
    with closing(SharedState()) as state:
        counts = Heartbeat(asyncio.get_running_loop(), state, {}).counts
        found: dict[str, list[float]] = {name: [] for name in LIMITS}
        for number in range(rounds):
            for name in [*LIMITS][:: 1 if number % 2 else -1]:
                with watched(LIMITS[name]):
                    await asyncio.sleep(SETTLE)
                    found[name].append(await answer(app, None if name == "stock" else counts))
    costs = {name: median(times) for name, times in found.items()}
    for name, cost in costs.items():
        print(
            f"a request, {name}: {cost:,.0f} ns, {cost / costs['ours']:.4f} of ours, "
            f"{cost / costs['stock']:.4f} of stock"
        )
    without, shares = await waking(0.0), {}
    for name, limit in LIMITS.items():
        if limit:
            shares[name] = max(0.0, await waking(limit) - without)
            print(f"{name} takes {shares[name]:.4%} of a processor while the loop is busy")
    return shares["warning at 1 s"] <= MOST


if __name__ == "__main__":
    sys.exit(not asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 41)))
