"""The process for probes under a manager of its own, without Sanic's startup and without an inspector."""

from __future__ import annotations

import http.client
import json
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from integration.tools import free_port
from support.running import House, until

pytestmark = [pytest.mark.usefixtures("main_is_heard"), pytest.mark.slow]


def probe(port: int, path: str) -> Any:
    """Return the status of a probe, and its JSON; empty while nothing listens."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection, suppress(OSError):
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    return ()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_manager_runs_it_if_the_setting_names_a_port(tmp_path: Path, method: str) -> None:
    port = free_port()
    house = House(tmp_path, number=2, method=method, health_port=port)

    def act() -> None:
        house.said("ready", 2)
        house.until("Sanic-Health-0", server=False)
        until(lambda: probe(port, "/readyz")[:1] == (200,), "two ready servers")
        assert probe(port, "/readyz")[1]["workers_wanted"] == 2
        assert probe(port, "/livez") == (200, {"status": "ok"})

    house.run(act)
    assert probe(port, "/livez") == ()


def test_it_is_not_restarted_with_the_servers(tmp_path: Path) -> None:
    port = free_port()
    house = House(tmp_path, number=1, health_port=port)

    def act() -> None:
        house.said("ready")
        pid = until(lambda: house.entry("Sanic-Health-0").get("pid"), "the process for probes")
        house.send("__ALL_PROCESSES__:")
        house.said("ready", 2)
        assert house.entry("Sanic-Health-0")["pid"] == pid
        until(lambda: probe(port, "/readyz")[:1] == (200,), "the new server")

    house.run(act)
