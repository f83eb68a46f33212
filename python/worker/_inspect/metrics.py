"""Exposes a snapshot of the server to Prometheus.

The metrics are made anew for each request. Nothing is counted here: the main process and the workers count,
in the shared state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.exposition import ALLOWUTF8
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

from worker._core.messages import RECYCLE_CAUSES
from worker._inspect.status import Sampler
from worker._state.event_log import read_totals

__all__ = ["ServerCollector", "expose"]

PREFIX = "sanic_worker"

# Of the whole server: name, key of the snapshot, unit, help.
SERVER_GAUGES = (
    ("workers_wanted", "workers_wanted", "", "Servers that are to accept requests."),
    ("workers_ready", "workers_ready", "", "Servers that accept requests."),
    ("main_uptime_seconds", "uptime", "seconds", "Time since the start of the main process."),
    ("backlog_connections", "backlog", "", "Connections that wait until a worker accepts them."),
    ("state_used_bytes", "state_bytes", "bytes", "Memory that the state of the workers takes."),
    ("state_max_bytes", "state_max_bytes", "bytes", "Memory that the state of the workers may take."),
)
# Of each slot, the same.
SLOT_GAUGES = (
    ("uptime_seconds", "uptime", "seconds", "Time since the start of the process."),
    ("requests_in_flight", "in_flight", "", "Requests that are read, handled or answered."),
    ("open_connections", "connections", "", "Connections that clients hold open."),
    ("event_loop_busy_ratio", "loop_busy", "ratio", "Share of time in which the event loop was busy."),
    ("heartbeat_age_seconds", "heartbeat_age", "seconds", "Time since the last heartbeat of the event loop."),
)
SLOT_COUNTERS = (
    ("requests", "requests", "", "Requests received by all processes of the slot."),
    ("cpu_seconds", "cpu_seconds", "seconds", "CPU time of the process; it begins at 0 with each process."),
)
QUANTILES = (("0.5", "loop_lag_p50"), ("0.99", "loop_lag_p99"))
KINDS = (("rss", "rss_bytes"), ("pss", "pss_bytes"))
MEMORY = "Memory of the process: resident (rss), or with pages that others map shared out (pss)."
LAG = "Delay of the event loop beyond the time for which it was to wait, over the last minute."
HANGS = ("frozen", "interpreter", "loop", "native", "stopped", "uninterruptible")
COUNTERS = (
    ("starts", "Processes that were started."),
    ("oom_kills", "Processes that the kernel has killed for want of memory."),
)
# By label and key of the totals; the values that are shown from the start on, as 0.
TOTALS = (
    ("restarts", "reason", ("exit", "request", "reload"), "Processes that were replaced."),
    ("recycles", "cause", RECYCLE_CAUSES, "Servers that were replaced at a limit."),
    ("exits", "status", ("0",), "Processes that have exited, by exit code or signal."),
    ("hangs", "cause", HANGS, "Servers that hung, by the part of them that hung."),
)
HISTOGRAMS = (
    ("start_duration_seconds", "start_seconds", "Time from the start of a server until it was ready."),
    ("rollout_duration_seconds", "rollout_seconds", "Time of a restart of several workers."),
)


class ServerCollector(Collector):
    """Collects the metrics of one snapshot.

    Args:
        sampler (Sampler): Takes the snapshot.
    """

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics. A value that is not known has no sample.

        Raises:
            OSError, EOFError: The state cannot be reached.
        """
        found = self._sampler.sample()
        server, workers = found["server"], found["workers"]
        yield InfoMetricFamily(
            PREFIX,
            "The application, and the versions of the packages that serve it.",
            {key: str(server[key]) for key in ("app", "version", "core", "sanic")},
        )
        for name, key, unit, text in SERVER_GAUGES:
            if server[key] is not None:
                yield GaugeMetricFamily(f"{PREFIX}_{name}", text, server[key], unit=unit)
        yield from _totals(read_totals(self._sampler.worker_state))
        # One mapping for all samples of a slot: they are many.
        slots = [({"slot": worker["name"]}, worker) for worker in workers]
        families = [
            *(
                _family(Metric(f"{PREFIX}_{name}", text, "gauge", unit), slots, key)
                for name, key, unit, text in SLOT_GAUGES
            ),
            *(
                _family(Metric(f"{PREFIX}_{name}", text, "counter", unit), slots, key)
                for name, key, unit, text in SLOT_COUNTERS
            ),
            _labelled(Metric(f"{PREFIX}_memory_bytes", MEMORY, "gauge", "bytes"), slots, "kind", KINDS),
            _labelled(
                Metric(f"{PREFIX}_event_loop_lag_seconds", LAG, "summary", "seconds"),
                slots,
                "quantile",
                QUANTILES,
            ),
        ]
        yield from (family for family in families if family.samples)


def expose(sampler: Sampler, accept: str) -> tuple[bytes, str]:
    """Return the metrics and their content type: the text format of Prometheus, or OpenMetrics.

    Args:
        sampler (Sampler): Takes the snapshot.
        accept (str): The header ``Accept`` of the request.

    Raises:
        OSError, EOFError: The state cannot be reached.
    """
    try:
        encode, content_type = choose_encoder(accept)
    except (TypeError, ValueError):
        # The encoder compares versions, and fails at one that is no number.
        encode, content_type = choose_encoder("")
    # No name needs to be escaped in any scheme. This one does not look at each character.
    body = encode(ServerCollector(sampler), escaping=ALLOWUTF8)  # type: ignore[call-arg]
    return body, content_type


Slots = list[tuple[dict[str, str], dict[str, Any]]]


def _family(family: Metric, slots: Slots, key: str) -> Metric:
    """Add a sample for each slot whose value is known."""
    name = family.name + ("_total" if family.type == "counter" else "")
    family.samples = [
        Sample(name, labels, worker[key]) for labels, worker in slots if worker[key] is not None
    ]
    return family


def _labelled(family: Metric, slots: Slots, label: str, keys: tuple[tuple[str, str], ...]) -> Metric:
    """Add a sample for each slot and each value of one more label, which stands beside its key."""
    family.samples = [
        Sample(family.name, {**labels, label: value}, worker[key])
        for labels, worker in slots
        for value, key in keys
        if worker[key] is not None
    ]
    return family


def _totals(totals: Mapping[str, Any]) -> Iterator[Metric]:
    """Yield the counters and histograms that the main process keeps."""
    for key, text in COUNTERS:
        yield CounterMetricFamily(f"{PREFIX}_{key}", text, totals.get(key, 0))
    for key, label, usual, text in TOTALS:
        counter = CounterMetricFamily(f"{PREFIX}_{key}", text, labels=[label])
        for value, count in {**dict.fromkeys(usual, 0), **totals.get(key, {})}.items():
            counter.add_metric([value], count)
        yield counter
    for name, key, text in HISTOGRAMS:
        if found := totals.get(key):
            # In the canonical form of OpenMetrics: 1.0, not 1.
            bounds = [*map(floatToGoString, found["bounds"]), "+Inf"]
            buckets = [*zip(bounds, accumulate(found["counts"]), strict=True)]
            yield HistogramMetricFamily(f"{PREFIX}_{name}", text, buckets, found["sum"], unit="seconds")
