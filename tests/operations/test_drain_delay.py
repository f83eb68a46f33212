"""A server under load is stopped as by an orchestrator, which learns of the stop from `/readyz` alone."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from signal import SIGTERM
from time import monotonic

import pytest
from integration.harness import Server
from integration.tools import free_port, wait_until

pytestmark = [pytest.mark.operations, pytest.mark.slow]

# Longer than the test needs until its clients have stopped, on a machine that stalls.
DELAY = 8.0
# How long a load balancer takes to act on a probe that has failed, seconds.
PROPAGATION = 0.5


class Clients:
    """Send requests, on connections of their own and on kept ones, until the endpoint is taken out."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._is_over = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(kept,)) for kept in (False, False, True, True)
        ]
        self.failures: list[str] = []
        self.answered: Counter[str] = Counter()
        self.stage = "serving"
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, kept: bool) -> None:
        connection = HTTPConnection("127.0.0.1", self._server.port, timeout=30)
        with closing(connection):
            while not self._is_over.is_set():
                stage = self.stage
                try:
                    # Closed by the answer, or by this client: then the next request opens it again.
                    connection.request("GET", "/whoami", headers={} if kept else {"Connection": "close"})
                    answer = connection.getresponse()
                    answer.read()
                    assert answer.status == 200
                except (OSError, HTTPException, AssertionError) as error:
                    self.failures.append(f"{stage}, {'kept' if kept else 'new'} connection: {error!r}")
                    connection.close()
                else:
                    self.answered[stage] += 1


def test_no_request_is_lost_when_the_endpoint_is_taken_out_after_readyz_has_failed(tmp_path: Path) -> None:
    probes = free_port()
    args = [f"--health-port={probes}", f"--drain-delay={DELAY}"]
    with Server.run("apps.cluster:app", *args, cwd=tmp_path) as server:
        server.wait_ready()
        wait_until(lambda: status(server, probes) == 200, "a server that is ready")
        clients = Clients(server)
        try:
            wait_until(lambda: clients.answered["serving"] > 100, "requests")
            clients.stage = "after SIGTERM"
            began = monotonic()
            server.signal(SIGTERM)
            # The endpoint controller: it asks every 20 ms, and acts a while later.
            wait_until(lambda: status(server, probes) == 503, "a probe that fails", timeout=DELAY)
            clients.stage = "after the probe has failed"
            failed = monotonic()
            wait_until(
                lambda: monotonic() >= failed + PROPAGATION and clients.answered[clients.stage],
                "answers after that",
                timeout=DELAY,
            )
        finally:
            clients.stop()
        assert server.exit_code is None
        assert server.wait() == 0
        assert monotonic() - began >= DELAY
        assert clients.failures == []
        assert clients.answered["after the probe has failed"] > 0
        server.wait_line("The drain delay is over")


def status(server: Server, port: int) -> int:
    try:
        return server.request("GET", "/readyz", port=port).status
    except (OSError, HTTPException):
        return 0
