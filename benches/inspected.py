"""Measure an inspector: ``inspected.py CONTENDER WORKERS AMOUNT IDLE`` prints JSON.

The state has an entry for each worker, as that of a server. The inspector runs in a process of its own. One
client asks again and again over one connection, then none does for a while.
"""

from __future__ import annotations

import json
import logging
import socket
import sys
from contextlib import suppress
from importlib import import_module
from statistics import median
from time import monotonic, perf_counter, sleep
from typing import Any

from sanic.helpers import Default
from servers import free_port
from stated import CONTEXT, NOW, state_of
from usage import used


class Publisher:
    """Sends nothing: no request here is a command."""

    def send(self, message: Any) -> None:
        """Refuse a command."""
        raise AssertionError(message)


def entry(number: int) -> dict[str, Any]:
    """Return the entry of a worker, as a server under way has it."""
    return {
        "server": True,
        "state": "ACKED",
        "pid": 4000 + number,
        "start_at": NOW,
        "starts": 3,
        "restart_at": NOW,
        "ready_at": NOW,
        "serving": True,
        "phase": "ready",
        "restarts": 2,
    }


def serve(inspector: Any) -> None:
    """Run the inspector, in its process."""
    # A server of production writes no access log by default.
    logging.disable(logging.CRITICAL)
    inspector()


def ask(client: socket.socket) -> bytes:
    """Return the body of one answer. A client library would take longer than the inspector."""
    client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    answer = bytearray()
    while True:
        answer += client.recv(65_536)
        head, end, body = answer.partition(b"\r\n\r\n")
        if end and len(body) >= int(head.lower().partition(b"content-length:")[2].split()[0]):
            return bytes(body)


def connected(port: int) -> socket.socket:
    """Return a connection, once there is a listener."""
    began = monotonic()
    while True:
        with suppress(ConnectionError):
            return socket.create_connection(("127.0.0.1", port), 10)
        assert monotonic() - began < 10, "no inspector"
        sleep(0.01)


def main() -> None:
    """Start the inspector, measure, print the result."""
    contender, workers, amount, idle = sys.argv[1:]
    if contender == "stock":
        kind = import_module("sanic.worker.inspector").Inspector
    else:
        kind = import_module("worker.inspector").Inspector
    with state_of(contender) as (state, _):
        for number in range(int(workers)):
            state[f"Sanic-Server-{number}-0"] = entry(number)
        port = free_port()
        inspector = kind(Publisher(), {"app": "bench"}, state, "127.0.0.1", port, "", Default(), Default())
        process = CONTEXT.Process(target=serve, args=(inspector,))
        process.start()
        client = connected(port)
        samples = []
        for _ in range(int(amount)):
            before = perf_counter()
            body = ask(client)
            samples.append(perf_counter() - before)
        assert len(json.loads(body)["result"]["workers"]) == int(workers)
        client.close()
        # The end of the connection is handled before the inspector is idle.
        sleep(0.5)
        assert process.pid is not None
        switches, _ = used(process.pid)
        sleep(float(idle))
        switches = used(process.pid)[0] - switches
        process.kill()
        process.join()
    print(json.dumps({"milliseconds": median(samples) * 1e3, "switches": switches / float(idle)}))


if __name__ == "__main__":
    main()
