"""Serves an application in a process of its own: that of the inspector, or of the probes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from socket import socket
from typing import Any

from sanic import Sanic
from sanic.http.tls import process_to_context

from worker._inspect.connections import Connection, Handshake
from worker._state.shared import SharedState

__all__ = ["serve"]

# The time from one check whether the server runs to the next, seconds.
TRY_AGAIN = 0.02


def serve(
    app: Sanic[Any, Any], sock: socket, state: Mapping[str, Any], tls: Mapping[str, Any] | None = None
) -> None:
    """Serve an application until the process is stopped.

    Args:
        app (Sanic): The application.
        sock (socket): The listening socket.
        state (Mapping[str, Any]): The state of all processes.
        tls (Mapping[str, Any] | None): The key and the certificate. Defaults to none: no TLS.
    """
    # A forked process also has the served applications, and would serve them beside its own.
    for served in Sanic._app_registry.values():
        if served is not app:
            served.state.server_info.clear()
    app.after_server_start(partial(_show_stoppable, state))
    app.ctx.tls = process_to_context(dict(tls)) if tls else None
    protocol = Handshake if tls else Connection
    app.run(sock=sock, single_process=True, protocol=protocol)


def _show_stoppable(state: Mapping[str, Any], app: Any) -> None:
    """Show in the state, once the loop runs for good, that a stop signal cannot be lost any more."""
    if not app.state.is_running:
        app.loop.call_later(TRY_AGAIN, _show_stoppable, state, app)
    elif isinstance(state, SharedState):
        state.flag(stoppable=True)
