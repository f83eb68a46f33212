"""Talks to the service manager, by the protocol of systemd (``sd_notify(3)``).

The variables of the protocol are meant for one process. :func:`take_environment` takes them out of the
environment, so that no child of that process has them.
"""

from __future__ import annotations

import os
import socket
from array import array
from collections.abc import Sequence

from sanic.log import logger

__all__ = [
    "LISTEN_FDNAMES",
    "LISTEN_FDS",
    "LISTEN_PID",
    "PERSONAL",
    "WATCHDOG_PID",
    "environment",
    "forget",
    "is_notified",
    "notify",
    "store_limit",
    "take_environment",
    "watchdog_seconds",
]

LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES = "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"
SOCKET, WATCHDOG, WATCHDOG_PID, STORE = "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "FDSTORE"
# The variables that are meant for one process alone.
PERSONAL = (LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES, SOCKET, WATCHDOG, WATCHDOG_PID)
# How long a service manager that does not read its socket may delay the main process, seconds.
TIMEOUT = 0.5
# A longer datagram may not be taken.
MAX_VALUE = 1000

_taken: dict[str, str] = {}
# A forked child has a copy of these variables.
_pid = 0
_has_warned = False


def take_environment() -> None:
    """Take the variables of the protocol out of the environment, for this process alone."""
    global _pid, _has_warned
    found = {name: os.environ.pop(name, "") for name in (SOCKET, WATCHDOG, WATCHDOG_PID, STORE)}
    # A later call in the same process finds nothing, and must not forget.
    if found[SOCKET]:
        _taken.update(found)
        _pid, _has_warned = os.getpid(), False


def environment() -> dict[str, str]:
    """Return the variables for another main process, which takes the place of this one.

    Its pid is not known yet: it puts that in the place of a 0 (:func:`worker._system.handover.join`).
    """
    if not is_notified():
        return {}
    watchdog_pid = {WATCHDOG_PID: "0"} if watchdog_seconds() is not None else {WATCHDOG: ""}
    return {name: value for name, value in {**_taken, **watchdog_pid}.items() if value}


def forget() -> None:
    """Leave the service to another process: this one is no longer heard."""
    global _pid
    _pid = 0


def is_notified() -> bool:
    """Return whether a service manager has given this process a socket to notify it by."""
    return _pid == os.getpid() and bool(_taken[SOCKET])


def watchdog_seconds() -> float | None:
    """Return the time within which the service manager expects the next ``WATCHDOG=1``, seconds.

    Returns:
        float | None: ``None``: it expects none of this process.
    """
    if not is_notified() or _taken[WATCHDOG_PID] not in ("", str(os.getpid())):
        return None
    usec = _number(_taken[WATCHDOG])
    return usec / 1e6 if usec else None


def store_limit() -> int:
    """Return how many descriptors the service manager keeps for this service; 0: none."""
    return _number(_taken[STORE]) if is_notified() else 0


def notify(fds: Sequence[int] = (), /, **fields: str | int) -> bool:
    """Send one message to the service manager.

    Args:
        fds (Sequence[int]): Descriptors to send along. Defaults to none.
        **fields: The fields of the message: ``READY=1``.

    Returns:
        bool: Whether it was sent. A message that cannot be sent is logged once, and has no other effect.
    """
    global _has_warned
    if not is_notified():
        return False
    text = "\n".join(f"{name}={_line(value)}" for name, value in fields.items())
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
    address = _taken[SOCKET]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(TIMEOUT)
            # An abstract socket.
            target = f"\0{address[1:]}" if address.startswith("@") else address
            sender.sendmsg([text.encode(errors="replace")], rights, 0, target)
    except (OSError, ValueError) as error:
        if not _has_warned:
            logger.warning("Cannot notify the service manager at %s: %s", address[:MAX_VALUE], error)
        _has_warned = True
        return False
    return True


def _line(value: str | int) -> str:
    """Return a value as a part of one line."""
    return " ".join(str(value).split())[:MAX_VALUE]


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() else 0
