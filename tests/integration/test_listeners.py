"""The order of listeners, and how often each runs."""

from __future__ import annotations

from collections.abc import Callable

from .harness import Server

Run = Callable[..., Server]

MAIN = ["main_process_start", "main_process_ready"]
STOP = ["stop registered last", "stop registered first", "before_server_stop", "after_server_stop"]


def sequence(server: Server, process: str) -> list[str]:
    """Return the names of one process's journal entries, with the step where there is one."""
    return [
        f"{event.name} {event.fields['step']}" if "step" in event.fields else event.name
        for event in server.output.events
        if event.process == process
    ]


def test_the_order_of_listeners(run: Run) -> None:
    # With a canary, the listeners of two processes of one name mix.
    env = {"ORDERED": "1", "SANIC_WORKER_CANARY": "off"}
    server = run("apps.cluster:app", env=env).wait_ready()
    server.settled(2)
    server.post("/m/restart", {"name": "Sanic-Server-1-0"})
    server.wait_events("after_server_start", 2, process="Sanic-Server-1-0")
    server.wait_ready()
    server.settled(2)
    assert server.stop() == 0

    # A listener of higher priority comes first, in any order of registration.
    start = ["start first", "before_server_start", "start late", "after_server_start"]
    assert sequence(server, "Sanic-Server-0-0") == [*start, *STOP]
    assert sequence(server, "Sanic-Server-1-0") == [*start, *STOP, *start, *STOP]
    assert sequence(server, "") == [*MAIN, "main_process_stop"]

    names = [event.name for event in server.output.events]
    assert names[:2] == MAIN
    assert names[-1] == "main_process_stop"
    assert {event.pid for event in server.output.events if not event.process} == {server.pid}
