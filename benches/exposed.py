"""Measure the metrics of a server: ``exposed.py FORMAT WORKERS AMOUNT`` prints JSON.

The state is real, and so are the workers' processes. Each has written its numbers once, and sleeps.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from datetime import datetime, timezone
from statistics import median
from time import perf_counter

from worker._inspect.metrics import expose
from worker._inspect.status import Sampler
from worker._state import identity
from worker._state.event_log import EventLog
from worker._state.events import ProcessStarted
from worker._state.shared import SharedState
from worker.constants import MAIN_NAME

FORMATS = {"text": "", "openmetrics": "application/openmetrics-text; version=1.0.0"}


def work(state: SharedState) -> None:
    """Write the numbers of a worker, and sleep until killed."""
    identity.become_worker()
    state.beat(1000, in_flight=3, connections=40, loop_lag_p50=0.0001, loop_lag_p99=0.0123)
    while True:
        signal.pause()


def fork(state: SharedState) -> int:
    """Start a worker; return its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            work(state)
        finally:
            os._exit(1)
    return pid


def main() -> None:
    """Make the workers, measure, print the result, kill the workers."""
    kind, workers, amount = sys.argv[1:]
    state, now = SharedState(), datetime.now(tz=timezone.utc)
    state[MAIN_NAME] = {"pid": os.getpid()}
    pids: list[int] = []
    log = EventLog(state)
    try:
        for number in range(int(workers)):
            pids.append(fork(state))
            name = f"Sanic-Server-{number}-0"
            state[name] = {
                "server": True,
                "state": "ACKED",
                "pid": pids[-1],
                "phase": "ready",
                "serving": True,
                "start_at": now,
                "restarts": 3,
                "requests_before": 12345,
                "why": f"{name} exited with code 1 after 3.2 s. It was replaced.",
            }
            log.append(ProcessStarted(text=name, slot=name, pid=pids[-1], reason="start"))
        sampler, accept = Sampler(state, {"app": "bench"}), FORMATS[kind]
        while any(pid not in sampler._memory._values for pid in pids) or not all(map(state.numbers, pids)):
            sampler.sample()
        samples = []
        for _ in range(int(amount)):
            began = perf_counter()
            body, _type = expose(sampler, accept)
            samples.append(perf_counter() - began)
        assert body.count(b'kind="pss"') == int(workers)
        print(json.dumps({"milliseconds": median(samples) * 1e3, "bytes": len(body)}))
        sys.stdout.flush()
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
