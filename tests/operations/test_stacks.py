"""A worker of a real server hangs, and an operator looks at its stacks; the main process is stopped."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from time import monotonic
from typing import Any

import pytest
from integration.harness import Server
from integration.tools import MODULE, environment, free_port, wait_until

pytestmark = [pytest.mark.operations, pytest.mark.native, pytest.mark.slow]

NAME = "Sanic-Server-0-0"
# An answer takes 1 s on a machine that is not busy.
PROMPTLY = 10.0


class Hanging:
    """A server with one worker, and its inspector."""

    def __init__(self, server: Server, port: int) -> None:
        self.server = server
        self.port = port

    def stacks(self, name: str = NAME) -> dict[str, Any]:
        began = monotonic()
        found = self.server.post("/stacks", {"name": name}, port=self.port)["result"]
        assert monotonic() - began < PROMPTLY
        return dict(found)

    def stacks_with(self, line: str) -> dict[str, Any]:
        return dict(wait_until(lambda: (found := self.stacks())["text"].count(line) and found, line))

    def request(self, path: str) -> closing[HTTPConnection]:
        """Send a request that is not answered."""
        connection = HTTPConnection("127.0.0.1", self.server.port, timeout=30)
        connection.request("GET", path)
        self.server.wait_events("hangs", way=path.rpartition("/")[2])
        return closing(connection)


@pytest.fixture(params=["spawn", "fork"])
def hanging(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Hanging]:
    port = free_port()
    env = {
        "SANIC_INSPECTOR": "true",
        "SANIC_INSPECTOR_PORT": str(port),
        "SANIC_WORKER_GRACEFUL_TIMEOUT": "1",
        # The worker stays as it is.
        "SANIC_WORKER_HANG_TIMEOUT": "3600",
    }
    with Server.run(
        "apps.supervised:app", cwd=tmp_path, workers=1, env=env, start_method=request.param
    ) as server:
        server.wait_ready()
        found = Hanging(server, port)
        wait_until(lambda: answers(found), "the inspector")
        try:
            yield found
        finally:
            server.signal(SIGCONT, to="all")


def answers(hanging: Hanging) -> bool:
    try:
        return hanging.stacks()["way"] == "interpreter"
    except (AssertionError, OSError):
        return False


def test_a_blocked_worker_tells_its_stacks_without_the_main_process(hanging: Hanging) -> None:
    with hanging.request("/hang/sleeps"):
        hanging.server.signal(SIGSTOP)
        found = hanging.stacks_with("WAYS[way]()")
        assert found["way"] == "interpreter"
        assert "  GET /hang/sleeps, for " in found["text"]
        hanging.server.signal(SIGCONT)


def test_the_command_shows_a_worker_that_spins(hanging: Hanging) -> None:
    with hanging.request("/hang/spins"):
        hanging.stacks_with("in spins")
        command = [sys.executable, "-m", MODULE, "inspect", "stacks", NAME, "-H", f"127.0.0.1:{hanging.port}"]

        def shown(*args: str) -> str:
            done = subprocess.run(
                [*command, *args], env=environment({}), capture_output=True, text=True, timeout=60
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        # On a busy machine, the interpreter may answer too late.
        way = "as its interpreter tells"
        text = wait_until(lambda: way in (found := shown()).splitlines()[0] and found, way)
        assert ", in spins\n" in text
        wait_until(lambda: json.loads(shown("--json"))["way"] == "interpreter", "the same as JSON")


def test_several_operators_get_an_answer_each(hanging: Hanging) -> None:
    with hanging.request("/hang/spins"):
        hanging.stacks_with("in spins")

        def all_at_once() -> bool:
            found: list[dict[str, Any]] = []
            threads = [threading.Thread(target=lambda: found.append(hanging.stacks())) for _ in range(5)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return ["in spins" in one["text"] for one in found] == [True] * 5

        wait_until(all_at_once, "five answers of the interpreter")


def test_a_stopped_worker_is_described_by_the_kernel(hanging: Hanging) -> None:
    with hanging.request("/hang/stopped"):
        found = wait_until(lambda: (one := hanging.stacks())["way"] == "kernel" and one, "the stop")
        assert "stopped by a signal (state T)" in found["text"]


def test_the_inspector_and_the_main_process_are_described_too(hanging: Hanging) -> None:
    for name in ("Sanic-Inspector-0", "Sanic-Main"):
        assert hanging.stacks(name)["way"] == "kernel"
