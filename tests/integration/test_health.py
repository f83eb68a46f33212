"""Probes and metrics of real servers, whose workers are killed, restarted and suspended."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGTERM
from time import monotonic
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from .harness import Response, Server, load
from .tools import free_port, port_is_free, suspend, wait_until

pytestmark = pytest.mark.ours

KEY = "a secret"
Metrics = dict[tuple[str, ...], float]


class Probed:
    """A server with a port for probes, and an inspector with a key."""

    def __init__(self, server: Server, port: int, inspector: int = 0) -> None:
        self.server = server
        self.port = port
        self.inspector = inspector

    def get(self, path: str, *, port: int | None = None, **headers: str) -> Response:
        return self.server.request("GET", path, headers=headers, port=port or self.port)

    def answers(self, path: str, code: int, *, port: int | None = None) -> Any:
        """Wait until a probe has this result; return the JSON."""

        def look() -> Any:
            with contextlib.suppress(OSError, HTTPException):
                response = self.get(path, port=port)
                return response.json if response.status == code else None
            return None

        return wait_until(look, f"{code} of {path}")

    def metrics(self, *, port: int | None = None) -> Metrics:
        """Return the values by the name of the metric and the values of its labels, sorted by their names."""
        text = self.get("/metrics", port=port).text
        return {
            (one.name.removeprefix("sanic_worker_"), *(value for _, value in sorted(one.labels.items()))): (
                one.value
            )
            for family in text_string_to_metric_families(text)
            for one in family.samples
        }

    def until(self, look: Callable[[Metrics], bool], what: str) -> Metrics:
        """Wait until the metrics are as wanted, and return them."""

        def found() -> Metrics:
            seen = self.metrics()
            return seen if look(seen) else {}

        return wait_until(found, what)

    def pids(self) -> dict[str, int]:
        """Return the pids of the two servers, once they have settled."""
        return {name: entry["pid"] for name, entry in self.server.settled(2).items()}


@contextlib.contextmanager
def probed(cwd: Path, *args: str, env: dict[str, str] | None = None, **options: Any) -> Iterator[Probed]:
    """Start a server of two workers with both ports."""
    port, inspector = free_port(), free_port()
    settings = {"SANIC_INSPECTOR_PORT": str(inspector), "SANIC_INSPECTOR_API_KEY": KEY, **(env or {})}
    with Server.run(
        "apps.inspected:app", f"--health-port={port}", *args, cwd=cwd, env=settings, **options
    ) as server:
        server.wait_ready()
        server.settled(2)
        found = Probed(server, port, inspector)
        wait_until(lambda: not port_is_free(port) and not port_is_free(inspector), "both ports")
        yield found
    assert port_is_free(port)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Probed]:
    with probed(tmp_path_factory.mktemp("probed"), env={"SANIC_WORKER_HEALTH_OPEN": "true"}) as found:
        yield found


def with_key(found: Probed, path: str) -> Response:
    return found.get(path, port=found.inspector, Authorization=f"Bearer {KEY}")


def test_probes_are_answered_on_both_ports(shared: Probed) -> None:
    for port in (shared.port, shared.inspector):
        assert shared.answers("/livez", 200, port=port) == {"status": "ok"}
        assert shared.answers("/readyz", 200, port=port)["workers_ready"] == 2
        assert shared.answers("/readyz?min=3", 503, port=port)["workers_required"] == 3
        assert shared.get("/readyz?min=0", port=port).status == 400


def test_the_inspector_needs_its_key_for_all_else(shared: Probed) -> None:
    shared.answers("/livez", 200, port=shared.inspector)
    for path in ("/", "/metrics"):
        assert shared.get(path, port=shared.inspector).status == 401
        assert with_key(shared, path).status == 200


def test_the_port_for_probes_serves_nothing_else(shared: Probed) -> None:
    for path in ("/", "/whoami", "/status", "/openapi.json"):
        assert shared.get(path).status == 404
    for path in ("/reload", "/shutdown", "/livez"):
        assert shared.server.request("POST", path, b"{}", port=shared.port).status in (404, 405)
    shared.server.settled(2)


def test_both_ports_show_the_same_metrics(shared: Probed) -> None:
    names: set[str] = set()

    def are_the_same() -> bool:
        """Some metrics come with the first beat, or with the first measurement of each process."""
        names.update(key[0] for key in shared.metrics())
        text = with_key(shared, "/metrics").text
        theirs = {one.name for family in text_string_to_metric_families(text) for one in family.samples}
        return names == {name.removeprefix("sanic_worker_") for name in theirs}

    wait_until(are_the_same, "the same metrics")
    assert {"workers_ready", "backlog_connections", "main_uptime_seconds", "info"} <= names


@pytest.mark.native
def test_metrics_of_each_worker_and_of_the_server(shared: Probed) -> None:
    names = [*shared.pids(), "Sanic-Inspector-0", "Sanic-Health-0"]
    found = shared.until(
        lambda seen: (
            all(
                {("memory_bytes", "pss", name), ("heartbeat_age_seconds", name)} <= seen.keys()
                for name in names[:2]
            )
            and all(("memory_bytes", "pss", name) in seen for name in names)
        ),
        "the proportional memory, and the first beats",
    )
    for name in names:
        assert 0 < found["memory_bytes", "pss", name] <= found["memory_bytes", "rss", name]
        assert found["cpu_seconds_total", name] > 0
        assert found["uptime_seconds", name] > 0
    # The pages that workers share count for each of them only in part.
    shares = sum(found["memory_bytes", "pss", name] / found["memory_bytes", "rss", name] for name in names)
    assert shares < len(names)
    assert 0 < found["state_used_bytes",] < found["state_max_bytes",]
    assert found["backlog_connections",] == 0
    for name in names[:2]:
        assert 0 <= found["heartbeat_age_seconds", name] < 30
        assert found["requests_in_flight", name] >= 0
        assert found["open_connections", name] >= 0


def test_a_killed_worker_is_seen_in_restarts_and_exits(shared: Probed) -> None:
    before = shared.metrics()
    name, pid = min(shared.pids().items())
    began = monotonic()
    os.kill(pid, SIGKILL)
    after = shared.until(
        lambda seen: (
            seen["restarts_total", "exit"] == before["restarts_total", "exit"] + 1
            and seen["workers_ready",] == 2
        ),
        "one more restart",
    )
    assert after["exits_total", "SIGKILL"] == before.get(("exits_total", "SIGKILL"), 0) + 1
    assert after["starts_total",] == before["starts_total",] + 1
    assert after["restarts_total", "request"] == before["restarts_total", "request"]
    # Another process: the killed one was older. The start of a process is known to a hundredth of a second.
    assert after["uptime_seconds", name] < monotonic() - began + 0.02


def test_a_rollout_is_seen_in_the_histograms(shared: Probed) -> None:
    before = shared.metrics()
    shared.server.post("/m/restart", {"all_workers": True, "zero_downtime": True})
    after = shared.until(
        lambda seen: seen["rollout_duration_seconds_count",] == before["rollout_duration_seconds_count",] + 1,
        "one more rollout",
    )
    assert after["restarts_total", "request"] == before["restarts_total", "request"] + 2
    assert after["start_duration_seconds_count",] == before["start_duration_seconds_count",] + 2
    assert after["start_duration_seconds_sum",] > before["start_duration_seconds_sum",]
    assert after["rollout_duration_seconds_sum",] > before["rollout_duration_seconds_sum",]
    assert after["rollout_duration_seconds_bucket", "+Inf"] == after["rollout_duration_seconds_count",]


@pytest.mark.native
def test_the_requests_of_a_slot_never_become_fewer(shared: Probed) -> None:
    """While workers are restarted in both orders, and killed, under load."""
    names = [*shared.pids()]
    seen: list[Metrics] = []
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            seen.append(shared.metrics())

    def looked() -> None:
        """Wait until it has looked once more, from beginning to end."""
        count = len(seen)
        wait_until(lambda: len(seen) >= count + 2, "two more looks")

    before = shared.metrics()
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        looked()
        with load(shared.server) as failures:
            answered: set[str] = set()
            while not answered >= {*names}:
                answered.add(shared.server.get("/whoami")["name"])
            for zero_downtime in (True, False):
                done = shared.metrics()["rollout_duration_seconds_count",]
                shared.server.post("/m/restart", {"all_workers": True, "zero_downtime": zero_downtime})
                shared.until(
                    lambda seen, done=done: seen["rollout_duration_seconds_count",] > done,
                    "the end of the restart",
                )
                looked()
            assert not failures
        killed = shared.pids()[names[0]]
        os.kill(killed, SIGKILL)
        wait_until(lambda: shared.pids()[names[0]] != killed, "another process")
        shared.until(
            lambda seen: all(seen["requests_total", name] > before["requests_total", name] for name in names),
            "the requests of each",
        )
        looked()
    finally:
        over.set()
        watcher.join()
    for name in names:
        counts = [one["requests_total", name] for one in [before, *seen]]
        assert counts == sorted(counts)
        assert counts[-1] > counts[0]


@pytest.mark.native
def test_requests_of_ended_processes_are_kept(shared: Probed) -> None:
    """The processes write their numbers once more when they stop, so none is missing after a restart."""
    shared.pids()

    def total(seen: Metrics) -> float:
        return sum(value for key, value in seen.items() if key[0] == "requests_total")

    before = total(shared.metrics())
    for _ in range(20):
        shared.server.get("/whoami")
    done = shared.metrics()["rollout_duration_seconds_count",]
    shared.server.post("/m/restart", {"all_workers": True, "zero_downtime": True})
    after = shared.until(lambda seen: seen["rollout_duration_seconds_count",] > done, "the restart")
    shared.pids()
    shared.until(
        lambda seen: total(seen) >= before + 21, f"21 requests more than {before:g}, not {total(after):g}"
    )


def test_readyz_fails_while_a_worker_is_suspended(shared: Probed) -> None:
    name, pid = min(shared.pids().items())
    shared.answers("/readyz", 200)
    suspend(pid)
    try:

        def is_alone() -> dict[str, Any]:
            """Whether no other is missing, as after a stall of the machine."""
            found: dict[str, Any] = shared.answers("/readyz", 503)
            return found if [one["name"] for one in found["not_ready"]] == [name] else {}

        found = wait_until(is_alone, f"{name} not ready")
        assert (found["workers_ready"], found["workers_wanted"]) == (1, 2)
        shared.answers("/readyz?min=1", 200)
        shared.until(lambda seen: seen["workers_ready",] == 1, "one that is ready")
    finally:
        os.kill(pid, SIGCONT)
    shared.answers("/readyz", 200)


def test_livez_fails_while_the_main_process_is_suspended(shared: Probed) -> None:
    for port in (shared.port, shared.inspector):
        shared.answers("/livez", 200, port=port)
    suspend(shared.server.pid)
    try:
        for port in (shared.port, shared.inspector):
            began = monotonic()
            response = shared.get("/livez", port=port)
            assert response.status == 503
            assert response.json["status"] == "failed"
            # Two seconds, and some for a machine under load.
            assert monotonic() - began < 10
        # The workers serve, so they are ready.
        shared.answers("/readyz", 200)
    finally:
        os.kill(shared.server.pid, SIGCONT)
    for port in (shared.port, shared.inspector):
        shared.answers("/livez", 200, port=port)


def test_the_backlog_counts_connections_that_no_worker_accepts(shared: Probed) -> None:
    pids = shared.pids()
    with contextlib.ExitStack() as stack:
        for pid in pids.values():
            stack.callback(os.kill, pid, SIGCONT)
            suspend(pid)
        for _ in range(3):
            stack.enter_context(socket.create_connection(("127.0.0.1", shared.server.port)))
        shared.until(lambda seen: seen["backlog_connections",] == 3, "three that wait")
    shared.until(lambda seen: seen["backlog_connections",] == 0, "none that waits")


def test_idle_connections_are_bounded_and_do_not_keep_a_probe_out(shared: Probed) -> None:
    pid = shared.server.table()["Sanic-Health-0"]["pid"]
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(socket.create_connection(("127.0.0.1", shared.port)))
        assert shared.answers("/livez", 200) == {"status": "ok"}
        assert len(os.listdir(f"/proc/{pid}/fd")) < 150


def switches(pid: int) -> int:
    """Return how often the threads of a process have gone to sleep."""
    found = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        text = (task / "status").read_text()
        found += int(text.partition("\nvoluntary_ctxt_switches:")[2].split()[0])
    return found


@pytest.mark.soak
def test_a_process_for_probes_sleeps_while_nobody_asks(shared: Probed) -> None:
    shared.metrics()
    with_key(shared, "/metrics")
    pids = [shared.server.table()[f"Sanic-{kind}-0"]["pid"] for kind in ("Health", "Inspector")]
    wait_until(lambda: all(len([*Path(f"/proc/{pid}/task").iterdir()]) <= 3 for pid in pids), "few threads")
    for pid in pids:
        assert quiet(pid)


def quiet(pid: int) -> bool:
    """Whether a process is not woken for 3 seconds, give or take one wakeup for the end of a request."""
    seen: list[tuple[float, int]] = []

    def look() -> bool:
        now, count = monotonic(), switches(pid)
        if not seen or count > seen[-1][1] + 1:
            seen.append((now, count))
        return now - seen[-1][0] > 3

    return wait_until(look, "three quiet seconds")


def test_a_killed_process_for_probes_comes_back(shared: Probed) -> None:
    pid = shared.server.table()["Sanic-Health-0"]["pid"]
    os.kill(pid, SIGKILL)
    wait_until(lambda: shared.server.table()["Sanic-Health-0"].get("pid") != pid, "another process")
    assert shared.answers("/livez", 200) == {"status": "ok"}
    assert shared.answers("/readyz", 200)["workers_ready"] == 2


@pytest.mark.operations
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_port_in_use_is_one_line_until_it_is_free(method: str, tmp_path: Path) -> None:
    # A port of the kernel's choice may become that of somebody's connection.
    port = free_port()
    with socket.create_server(("127.0.0.1", port)) as taken:
        args = (f"--health-port={port}",)
        with Server.run(
            "apps.inspected:app", *args, cwd=tmp_path, workers=1, start_method=method,
            env={"SANIC_INSPECTOR": "false"},
        ) as server:  # fmt: skip
            server.wait_ready()
            server.wait_line(f"Health cannot listen on 127.0.0.1:{port}: .* Trying again every 5 s")
            taken.close()
            server.wait_line(f"Health listens on 127.0.0.1:{port}")
            found = Probed(server, port)
            assert found.answers("/livez", 200) == {"status": "ok"}
            assert server.stop(SIGTERM) == 0
            assert server.log("err").count("Health cannot listen") == 1


SCRIPT = """
import sys
from pathlib import Path
from sanic import Sanic, text

Sanic.start_method = sys.argv[2]
app = Sanic("installed")
app.config.INSPECTOR = False

@app.get("/whoami")
async def whoami(request):
    return text("me")

if __name__ == "__main__":
    import worker

    worker.install(health_port=int(sys.argv[3]))
    app.run("127.0.0.1", int(sys.argv[1]), workers=2, motd=False)
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_the_port_works_under_install_and_without_an_inspector(method: str, tmp_path: Path) -> None:

    (tmp_path / "script.py").write_text(SCRIPT)
    ports = free_port(), free_port()
    command = [sys.executable, "script.py", str(ports[0]), method, str(ports[1])]
    with Server(command, cwd=tmp_path, port=ports[0]) as server:
        server.wait_ready()
        found = Probed(server, ports[1])
        assert found.answers("/readyz", 200)["workers_ready"] == 2
        assert found.answers("/livez", 200) == {"status": "ok"}
        (info,) = (key for key in found.metrics() if key[0] == "info")
        assert info[1] == "installed"
        assert server.stop() == 0


def test_no_process_without_the_setting(tmp_path: Path) -> None:
    with Server.run(
        "apps.inspected:app", workers=1, cwd=tmp_path, env={"SANIC_INSPECTOR": "false"}
    ) as server:
        server.wait_ready()
        assert not [name for name in server.table() if "Health" in name]
