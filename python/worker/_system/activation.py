"""The sockets that the main process listens on, and those that it was given by a service manager.

A service manager passes listening sockets as the descriptors from 3 on (``sd_listen_fds(3)``). So does a main
process whose place is taken by another one. A socket that has another holder outlives this process, so its
listener is *shared*: at the end it is closed, and not shut down.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple
from urllib.parse import quote

from sanic.log import logger

from worker._system import unix
from worker._system.systemd import LISTEN_FDNAMES, LISTEN_FDS, LISTEN_PID

__all__ = [
    "FIRST",
    "PREFIX",
    "Listener",
    "address",
    "close_all",
    "environment",
    "inherited",
    "joined",
    "listen",
    "listeners",
    "release",
    "take",
]

FIRST = 3
"""The first descriptor that is passed."""
# The names of sockets that were bound by a main process begin with this.
PREFIX = "sanic-worker="
# The name of a socket that was passed without one (`sd_listen_fds_with_names(3)`).
UNNAMED = "unknown"
# The addresses that stand for every address of the machine.
ANY = frozenset({"", "0.0.0.0", "::"})


class Inherited(NamedTuple):
    """A socket that was passed to this process.

    Attributes:
        name: The name that it was passed by.
        sock: The socket. It listens.
    """

    name: str
    sock: socket.socket


class Listener:
    """A socket that this process listens on. Sanic shuts down and closes it at the end.

    Args:
        sock (socket): The socket.
        name (str): The name to pass it by. Defaults to one made from its address.
        path (str): The path of a unix socket that this process is to remove. Defaults to none.
        is_shared (bool): Whether another process may go on with it. Defaults to ``False``.
    """

    def __init__(
        self, sock: socket.socket, name: str = "", path: str = "", *, is_shared: bool = False
    ) -> None:
        self.sock = sock
        self.name = name or _name(path or address(sock))
        self.is_shared = is_shared
        self._path = path

    def fileno(self) -> int:
        """Return the descriptor of the socket."""
        return self.sock.fileno()

    @property
    def is_bound_here(self) -> bool:
        """Whether the socket was bound by this process, or by a main process before it."""
        return self.name.startswith(PREFIX)

    def share(self) -> None:
        """Leave the socket, and its path, to other processes at the end."""
        self.is_shared = True
        unix.keep(self._path)

    def own(self) -> None:
        """End the sharing: the process that had bound the socket has left it, and its path, to this one."""
        self.is_shared = False
        if self._path:
            unix.adopt(self._path)

    def shutdown(self, how: int) -> None:
        """Refuse connections, unless the socket is shared: this holds for every holder of the socket."""
        if not self.is_shared:
            self.sock.shutdown(how)

    def close(self) -> None:
        """Close the socket in this process."""
        self.sock.close()
        with suppress(ValueError):
            _listeners.remove(self)


_inherited: list[Inherited] | None = None
_listeners: list[Listener] = []


def inherited() -> list[Inherited]:
    """Return the sockets that were passed to this process and are not taken.

    The first call takes their variables out of the environment, and lets no program that this process starts
    inherit them.
    """
    global _inherited
    found = [os.environ.pop(name, "") for name in (LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES)]
    if found[0] == str(os.getpid()):
        _inherited = [*_receive(*found[1:])]
    elif _inherited is None:
        _inherited = []
    return _inherited


def take(
    host: str | None, port: int | None, *, path: str | None = None, name: str = "", is_only: bool = False
) -> Listener | None:
    """Take the inherited socket that an application is to listen on.

    The order of choice is: the one of its address, the one of its port, the one of its name, the only one.

    Args:
        host (str | None): The host that it was to listen on.
        port (int | None): The port.
        path (str | None): The path of the unix socket, in place of host and port. Defaults to none.
        name (str): The name of the application. Defaults to none.
        is_only (bool): Whether no other application listens. Defaults to ``False``.

    Returns:
        Listener | None: ``None``: there is no such socket.
    """
    sockets = inherited()
    chosen = next((one for one in sockets if _is_at(one, host, port, path)), None)
    # A socket of ours is for its address alone: another one may be meant by now.
    others = [one for one in sockets if not one.name.startswith(PREFIX)]
    if chosen is None and path is None and port:
        chosen = next((one for one in others if _port(one.sock) == port), None)
    if chosen is None and name:
        chosen = next((one for one in others if one.name == name), None)
    if chosen is None and is_only and len(others) == 1:
        chosen = others[0]
    if chosen is None:
        return None
    sockets.remove(chosen)
    if chosen in others:
        return listen(Listener(chosen.sock, chosen.name, is_shared=True))
    listener = listen(Listener(chosen.sock, chosen.name, path or "", is_shared=True))
    # Imported on use: few main processes take a socket.
    from worker._system.handover import predecessor

    # A main process that still runs may go on with it.
    if predecessor() is None:
        listener.own()
    return listener


def listen(listener: Listener) -> Listener:
    """Keep a listener among those of this process."""
    _listeners.append(listener)
    return listener


def listeners() -> list[Listener]:
    """Return the listeners of this process."""
    return [*_listeners]


def environment() -> dict[str, str]:
    """Return the variables for another main process.

    It gets the sockets of :func:`listeners`, in order, as its descriptors from 3 on. Its pid is not known
    yet: it puts that in the place of a 0 (:func:`worker._system.handover.join`).
    """
    if not _listeners:
        return {}
    names = ":".join(listener.name for listener in _listeners)
    return {LISTEN_PID: "0", LISTEN_FDS: str(len(_listeners)), LISTEN_FDNAMES: names}


def release() -> list[str]:
    """Close the inherited sockets that were not taken; return their names."""
    unused = [*inherited()]
    inherited().clear()
    for one in unused:
        one.sock.close()
    return [one.name for one in unused]


def close_all() -> None:
    """Close every socket of this module that is still open."""
    release()
    for listener in listeners():
        listener.close()


def address(sock: socket.socket) -> str:
    """Return the address of a socket as text: ``127.0.0.1:8000``, ``[::1]:8000``, or a path."""
    found = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return str(_path(sock))
    return joined(found[0], found[1])


def joined(host: str | None, port: int | None) -> str:
    """Return a host and a port as text, as :func:`address` does."""
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"


def _receive(count: str, names: str) -> Iterator[Inherited]:
    named = names.split(":") if names else []
    number = int(count) if count.isascii() and count.isdecimal() else 0
    for index, fd in enumerate(range(FIRST, FIRST + number)):
        try:
            os.set_inheritable(fd, False)
            sock = socket.socket(fileno=fd)
        except OSError as error:
            logger.warning("Descriptor %d, passed by the service manager, is no socket: %s", fd, error)
            continue
        name = (named[index] if index < len(named) else "") or UNNAMED
        if sock.type == socket.SOCK_STREAM and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            yield Inherited(name, sock)
        else:
            # It may be meant for the application.
            sock.detach()
            logger.warning("Descriptor %d (%s) of the service manager does not listen: not used", fd, name)


def _is_at(one: Inherited, host: str | None, port: int | None, path: str | None) -> bool:
    """Return whether a socket has this address. Sanic renames the file of a unix socket after it is bound."""
    if path is not None:
        return _path(one.sock) == path or one.name == _name(path)
    return _port(one.sock) == port and port is not None and one.sock.getsockname()[0] in _resolved(host or "")


def _name(text: str) -> str:
    # A name is ASCII, and holds no colon.
    return PREFIX + quote(text, safe="/")


def _path(sock: socket.socket) -> str | None:
    if sock.family != socket.AF_UNIX:
        return None
    found = sock.getsockname()
    text = os.fsdecode(found)
    return f"@{text[1:]}" if text.startswith("\0") else text


def _port(sock: socket.socket) -> int | None:
    return None if sock.family == socket.AF_UNIX else int(sock.getsockname()[1])


def _resolved(host: str) -> frozenset[str]:
    """Return the addresses that a host stands for."""
    if host in ANY:
        return ANY
    with suppress(OSError, UnicodeError):
        return frozenset(str(found[4][0]) for found in socket.getaddrinfo(host, None))
    return frozenset()
