"""The metrics: their names and units by the conventions of Prometheus, in both formats."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from support.running import until

from worker._inspect import metrics
from worker._inspect.metrics import expose
from worker._inspect.status import Sampler
from worker.constants import MAIN_NAME

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
DOCS = Path(__file__).parent.parent.parent / "docs"

# The rules of `promtool check metrics`.
UNITS = ("amperes", "bytes", "celsius", "grams", "joules", "kelvin", "meters", "metres", "seconds", "volts")
OTHER_UNITS = ("minutes", "hours", "days", "weeks", "kelvins", "fahrenheit", "rankine", "inches", "yards")
OTHER_UNITS += ("miles", "bits", "calories", "pounds", "ounces")
PREFIXES = (
    "pico",
    "nano",
    "micro",
    "milli",
    "centi",
    "deci",
    "deca",
    "hecto",
    "kilo",
    "kibi",
    "mega",
    "mibi",
)
PREFIXES += ("giga", "gibi", "tera", "tebi", "peta", "pebi")
ABBREVIATIONS = {"s", "ms", "us", "ns", "sec", "b", "kb", "mb", "gb", "tb", "pb", "m", "h", "d"}
TYPES = {"counter", "gauge", "summary", "histogram", "gaugehistogram"}


def problems(text: str) -> Iterator[str]:
    """Yield the problems that `promtool check metrics` finds with metrics in the text format."""
    names: list[str] = []
    for family in parse_text(text):
        name = family.name + ("_total" if family.type == "counter" else "")
        kind, words = family.type, name.split("_")
        names.append(name)
        if not family.documentation:
            yield f"{name}: no help text"
        for word in words:
            scaled = any(word.startswith(prefix) and word[len(prefix) :] in UNITS for prefix in PREFIXES)
            if word in OTHER_UNITS or scaled:
                yield f"{name}: no base unit: {word}"
        if (kind == "counter") != name.endswith("_total"):
            yield f"{name}: _total is for counters, and for all of them"
        if kind != "histogram" and name.endswith("_bucket"):
            yield f"{name}: _bucket is for histograms"
        if kind not in ("histogram", "summary") and name.endswith(("_count", "_sum")):
            yield f"{name}: _count and _sum are for histograms and summaries"
        if TYPES & {*words}:
            yield f"{name}: it names its type"
        if ":" in name or re.search("[a-z][A-Z]", name):
            yield f"{name}: it is not in snake case"
        if ABBREVIATIONS & {*words}:
            yield f"{name}: it abbreviates a unit"
        labels = {label for sample in family.samples for label in sample.labels}
        if (kind != "histogram" and "le" in labels) or (kind != "summary" and "quantile" in labels):
            yield f"{name}: a label that is reserved for another type"
        if any(re.search("[a-z][A-Z]", label) for label in labels):
            yield f"{name}: a label that is not in snake case"
        if len({(one.name, *sorted(one.labels.items())) for one in family.samples}) < len(family.samples):
            yield f"{name}: a sample twice"
    if len({*names}) < len(names):
        yield "a metric twice"


TOTALS = {
    "starts": 9,
    "restarts": {"exit": 2, "hang": 1},
    "exits": {"0": 3, "1": 1, "SIGKILL": 2},
    "start_seconds": {"bounds": [0.1, 1.0, 10.0], "counts": [1, 2, 3, 4], "sum": 50.5},
    "rollout_seconds": {"bounds": [1.0, 60.0], "counts": [0, 1, 0], "sum": 2.5},
}


class Whole(Sampler):
    """A sampler that knows every value, of two servers."""

    def sample(self) -> dict[str, Any]:
        found = super().sample()
        found["server"].update(backlog=7, state_bytes=100, state_max_bytes=1000)
        for number, worker in enumerate(found["workers"]):
            worker.update(
                {"requests": 12345678 + number, "in_flight": 2, "connections": 3, "heartbeat_age": 0.5},
                rss_bytes=1000,
                pss_bytes=500,
                cpu_seconds=1.25,
                loop_lag_p50=0.001,
                loop_lag_p99=0.25,
                loop_busy=0.5,
            )
        return found


def server(pid: int) -> dict[str, Any]:
    return {"server": True, "state": "ACKED", "pid": pid, "phase": "ready"}


STATE = {MAIN_NAME: {"pid": os.getpid()}, "s0": server(os.getpid()), 's"1': server(os.getppid())}


@pytest.fixture(autouse=True)
def _totals(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(metrics, "read_totals", lambda state: TOTALS)
    yield
    until(lambda: all(one.name != "memory" for one in threading.enumerate()), "the end of the reader")


@pytest.fixture
def text() -> str:
    body, content_type = expose(Whole(STATE, {"app": "shop"}), "")
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    return body.decode()


def values(text: str) -> dict[tuple[str, ...], float]:
    """Return the value of each sample, by its name and the values of its labels, sorted by their names."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in parse_text(text)
        for sample in family.samples
    }


def test_the_rules_of_promtool_hold(text: str) -> None:
    assert [*problems(text)] == []


@pytest.mark.parametrize(
    "wrong",
    [
        "# TYPE a counter\na 1\n# HELP a_total x\n# TYPE a_total gauge\na_total 1\n",
        "# TYPE a gauge\na 1\n",
        "# HELP a_minutes x\n# TYPE a_minutes gauge\na_minutes 1\n",
        "# HELP a_milliseconds x\n# TYPE a_milliseconds gauge\na_milliseconds 1\n",
        "# HELP a_ms x\n# TYPE a_ms gauge\na_ms 1\n",
        "# HELP a_gauge_b x\n# TYPE a_gauge_b gauge\na_gauge_b 1\n",
        "# HELP aB x\n# TYPE aB gauge\naB 1\n",
        '# HELP a x\n# TYPE a gauge\na{quantile="1"} 1\n',
        '# HELP a x\n# TYPE a gauge\na{aB="1"} 1\n',
        '# HELP a x\n# TYPE a gauge\na{a="1"} 1\na{a="1"} 2\n',
        "# HELP a_sum x\n# TYPE a_sum gauge\na_sum 1\n",
    ],
)
def test_the_rules_find_breaches(wrong: str) -> None:
    assert [*problems(wrong)]


def test_has_the_values_of_the_snapshot(text: str) -> None:
    found = values(text)
    assert found["sanic_worker_workers_wanted",] == 2
    assert found["sanic_worker_workers_ready",] == 2
    assert found["sanic_worker_backlog_connections",] == 7
    assert found["sanic_worker_state_used_bytes",] == 100
    assert found["sanic_worker_state_max_bytes",] == 1000
    assert found["sanic_worker_main_uptime_seconds",] > 0
    assert found["sanic_worker_requests_total", "s0"] == 12345678
    assert found["sanic_worker_requests_total", 's"1'] == 12345679
    assert found["sanic_worker_requests_in_flight", "s0"] == 2
    assert found["sanic_worker_open_connections", "s0"] == 3
    assert found["sanic_worker_cpu_seconds_total", "s0"] == 1.25
    assert found["sanic_worker_memory_bytes", "rss", "s0"] == 1000
    assert found["sanic_worker_memory_bytes", "pss", "s0"] == 500
    assert found["sanic_worker_event_loop_busy_ratio", "s0"] == 0.5
    assert found["sanic_worker_event_loop_lag_seconds", "0.5", "s0"] == 0.001
    assert found["sanic_worker_event_loop_lag_seconds", "0.99", "s0"] == 0.25
    assert found["sanic_worker_heartbeat_age_seconds", "s0"] == 0.5
    assert found["sanic_worker_uptime_seconds", "s0"] > 0


def test_has_the_totals_of_the_main_process(text: str) -> None:
    found = values(text)
    assert found["sanic_worker_starts_total",] == 9
    restarts = {key[1]: value for key, value in found.items() if key[0] == "sanic_worker_restarts_total"}
    assert restarts == {"exit": 2, "request": 0, "reload": 0, "hang": 1}
    exits = {key[1]: value for key, value in found.items() if key[0] == "sanic_worker_exits_total"}
    assert exits == {"0": 3, "1": 1, "SIGKILL": 2}


def test_histograms_are_cumulative(text: str) -> None:
    found = values(text)
    name = "sanic_worker_start_duration_seconds"
    buckets = {key[1]: value for key, value in found.items() if key[0] == f"{name}_bucket"}
    assert buckets == {"0.1": 1, "1.0": 3, "10.0": 6, "+Inf": 10}
    assert (found[f"{name}_count",], found[f"{name}_sum",]) == (10, 50.5)
    assert found["sanic_worker_rollout_duration_seconds_count",] == 1


def test_what_is_not_known_is_left_out() -> None:
    text = expose(Sampler({MAIN_NAME: {}, "s0": {"server": True}}, {}), "")[0].decode()
    found = {key[0] for key in values(text)}
    assert "sanic_worker_workers_wanted" in found
    for name in ("main_uptime_seconds", "backlog_connections", "requests_total", "memory_bytes"):
        assert f"sanic_worker_{name}" not in text
    assert "None" not in text
    assert "NaN" not in text


@pytest.mark.parametrize("version", ["foo", "1.x"])
def test_a_malformed_version_gets_the_text_format(version: str) -> None:
    accept = f"application/openmetrics-text; version={version}"
    assert expose(Whole(STATE, {}), accept)[1].startswith("text/plain; version=0.0.4")


def test_openmetrics_where_it_is_asked_for() -> None:
    body, content_type = expose(Whole(STATE, {"app": "shop"}), OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0; charset=utf-8")
    families = {family.name: family for family in parse_openmetrics(body.decode())}
    assert families["sanic_worker_requests"].type == "counter"
    assert families["sanic_worker_cpu_seconds"].unit == "seconds"
    assert families["sanic_worker_event_loop_lag_seconds"].type == "summary"
    assert families["sanic_worker"].type == "info"
    assert families["sanic_worker"].samples[0].labels.keys() == {"app", "version", "core", "sanic"}
    assert body.endswith(b"# EOF\n")


def shown() -> set[str]:
    """Return the names of all metrics, as a query names them."""
    text = expose(Whole(STATE, {"app": "shop"}), "")[0].decode()
    return {sample.name for family in parse_text(text) for sample in family.samples}


def families() -> set[str]:
    """Return the names of all metrics, as the text format names them."""
    text = expose(Whole(STATE, {"app": "shop"}), "")[0].decode()
    return {*re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)}


def test_the_documentation_has_a_row_for_each_metric() -> None:
    rows = re.findall(r"^\| `(sanic_worker_\w+)", (DOCS / "inspector.md").read_text(), re.MULTILINE)
    assert {*rows} == families()
    assert len(rows) == len({*rows})


class TestDashboard:
    dashboard: dict[str, Any] = json.loads((DOCS / "grafana.json").read_text())

    def test_it_can_be_imported(self) -> None:
        assert self.dashboard["uid"] == "sanic-worker"
        assert self.dashboard["id"] is None
        sources = [one for one in self.dashboard["templating"]["list"] if one["type"] == "datasource"]
        assert [(one["name"], one["query"]) for one in sources] == [("datasource", "prometheus")]
        ids = [panel["id"] for panel in self.dashboard["panels"]]
        assert len({*ids}) == len(ids) > 10
        for panel in self.dashboard["panels"]:
            if panel["type"] != "row":
                assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
                assert panel["title"]
                assert panel["description"]

    def test_panels_do_not_overlap(self) -> None:
        taken: set[tuple[int, int]] = set()
        for panel in self.dashboard["panels"]:
            place = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert not taken & cells, panel["title"]
            assert place["x"] + place["w"] <= 24
            taken |= cells

    def test_each_metric_that_it_names_exists(self) -> None:
        queries = [
            target["expr"] for panel in self.dashboard["panels"] for target in panel.get("targets", ())
        ]
        queries += [
            one["query"]["query"] for one in self.dashboard["templating"]["list"] if one["type"] == "query"
        ]
        named = {name for query in queries for name in re.findall(r"\bsanic_worker_\w+", query)}
        assert named <= shown()

    def test_it_shows_every_metric(self) -> None:
        text = json.dumps(self.dashboard)
        for name in families():
            assert name in text, name
