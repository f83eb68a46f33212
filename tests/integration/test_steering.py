"""An operator steers a server over HTTP: operations that tell how they end, events, and hostile clients."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from http.client import HTTPConnection, HTTPException
from signal import SIGKILL
from time import monotonic
from typing import Any

import pytest

from .harness import Response, Server
from .test_inspection import Inspected, inspect, inspecting
from .tools import TIMEOUT, free_port, wait_until

pytestmark = pytest.mark.ours

ONE, TWO = "Sanic-Server-0-0", "Sanic-Server-1-0"
INSPECTOR = "Sanic-Inspector-0"


@pytest.fixture(scope="module")
def inspected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inspected]:
    with inspecting(tmp_path_factory.mktemp("steered")) as found:
        yield found


def act(inspected: Inspected, action: str, prefer: str = "", **arguments: Any) -> Response:
    headers = {"Content-Type": "application/json", **({"Prefer": prefer} if prefer else {})}
    return inspected.request("POST", f"/{action}", json.dumps(arguments).encode(), **headers)


def pids(inspected: Inspected) -> dict[str, int]:
    return {name: entry["pid"] for name, entry in inspected.server.settled(2).items()}


class TestOperations:
    @pytest.mark.parametrize("zero_downtime", [False, True])
    def test_a_reload_is_followed_to_its_end(self, inspected: Inspected, zero_downtime: bool) -> None:
        before = pids(inspected)
        answer = act(inspected, "reload", "respond-async", zero_downtime=zero_downtime)
        assert answer.status == 202
        operation = answer.json["result"]
        assert answer.headers["Location"] == f"/operations/{operation['id']}"
        assert re.fullmatch("[0-9a-f]{12}", operation["id"])
        ended = inspected.request("GET", f"{answer.headers['Location']}?wait=30").json["result"]
        assert (ended["status"], ended["done"], ended["total"]) == ("done", 2, 2)
        assert ended["by"] == "inspector 127.0.0.1"
        assert ended["seconds"] > 0
        # It tells the truth: both have been replaced by now.
        assert set(pids(inspected).values()).isdisjoint(before.values())

    def test_a_restart_of_one_worker_replaces_it_alone(self, inspected: Inspected) -> None:
        before = pids(inspected)
        answer = act(inspected, "restart", "wait=30", names=[ONE], zero_downtime=True)
        assert (answer.status, answer.headers["Preference-Applied"]) == (200, "wait=30")
        assert (answer.json["result"]["status"], answer.json["result"]["total"]) == ("done", 1)
        after = pids(inspected)
        assert after[ONE] != before[ONE]
        assert after[TWO] == before[TWO]

    def test_a_scaling_up_and_down(self, inspected: Inspected) -> None:
        pids(inspected)
        for replicas, number in (("+1", 3), ("-1", 2)):
            answer = act(inspected, "scale", replicas=replicas)
            assert (answer.status, answer.json["result"]) == (200, f"Scaling to {number}")
            ended = inspected.request("GET", f"{answer.headers['Location']}?wait=30").json["result"]
            assert (ended["kind"], ended["status"], ended["total"]) == ("scale", "done", 1)
            inspected.server.settled(number)

    def test_a_restart_of_the_inspector_is_refused(self, inspected: Inspected) -> None:
        """The inspector runs until the server stops; the manager does not restart it."""
        answer = act(inspected, "restart", "wait=30", names=[INSPECTOR])
        assert answer.status == 400
        assert "names has a process that no restart m" in answer.json["message"]

    def test_all_operations_are_listed(self, inspected: Inspected) -> None:
        idents = [act(inspected, "scale", "wait=30", replicas=2).json["result"]["id"] for _ in range(2)]
        listed = inspected.request("GET", "/operations").json["result"]["operations"]
        assert [one["id"] for one in listed[:2]] == idents[::-1]

    def test_the_log_names_the_client(self, inspected: Inspected) -> None:
        since = inspected.server.mark()
        act(inspected, "restart", "wait=30", names=[TWO])
        inspected.server.wait_line("Restart of 1 process requested by inspector 127.0.0.1", since=since)

    @pytest.mark.parametrize(
        ("action", "arguments", "part"),
        [
            ("restart", {"names": ["x"]}, ONE),
            ("scale", {"replicas": 100_000}, "at most"),
            ("nothing", {}, "reload, restart, "),
        ],
    )
    def test_a_refusal_names_the_allowed_values(
        self, inspected: Inspected, action: str, arguments: dict[str, Any], part: str
    ) -> None:
        since = inspected.server.mark()
        answer = act(inspected, action, **arguments)
        assert answer.status in (400, 404)
        assert part in answer.json["message"]
        assert not any("Scaling" in line.text for line in inspected.server.output.lines[since:])

    def test_sanic_s_own_client_restarts_a_worker(self, inspected: Inspected) -> None:
        before = pids(inspected)
        done = inspect(inspected, "restart", ONE, f"--port={inspected.port}")
        assert done.returncode == 0, done
        wait_until(lambda: pids(inspected)[ONE] != before[ONE], "another process")
        assert pids(inspected)[TWO] == before[TWO]


class TestEvents:
    def test_a_restart_is_seen_as_it_happens(self, inspected: Inspected) -> None:
        with closing(HTTPConnection("127.0.0.1", inspected.port, timeout=TIMEOUT)) as connection:
            connection.request("GET", "/status?interval=60", headers={"Accept": "text/event-stream"})
            with closing(connection.getresponse()) as stream:
                answer = act(inspected, "restart", "respond-async", names=[ONE])
                ident = answer.json["result"]["id"]
                seen: list[dict[str, Any]] = []
                # The previous process accepts no more before the operation ends. It may exit after that.
                while not {"operation_ended", "process_exited"} <= {event["type"] for event in seen}:
                    line = stream.readline()
                    assert line, seen
                    if line.startswith(b"data: ") and b'"seq"' in line:
                        seen.append(json.loads(line[6:]))
        kinds = [event["type"] for event in seen]
        assert {"restart_requested", "process_started", "rollout_step"} <= {*kinds}
        assert seen[kinds.index("operation_ended")]["operation"] == ident
        numbers = [event["seq"] for event in seen]
        assert numbers == list(range(numbers[0], numbers[-1] + 1))
        listed = inspected.request("GET", f"/events?since={numbers[0] - 1}").json["result"]
        assert listed["events"][: len(seen)] == seen


class TestHostileClients:
    def test_they_hold_neither_the_workers_nor_a_restart_nor_the_stop(
        self, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        port = free_port()
        cwd = tmp_path_factory.mktemp("attacked")
        with (
            Server.run("apps.inspected:app", cwd=cwd, env={"SANIC_INSPECTOR_PORT": str(port)}) as server,
            ExitStack() as stack,
        ):
            server.wait_ready()
            server.settled(2)
            inspected = Inspected(server, port)
            wait_until(inspected.listens, "the inspector")
            self.attack(port, stack)
            before = pids(inspected)
            assert act(inspected, "reload", "wait=30").json["result"]["status"] == "done"
            assert set(pids(inspected).values()).isdisjoint(before.values())
            first = server.table()[INSPECTOR]["pid"]
            os.kill(first, SIGKILL)
            wait_until(lambda: answers(inspected), "the inspector is back on its port")
            assert server.table()[INSPECTOR]["pid"] != first
            # The events are still there: the main process has written them.
            events = inspected.request("GET", "/events").json["result"]["events"]
            assert any(
                event.get("slot") == INSPECTOR and event.get("signal") == "SIGKILL" for event in events
            )
            self.attack(port, stack)
            began = monotonic()
            assert server.stop() == 0
            assert monotonic() - began < 10

    @staticmethod
    def attack(port: int, stack: ExitStack) -> None:
        """Open connections of each hostile kind."""
        stream = b"GET /status?interval=0.2 HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"
        header = b"GET / HTTP/1.1\r\nX-Endless: "
        body = b"POST /scale HTTP/1.1\r\nHost: localhost\r\nContent-Length: 60000\r\n\r\n"
        for sent in [b""] * 100 + [stream] * 10 + [header, body] * 10:
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), TIMEOUT))
            sock.sendall(sent)


def answers(inspected: Inspected) -> bool:
    try:
        return inspected.request("GET", "/").status == 200
    except (OSError, HTTPException):
        return False
