"""Two workers: their identity, their entries in the table, and restarts and scalings from within."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import datetime
from http.client import HTTPException
from typing import Any

import pytest

from .harness import Server, load
from .tools import STOCK, wait_until

Table = dict[str, dict[str, Any]]
# The numbers that a server writes again at each beat.
MEASURED = {"last_beat", "requests", "in_flight", "connections", "loop_lag_p50", "loop_lag_p99"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server.run("apps.cluster:app", cwd=tmp_path_factory.mktemp("cluster")) as server:
        server.wait_ready()
        server.settled(2)
        yield server


@pytest.fixture
def workers(server: Server) -> Table:
    """The two servers as they are before a test changes them."""
    return server.settled(2)


def both(server: Server) -> Table:
    """Return the report of each of the two workers about itself, by name."""
    seen: Table = {}

    def ask() -> bool:
        answer = server.get("/whoami")
        seen[answer["name"]] = answer
        return len(seen) == 2

    wait_until(ask, "an answer from two workers")
    return seen


def changed(server: Server, before: Table, names: set[str]) -> Table:
    """Wait until exactly `names` have a new process each, and none of the replaced ones is left."""

    def look() -> Table:
        now = server.settled(len(before))
        new = {name for name, entry in now.items() if entry["pid"] != before.get(name, entry)["pid"]}
        gone = {before[name]["pid"] for name in names}.isdisjoint(server.processes())
        return now if new == names and gone else {}

    return wait_until(look, f"new processes under {sorted(names)}")


def test_two_workers_answer_each_under_its_own_name_and_pid(server: Server, workers: Table) -> None:
    seen = both(server)
    assert set(seen) == {"Sanic-Server-0-0", "Sanic-Server-1-0"} == set(workers)
    for name, me in seen.items():
        assert me["pid"] == me["m_pid"] == workers[name]["pid"]
        assert me["m_name"] == name
        assert me["parent"] == server.pid
        assert me["worker_process"] == "true"


def test_the_identifier_in_the_environment_is_the_prefix_of_the_log(server: Server) -> None:
    seen = both(server)
    if STOCK and seen["Sanic-Server-0-0"]["identifier"] is None:
        pytest.skip("this release of the stock manager sets none")
    assert [seen[name]["identifier"] for name in sorted(seen)] == ["Srv 0", "Srv 1"]


@pytest.mark.ours
def test_each_worker_has_a_session_of_its_own(server: Server) -> None:
    assert all(me["session"] == me["pid"] for me in both(server).values())


@pytest.mark.ours
def test_the_application_of_a_worker_has_our_multiplexer(server: Server) -> None:
    assert {me["multiplexer"].partition(".")[0] for me in both(server).values()} == {"worker"}


def all_reported(server: Server) -> bool:
    """Whether the main process and the workers have written all that they write about a start."""
    entries = [entry for name, entry in server.table().items() if name != "Sanic-Main"]
    is_pure = os.environ.get("WORKER_CORE") == "pure"
    return all(entry.get("phase") == "ready" and (is_pure or entry.get("stoppable")) for entry in entries)


def test_the_table_of_a_fresh_server(tmp_path: Any) -> None:
    with Server.run("apps.cluster:app", cwd=tmp_path) as server:
        server.wait_ready()
        server.settled(2)
        if not STOCK:
            # The phase is the main process's word; it follows the worker's own.
            wait_until(lambda: all_reported(server), "the phases")
        table = server.table()
        assert table.pop("Sanic-Main") == {"pid": server.pid}
        assert set(table) == {"Sanic-Server-0-0", "Sanic-Server-1-0"}
        for entry in table.values():
            ours = {"phase", "ready_at", "stoppable", "stopping", *MEASURED}
            keys = set(entry) - {"restart_at"} - (set() if STOCK else ours)
            assert keys == {"server", "state", "pid", "start_at", "starts", "serving"}
            assert entry["server"] is True
            assert entry["serving"] is True
            assert entry["state"] == "ACKED"
            assert entry["starts"] == 1
            assert entry.get("restart_at") is None
            assert entry["start_at"]["offset"] == 0
        own = server.get("/state")
        # A beat may have come in between.
        for entry in (own, *table.values()):
            for key in MEASURED:
                entry.pop(key, None)
        assert own in table.values()
        assert server.stop() == 0


def test_keys_set_by_one_worker_are_visible_to_the_other(server: Server) -> None:
    seen = both(server)
    who = server.post("/state", {"hits": 3, "note": {"deep": ["x"]}})["name"]
    other = next(name for name in seen if name != who)

    def asked_the_other() -> bool:
        return bool(server.get("/whoami")["name"] == other)

    wait_until(asked_the_other, "an answer from the other worker")
    entry = server.table()[who]
    assert entry["hits"] == 3
    assert entry["note"] == {"deep": ["x"]}


def test_keys_set_by_a_worker_are_kept_after_its_restart(server: Server, workers: Table) -> None:
    who = server.post("/state", {"kept": "yes"})["name"]
    server.post("/m/restart", {"name": who})
    assert changed(server, workers, {who})[who]["kept"] == "yes"


@pytest.mark.parametrize(
    "key", ["health", "pid", "requests", "restart_at", "server", "start_at", "starts", "state"]
)
def test_restricted_keys_are_refused(server: Server, key: str) -> None:
    answer = server.post("/state", {key: 1})
    assert answer["error"].strip("'") == f"Cannot set restricted key on WorkerState: {key}"


def test_a_name_and_all_workers_at_once_is_ambiguous(server: Server) -> None:
    error = server.post("/m/restart", {"name": "Sanic-Server-0-0", "all_workers": True})["error"]
    assert error == "ValueError: Ambiguous restart with both a named process and all_workers=True"


@pytest.mark.parametrize("zero_downtime", [False, True])
def test_a_worker_restarts_itself(server: Server, workers: Table, zero_downtime: bool) -> None:
    who = server.post("/m/restart", {"zero_downtime": zero_downtime})["name"]
    before, after = workers[who], changed(server, workers, {who})[who]
    assert after["starts"] == before["starts"] + 1
    assert after["start_at"] == before["start_at"]
    assert after["restart_at"]["offset"] == 0
    assert datetime.fromisoformat(after["restart_at"]["iso"]) > datetime.fromisoformat(
        after["start_at"]["iso"]
    )


@pytest.mark.parametrize("zero_downtime", [False, True])
def test_all_workers_restart(server: Server, workers: Table, zero_downtime: bool) -> None:
    server.post("/m/restart", {"all_workers": True, "zero_downtime": zero_downtime})
    after = changed(server, workers, set(workers))
    assert {name: entry["starts"] for name, entry in after.items()} == {
        name: entry["starts"] + 1 for name, entry in workers.items()
    }


def test_named_workers_restart(server: Server, workers: Table) -> None:
    first, second = sorted(workers)
    server.post("/m/restart", {"name": second})
    after = changed(server, workers, {second})
    server.post("/m/reload", {"name": f"{first}, {second}"})
    changed(server, after, {first, second})


def test_a_restart_of_an_unknown_name_is_logged(server: Server, workers: Table) -> None:
    mark = server.mark()
    server.post("/m/restart", {"name": "Sanic-Nobody-0,Sanic-Nobody-1"})
    line = server.wait_line("Failed to restart processes", since=mark)
    assert line.text.endswith("Failed to restart processes: Sanic-Nobody-0, Sanic-Nobody-1")
    assert line.stream == "err"
    assert {n: e["pid"] for n, e in server.settled(2).items()} == {n: e["pid"] for n, e in workers.items()}


def test_a_zero_downtime_restart_refuses_no_request(server: Server, workers: Table) -> None:
    with load(server) as failures:
        for _ in range(2):
            before = server.settled(2)
            server.post("/m/restart", {"all_workers": True, "zero_downtime": True})
            changed(server, before, set(before))
    # A connection that the stopping worker has accepted and not read from yet is closed by Sanic's own stop.
    # Answering it too is draining, which is not promised here. A refused connection, or one that waits, would
    # be downtime.
    unread = ("RemoteDisconnected", "ConnectionResetError")
    assert [failure for failure in failures if not failure.startswith(unread)] == []


def test_scaling_up_and_down(server: Server, workers: Table) -> None:
    mark = server.mark()
    server.post("/m/scale", {"num_workers": 4})
    server.wait_line("Scaling from 2 to 4 workers", since=mark)
    grown = server.settled(4)
    assert set(workers) < set(grown)
    server.post("/m/scale", {"num_workers": 2})
    server.wait_line("Scaling from 4 to 2 workers", since=mark)
    server.settled(2)
    pids = {entry["pid"] for entry in grown.values()}
    wait_until(lambda: len(pids.intersection(server.processes())) == 2, "two workers gone")
    wait_until(
        lambda: len([e for e in server.table().values() if e.get("server")]) == 2, "no dead entry left"
    )


def test_scaling_to_the_current_number_changes_nothing(server: Server) -> None:
    server.settled(2)
    mark = server.mark()
    server.post("/m/scale", {"num_workers": 2})
    server.wait_line(r"No change needed\. There are already 2 workers\.", since=mark)
    server.settled(2)


def test_a_killed_worker_is_logged_and_can_be_restarted(run: Callable[..., Server]) -> None:
    """Disable the restart policy, so that no process replaces it."""
    env = {"SANIC_WORKER_RESTART_POLICY": "never"}
    server = run("apps.cluster:app", env=env).wait_ready()
    before = server.settled(2)
    mark = server.mark()
    with pytest.raises((OSError, HTTPException)):
        server.request("POST", "/die")
    (victim,) = [name for name, entry in before.items() if entry["pid"] not in server.processes()]
    if not STOCK:
        line = server.wait_line("SIGKILL", since=mark)
        assert victim in line.text
        assert str(before[victim]["pid"]) in line.text
    wait_until(lambda: server.table()[victim]["state"] == "FAILED", "the dead one FAILED")
    server.post("/m/restart", {"name": victim})
    assert server.settled(2)[victim]["starts"] == before[victim]["starts"] + 1
