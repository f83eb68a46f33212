"""Binds the sockets of the applications, or takes those that the service manager has passed."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any, NamedTuple

from sanic import Sanic
from sanic.http.constants import HTTP
from sanic.log import logger

from worker import settings
from worker._system import activation, systemd, unix
from worker._system.activation import Listener
from worker._system.address import naming_address
from worker.integration.beginning import begin

__all__ = ["bind"]

# The permissions that Sanic gives a unix socket.
UNIX_MODE = 0o666


class _Place(NamedTuple):
    """Where the settings of a server belong.

    Attributes:
        name: The name of the application.
        is_only: Whether there are no other servers.
        is_last: Whether the sockets of all other servers are bound.
        is_managed: Whether a manager follows.
    """

    name: str
    is_only: bool
    is_last: bool
    is_managed: bool


def bind(server_settings: dict[str, Any], configure_socket: Callable[..., Any]) -> Listener | None:
    """Make the socket of a server, in its settings.

    Args:
        server_settings (dict[str, Any]): The settings. The socket that the application gives stays.
        configure_socket (Callable): Sanic's function.

    Returns:
        Listener | None: Sanic closes it at the end. ``None``: the workers make their socket themselves.

    Raises:
        BeginError: The address cannot be bound; or the pid file or the user of the settings is not possible.
    """
    place = _place(server_settings)
    listener = _take(server_settings, place)
    if listener is None:
        sock = naming_address(lambda given: _bind(given, configure_socket))(server_settings)
        if sock is not None:
            listener = activation.listen(Listener(sock, path=server_settings.get("unix") or ""))
    if place.is_last:
        begin(is_managed=place.is_managed)
        for name in activation.release():
            # One that it has kept was bound by a main process before, for an address that is not in use now.
            if name.startswith(activation.PREFIX):
                systemd.notify(FDSTOREREMOVE=1, FDNAME=name)
            else:
                logger.warning("No application listens on the socket %r of the service manager", name)
    return listener


def _bind(server_settings: dict[str, Any], configure_socket: Callable[..., Any]) -> Any:
    if not server_settings.get("unix"):
        return configure_socket(server_settings)
    # As text: at the end, Sanic 23.12 removes only a path that is text.
    path = server_settings["unix"] = os.path.abspath(server_settings["unix"])
    mode = settings.resolve({}).unix_mode
    sock = unix.bind(path, UNIX_MODE if mode is None else mode, server_settings["backlog"])
    server_settings["sock"] = sock
    return sock


def _take(server_settings: dict[str, Any], place: _Place) -> Listener | None:
    """Take a socket of the service manager, if one is meant for this server."""
    if server_settings.get("version") is HTTP.VERSION_3 or server_settings.get("sock") is not None:
        return None
    host, port, path = (server_settings.get(key) for key in ("host", "port", "unix"))
    path = os.path.abspath(path) if path else None
    found = activation.take(host, port, path=path, name=place.name, is_only=place.is_only)
    if found is None:
        return None
    given, taken = path or activation.joined(host, port), activation.address(found.sock)
    if not found.is_bound_here:
        other = f" (in place of {given})" if given != taken else ""
        logger.info("%s listens on %s, a socket of the service manager%s", place.name, taken, other)
    is_unix = found.sock.family == socket.AF_UNIX
    server_settings.update(sock=found.sock, unix=(path or taken) if is_unix else None)
    if not is_unix:
        # As Sanic does with a socket that it has bound.
        server_settings.update(host=None, port=None)
    return found


def _place(server_settings: dict[str, Any]) -> _Place:
    servers = [(app, info) for app in Sanic._app_registry.values() for info in app.state.server_info]
    for number, (app, info) in enumerate(servers, 1):
        if info.settings is server_settings:
            return _Place(app.name, len(servers) == 1, number == len(servers), True)
    # A server of a single process has a copy.
    return _Place(str(server_settings.get("app_name", "")), len(servers) <= 1, True, False)
