"""Names the address in the error of a server that cannot listen on it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import wraps
from typing import Any

from sanic.exceptions import ServerError

from worker._system.errors import BeginError

__all__ = ["AddressError", "naming_address"]

# The largest number of characters of an address in an error.
LIMIT = 200

ADVICE = {
    errno.EADDRINUSE: "Another process listens there: stop it, or choose another port.",
    errno.EADDRNOTAVAIL: "No network interface of this machine has that address.",
    errno.EACCES: "This user may not listen there: ports below 1024 may be reserved for root.",
}


class AddressError(BeginError):
    """The server cannot listen on an address; the message has the address, the reason and the remedy."""


def naming_address(configure_socket: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    """Wrap Sanic's function that binds the socket of a server, so that its errors name the address."""

    @wraps(configure_socket)
    def call(server_settings: dict[str, Any]) -> Any:
        address = _address(server_settings)[:LIMIT]
        try:
            return configure_socket(server_settings)
        except (OSError, OverflowError, ServerError) as failed:
            # Sanic 23.12 and 24.12 hide the error behind one of their own.
            error = failed.__context__ if isinstance(failed, ServerError) else failed
            code = getattr(error, "errno", None)
            reason = getattr(error, "strerror", None) or str(error)
            advice = ADVICE.get(code, "") if code else ""
            raise AddressError(code, f"Cannot listen on {address}: {reason}. {advice}".strip()) from failed

    return call


def _address(server_settings: dict[str, Any]) -> str:
    if unix := server_settings.get("unix"):
        return str(os.path.abspath(unix))
    host, port = server_settings.get("host"), server_settings.get("port")
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
