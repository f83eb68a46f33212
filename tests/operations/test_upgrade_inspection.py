"""The inspector and its command show an upgrade from its request to its end."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from integration.harness import Server
from integration.test_inspection import Inspected
from integration.tools import free_port, wait_until

from .upgrading import Upgraded, write

pytestmark = [pytest.mark.operations, pytest.mark.slow, pytest.mark.timeout(300)]


class TestInspector:
    @pytest.fixture
    def inspected(self, tmp_path: Path) -> Iterator[Inspected]:
        port, health = free_port(), free_port()
        environment = {
            "SANIC_INSPECTOR": "true",
            "SANIC_INSPECTOR_PORT": str(port),
            "SANIC_WORKER_HEALTH_PORT": str(health),
        }
        write(tmp_path, 1)
        with Upgraded.run("upgraded:app", cwd=tmp_path, env=environment) as server:
            found = Inspected(server.wait_ready(), port)
            wait_until(lambda: reachable(found), "the inspector")
            server.settled(2)
            yield found

    def test_an_operation_is_followed_to_its_end(self, inspected: Inspected) -> None:
        server, first = inspected.server, inspected.server.pid
        answer = inspected.request("POST", "/upgrade", b"{}", **{"Content-Type": "application/json"})
        assert answer.status == 200
        location = answer.headers["Location"]
        # Either of both knows it.
        ended = wait_until(lambda: outcome(inspected, location), "the outcome", 40)
        assert (ended["kind"], ended["status"], ended["by"]) == ("upgrade", "done", "inspector 127.0.0.1")
        pid = int(server_pid(server, ended["text"]))
        wait_until(lambda: status(inspected).get("pid") == pid, "the inspector of the new main process")
        wait_until(lambda: first not in server.processes(), "the end of the first main process")
        assert outcome(inspected, location) == ended
        events = inspected.request("GET", "/events").json["result"]["events"]
        (event,) = [one for one in events if one["type"] == "upgrade_ended"]
        assert (event["outcome"], event["pid"], event["reason"]) == ("done", pid, "")
        # A taken address during an upgrade is no error.
        assert server.log("err") == ""

    def test_the_command_waits_for_the_outcome(self, inspected: Inspected) -> None:
        command = [sys.executable, "-m", "worker", "inspect", "-p", str(inspected.port), "upgrade", "--wait"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert re.fullmatch(
            r"Upgrade [0-9a-f]{12} done in .*: the main process \[\d+\] serves\n", ended.stdout
        )
        wait_until(lambda: reachable(inspected), "the new inspector")

    def test_a_failure_is_an_outcome(self, inspected: Inspected) -> None:
        write(inspected.server.cwd, "= 1")
        command = [sys.executable, "-m", "worker", "inspect", "-p", str(inspected.port), "upgrade", "--wait"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert ended.returncode != 0
        assert "it exited before its workers served" in ended.stderr
        events = inspected.request("GET", "/events").json["result"]["events"]
        types = [one["type"] for one in events if one["type"].startswith("upgrade")]
        assert types == ["upgrade_requested", "upgrade_ended"]


def reachable(inspected: Inspected) -> bool:
    with suppress(OSError):
        return inspected.request("GET", "/status").status == 200
    return False


def status(inspected: Inspected) -> dict[str, Any]:
    with suppress(OSError):
        found: dict[str, Any] = inspected.request("GET", "/status").json["result"]["server"]
        return found
    return {}


def outcome(inspected: Inspected, location: str) -> dict[str, Any]:
    with suppress(OSError):
        found: dict[str, Any] = inspected.request("GET", location).json["result"]
        return found if found["status"] in ("done", "failed") else {}
    return {}


def server_pid(server: Server, text: str) -> str:
    found = re.fullmatch(r"the main process \[(\d+)\] serves", text)
    assert found is not None, text
    return found[1]
