"""Managed processes of each kind, added before the start and at run time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .harness import Server
from .tools import wait_until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server.run("apps.managed:app", workers=1, cwd=tmp_path_factory.mktemp("managed")) as server:
        server.wait_ready()
        server.wait_events("managed", 7)
        yield server


def entry(server: Server, name: str) -> dict[str, Any]:
    return server.table()[name]


def in_state(server: Server, name: str, state: str) -> dict[str, Any]:
    def look() -> dict[str, Any]:
        found = server.table().get(name, {})
        return found if found.get("state") == state else {}

    return wait_until(look, f"{name} {state}")


def manage(server: Server, ident: str, func: str = "until_told", **options: Any) -> None:
    server.post("/manage", {"ident": ident, "func": func, "kwargs": {"label": ident.lower()}, **options})


def test_processes_run_under_their_names_with_their_arguments(server: Server) -> None:
    first = server.events("managed")[:7]
    started = {(event.process, event.fields["label"]) for event in first}
    assert started == {
        ("Sanic-Transient-0", "transient"),
        ("Sanic-Configured-0", "configured"),
        ("Sanic-Durable-0", "durable"),
        ("Sanic-Guide-0", "guide"),
        ("Sanic-Sigwait-0", "sigwait"),
        ("Sanic-Pair-0", "pair"),
        ("Sanic-Pair-1", "pair"),
    }


def test_the_entry_of_a_managed_process(server: Server) -> None:
    (started,) = server.wait_events("managed", process="Sanic-Durable-0")
    found = in_state(server, "Sanic-Durable-0", "STARTED")
    assert found["server"] is False
    assert found["pid"] == started.pid
    assert found["starts"] == 1
    assert found["start_at"]["offset"] == 0
    assert "serving" not in found


def test_a_restart_of_all_replaces_only_transient_processes(server: Server) -> None:
    wait_until(lambda: entry(server, "Sanic-Job-0")["state"] == "COMPLETED", "the end of the job")
    before = server.table()
    transient, configured = (len(server.events("managed", label=one)) for one in ("transient", "configured"))
    server.post("/m/restart", {"all_workers": True})
    server.wait_events("managed", transient + 1, label="transient")
    server.wait_events("managed", configured + 1, label="configured")
    server.wait_ready()
    name = "Sanic-Server-0-0"
    wait_until(lambda: server.settled(1)[name]["pid"] != before[name]["pid"], "a new server")
    after = server.table()
    # A process that is done and not tracked may leave the table meanwhile.
    renewed = {name for name in before if name in after and before[name].get("pid") != after[name].get("pid")}
    assert renewed == {"Sanic-Server-0-0", "Sanic-Transient-0", "Sanic-Configured-0"}
    assert after["Sanic-Transient-0"]["starts"] == before["Sanic-Transient-0"]["starts"] + 1
    wait_until(lambda: before["Sanic-Transient-0"]["pid"] not in server.processes(), "the old one gone")


def test_reloaded_files_arrive_in_the_config_parameter(server: Server) -> None:
    server.wait_ready()
    before = len(server.events("configured"))
    server.post("/send", ["__ALL_PROCESSES__:/one.py,/two.py"])
    event = server.wait_events("configured", before + 1)[-1]
    assert event.fields["config"] == {"RELOADED_FILES": "/one.py,/two.py"}
    started = server.wait_events("before_server_start", reloaded="/one.py,/two.py")
    assert started[-1].process == "Sanic-Server-0-0"
    server.wait_ready()


def test_a_transient_process_is_not_doubled_by_a_zero_downtime_restart(server: Server) -> None:
    server.wait_ready()
    server.settled(1)
    before = entry(server, "Sanic-Transient-0")
    count = len(server.events("managed", label="transient"))
    server.post("/m/restart", {"name": "Sanic-Transient-0", "zero_downtime": True})
    server.wait_events("managed", count + 1, label="transient")
    wait_until(lambda: before["pid"] not in server.processes(), "the old one gone")
    wait_until(lambda: entry(server, "Sanic-Transient-0")["pid"] != before["pid"], "the new one in the table")


def test_a_completed_process_stays_in_the_table_and_can_be_restarted(server: Server) -> None:
    first = in_state(server, "Sanic-Job-0", "COMPLETED")
    server.post("/m/restart", {"name": "Sanic-Job-0"})
    server.wait_events("done", 2, label="job")
    wait_until(lambda: entry(server, "Sanic-Job-0")["starts"] == first["starts"] + 1, "a second start")
    in_state(server, "Sanic-Job-0", "COMPLETED")


def test_a_process_without_auto_start_starts_on_request(server: Server) -> None:
    assert server.events("managed", label="lazy") == []
    assert entry(server, "Sanic-Lazy-0")["state"] == "NONE"
    server.post("/m/restart", {"name": "Sanic-Lazy-0"})
    server.wait_events("managed", label="lazy")
    in_state(server, "Sanic-Lazy-0", "STARTED")


def test_a_running_durable_process_is_not_restarted(server: Server) -> None:
    if entry(server, "Sanic-Lazy-0")["state"] == "NONE":
        server.post("/m/restart", {"name": "Sanic-Lazy-0"})
    before = in_state(server, "Sanic-Lazy-0", "STARTED")
    mark = server.mark()
    server.post("/m/restart", {"name": "Sanic-Lazy-0"})
    refusal = server.wait_line("Cannot restart process", since=mark)
    assert refusal.text.endswith(
        "Cannot restart process Sanic-Lazy-0 because it is not in a final state. Current state is: STARTED."
    )
    server.wait_line(r"Failed to restart processes: Sanic-Lazy-0$", since=mark)
    assert entry(server, "Sanic-Lazy-0")["pid"] == before["pid"]


def test_a_process_that_is_not_restartable_is_not_restarted(server: Server) -> None:
    before = entry(server, "Sanic-Durable-0")
    mark = server.mark()
    server.post("/m/restart", {"name": "Sanic-Durable-0"})
    server.wait_line(r"Failed to restart processes: Sanic-Durable-0$", since=mark)
    assert entry(server, "Sanic-Durable-0")["pid"] == before["pid"]


def test_an_untracked_process_is_removed_when_completed(server: Server) -> None:
    server.wait_events("done", label="short")
    server.wait_line(r"Removed worker Short$")
    wait_until(lambda: "Sanic-Short-0" not in server.table(), "no entry left")


def test_a_process_can_be_added_in_a_request(server: Server) -> None:
    manage(server, "Fly", workers=2)
    started = server.wait_events("managed", 2, label="fly")
    assert {event.process for event in started} == {"Sanic-Fly-0", "Sanic-Fly-1"}
    in_state(server, "Sanic-Fly-0", "STARTED")


def test_a_process_added_at_run_time_is_not_tracked(server: Server) -> None:
    manage(server, "Brief", "job")
    server.wait_line(r"Removed worker Brief$")
    wait_until(lambda: "Sanic-Brief-0" not in server.table(), "no entry left")


def test_a_tracked_process_added_at_run_time_can_fail(server: Server) -> None:
    manage(server, "Failing", "failing", tracked=True)
    in_state(server, "Sanic-Failing-0", "FAILED")


def test_a_process_added_at_run_time_can_start_later(server: Server) -> None:
    manage(server, "Later", auto_start=False, tracked=True, restartable=True)
    in_state(server, "Sanic-Later-0", "NONE")
    server.post("/m/restart", {"name": "Sanic-Later-0"})
    server.wait_events("managed", label="later")


def test_an_existing_name_is_refused(server: Server) -> None:
    mark = server.mark()
    manage(server, "Durable")
    server.wait_line("Monitor failed to manage worker Durable", since=mark)
    server.wait_line("Worker Durable already exists", since=mark)
    assert len(server.events("managed", label="durable")) == 1


def test_transient_and_not_restartable_is_refused(server: Server) -> None:
    mark = server.mark()
    manage(server, "Contradiction", transient=True, restartable=False)
    server.wait_line("Cannot create a transient worker that is not restartable", since=mark)
    assert "Sanic-Contradiction-0" not in server.table()


def test_each_process_is_stopped_once(run: Callable[..., Server]) -> None:
    server = run("apps.managed:app", workers=1).wait_ready()
    server.wait_events("managed", 7)
    manage(server, "Fly", workers=2)
    server.wait_events("managed", 2, label="fly")
    alive = {
        event.pid: event.process for event in server.events("managed") if event.pid in server.processes()
    }
    assert len(alive) == 9
    assert server.stop() == 0
    told = {event.pid: event for event in server.events("told") if event.pid in alive}
    assert set(told) == set(alive)
    assert {event.fields["signal"] for event in told.values()} == {"SIGINT", "KeyboardInterrupt"}
    assert len([event for event in server.events("told") if event.pid in alive]) == len(alive)
