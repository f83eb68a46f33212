"""Ports of this machine that no other process takes."""

from __future__ import annotations

import socket


def hold_port(host: str = "127.0.0.1") -> socket.socket:
    """Return a socket that keeps a free port of an address until it is closed.

    The system gives the port to no other socket, but a server that sets ``SO_REUSEADDR``, as that of Sanic
    does, can listen on it, again and again.
    """
    held = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind((host, 0))
    return held
