"""Sends a request over a connection that exists already."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from http.client import HTTPConnection

__all__ = ["get"]


def get(
    sock: socket.socket, address: tuple[str, int], path: str, more: Sequence[tuple[str, str]], is_tls: bool
) -> tuple[int, int]:
    """Send a GET request; return the status and the size of the response in bytes.

    Args:
        sock (socket.socket): The connection. It is closed at the end.
        address (tuple[str, int]): The host and the port of the server, for the header ``Host``.
        path (str): The path.
        more (Sequence[tuple[str, str]]): More headers, or others in place of those sent by default.
        is_tls (bool): Whether the server speaks TLS. Its certificate is not verified.

    Raises:
        OSError: The connection broke, or there was no TLS handshake.
        http.client.HTTPException: The response is none of HTTP.
    """
    host, port = address
    shown = f"[{host}]" if ":" in host else host
    headers = {
        "Host": shown if port == (443 if is_tls else 80) else f"{shown}:{port}",
        "User-Agent": "sanic-worker check",
        "Connection": "close",
    }
    replaced = {name.lower() for name, _ in more}
    connection = HTTPConnection(shown)
    connection.sock = sock
    try:
        if is_tls:
            named = next((value for name, value in more if name.lower() == "host"), headers["Host"])
            context = ssl._create_unverified_context()
            connection.sock = context.wrap_socket(sock, server_hostname=_without_port(named))
        connection.putrequest("GET", path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            if name.lower() not in replaced:
                connection.putheader(name, value)
        for name, value in more:
            connection.putheader(name, value.encode())
        connection.endheaders()
        response = connection.getresponse()
        return response.status, len(response.read())
    finally:
        connection.close()


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdecimal() else host).strip("[]")
