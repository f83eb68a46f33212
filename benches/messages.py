"""What it costs to receive and decode queued messages: the native core, the pure one, Sanic's own way.

Run it as ``python benches/messages.py``. Each round measures all three, one after the other, so that what the
machine does meanwhile falls on all of them; printed are the medians and their ratios to Sanic's.
"""

from __future__ import annotations

import subprocess
import sys
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from os import environ
from statistics import median
from time import perf_counter

ROUNDS = 7
# As many small messages as a socket surely holds.
QUEUED = 150
REPEATS = 20


def ours(subscriber: Connection, publisher: Connection) -> float:
    """Microseconds a message as the manager's monitor takes them: all that is there at once."""
    from worker._core import Monitor

    monitor = Monitor(subscriber.fileno())
    best = float("inf")
    for _ in range(REPEATS):
        _queue(publisher)
        began = perf_counter()
        received = len(monitor.wait(0))
        best = min(best, (perf_counter() - began) / received)
    monitor.close()
    return best * 1e6


def stock(subscriber: Connection, publisher: Connection) -> float:
    """Microseconds a message as Sanic's own manager takes them: a poll and a read each."""
    best = float("inf")
    for _ in range(REPEATS):
        _queue(publisher)
        began = perf_counter()
        for _ in range(QUEUED):
            subscriber.poll(0.1)
            subscriber.recv().split(":", 2)
        best = min(best, (perf_counter() - began) / QUEUED)
    return best * 1e6


def _queue(publisher: Connection) -> None:
    for number in range(QUEUED):
        publisher.send(f"Sanic-Server-{number}-0:")


def main() -> None:
    """Measure in fresh processes, since a process has one core for good."""
    if len(sys.argv) > 1:
        subscriber, publisher = Pipe(True)
        print({"stock": stock}.get(sys.argv[1], ours)(subscriber, publisher))
        return
    times: dict[str, list[float]] = {"stock": [], "pure": [], "native": []}
    for _ in range(ROUNDS):
        for name, found in times.items():
            core = {} if name == "stock" else {"WORKER_CORE": name}
            run = subprocess.run(
                [sys.executable, __file__, name],
                env={**environ, **core},
                check=True,
                capture_output=True,
                text=True,
            )
            found.append(float(run.stdout))
    base = median(times["stock"])
    for name, found in times.items():
        print(f"{name:8} {median(found):8.2f} us a message {base / median(found):6.1f} x")


if __name__ == "__main__":
    main()
