"""Where the inspector listens: a TCP address, with or without TLS, or a unix socket."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from ipaddress import ip_address
from socket import socket
from typing import Any
from urllib.parse import urlsplit

from sanic.log import error_logger, logger
from sanic.server.socket import bind_socket

from worker._inspect.origin import is_loopback
from worker._inspect.succession import Succession
from worker._state.foreign import adapted
from worker._system import runtime, unix
from worker.constants import NAME_LIMIT, excerpt

__all__ = ["Address", "AddressRefusedError", "Succession"]

# The time from one try to take an address that is in use to the next, seconds.
RETRY_INTERVAL = 3.0
# Only this user may connect to the unix socket. It needs no key therefore.
UNIX_MODE = 0o600
BACKLOG = 100
PORTS = range(65_536)


class AddressRefusedError(Exception):
    """The inspector must not listen on its address, or never can. The text is the reason and the remedy."""


@dataclass(frozen=True)
class Address:
    """The address on which an inspector is to listen.

    Attributes:
        host: The host.
        port: The port. With 0 the system chooses one, which is kept when the inspector is started again.
        unix: The path of a unix socket; empty for TCP.
        is_secure: Whether the inspector serves TLS over TCP.
        may_be_open: Whether other machines may reach it: a key protects it, or the operator allows it.
        succession: The main process before this one, whose inspector may still have the address.
    """

    host: str
    port: Any
    unix: str = ""
    is_secure: bool = False
    may_be_open: bool = False
    succession: Succession | None = None

    @property
    def url(self) -> str:
        """The URL, as it is configured."""
        host = f"[{self.host}]" if ":" in str(self.host) else self.host
        return self._url(host, self.port or "<any free port>")

    def check(self) -> None:
        """Check, in the main process, whether an inspector may be started that listens here.

        Raises:
            AddressRefusedError: It may not.
        """
        # Any port suffices. An address that cannot be bound now is left to the inspector, which waits for it.
        if not self.unix:
            with suppress(OSError), self._bound(0):
                pass

    @contextmanager
    def listening(self, state: Any, app: str, main_pid: int) -> Iterator[socket]:
        """Listen while the body runs, as soon as the address is free.

        The URL is meanwhile in the state entry of the calling process and in a file for the user's commands
        (:mod:`worker._system.runtime`).

        Args:
            state (Mapping[str, Any]): The state of all processes.
            app (str): The name of the application.
            main_pid (int): The pid of the main process.

        Raises:
            AddressRefusedError: The inspector must not listen here.
        """
        entry = _entry(state)
        with self._taken(_port_of(entry)) as sock:
            url = self._url_of(sock)
            _show(state, url)
            started = entry.get("start_at") or datetime.now(tz=timezone.utc)
            _announce({"pid": main_pid, "app": app, "url": url, "started": started.isoformat()})
            try:
                yield sock
            finally:
                sock.close()
                self.clean_up(main_pid)

    def clean_up(self, main_pid: int) -> None:
        """Remove the files of an inspector that has ended. A signal may have ended it before it did so."""
        runtime.remove(main_pid)
        if self.unix:
            unix.remove_stale(self.unix)

    def _taken(self, kept_port: int) -> socket:
        """Return the listening socket; wait until the address is free."""
        port, waited = self.port or kept_port, False
        while True:
            try:
                sock = self._bound(port)
            except OSError as error:
                if not self.port and port:
                    # Another process has taken the port that the system chose before.
                    port = 0
                    continue
                if self.succession is not None and self.succession.awaits_address():
                    continue
                if not waited:
                    self._report(error)
                waited = True
                time.sleep(RETRY_INTERVAL)
            else:
                if waited or not (self.port or self.unix):
                    logger.info("Inspector listens on %s", self._url_of(sock))
                return sock

    def _bound(self, port: Any) -> socket:
        """Return a socket that listens.

        Raises:
            OSError: The address is in use, or there is no such address now.
            AddressRefusedError: The inspector must not listen here.
        """
        if self.unix:
            return unix.bind(self.unix, UNIX_MODE, BACKLOG)
        try:
            if self.port not in PORTS:
                raise ValueError(f"a port is a whole number from 0 to {PORTS[-1]}")
            sock = bind_socket(self.host, port)
        except (TypeError, ValueError) as error:
            raise AddressRefusedError(
                f"{self._cannot(error)}. Set INSPECTOR_HOST and INSPECTOR_PORT."
            ) from None
        if self.may_be_open or is_loopback(sock):
            return sock
        with sock:
            raise AddressRefusedError(
                f"on {excerpt(self.host, NAME_LIMIT) or repr(self.host)} ({sock.getsockname()[0]}) any "
                "client that reaches this machine could stop the server. Set INSPECTOR_API_KEY, or set "
                "INSPECTOR_HOST to localhost, or allow this with SANIC_WORKER_INSPECTOR_OPEN=true."
            )

    def _cannot(self, error: Exception) -> str:
        where = self.unix or f"{excerpt(self.host, NAME_LIMIT)}:{excerpt(self.port, NAME_LIMIT)}"
        reason = getattr(error, "strerror", None) or error
        return f"cannot listen on {where}: {excerpt(reason)}"

    def _report(self, error: OSError) -> None:
        error_logger.error(
            "Inspector %s. The server runs without it. Trying again every %g s. For another address, set %s.",
            self._cannot(error),
            RETRY_INTERVAL,
            "inspector_unix" if self.unix else "INSPECTOR_PORT or INSPECTOR_HOST",
        )

    def _url_of(self, sock: socket) -> str:
        """Return the URL for a client on this machine."""
        if self.unix:
            return self._url("", "")
        host, port = sock.getsockname()[:2]
        ip = ip_address(host)
        if ip.is_unspecified:
            host = "::1" if ip.version == 6 else "127.0.0.1"
        elif self.is_secure:
            # A certificate usually bears the name.
            host = self.host
        return self._url(f"[{host}]" if ":" in host else host, port)

    def _url(self, host: str, port: Any) -> str:
        return f"unix:{self.unix}" if self.unix else f"http{'s' * self.is_secure}://{host}:{port}"


def _entry(state: Any) -> Mapping[str, Any]:
    """Return the address and the first start from the entry of the calling process; empty without one."""
    with suppress(KeyError, OSError, EOFError, MemoryError, RuntimeError):
        return adapted(state).read_keys(multiprocessing.current_process().name, ("address", "start_at"))
    return {}


def _show(state: Any, url: str) -> None:
    try:
        adapted(state).update_entry(multiprocessing.current_process().name, {"address": url})
    except (KeyError, OSError, EOFError, MemoryError, RuntimeError) as error:
        logger.debug("The address of the inspector cannot be shown in the state: %s", error)


def _port_of(entry: Mapping[str, Any]) -> int:
    with suppress(ValueError):
        return urlsplit(str(entry.get("address", ""))).port or 0
    return 0


def _announce(server: runtime.RunningServer) -> None:
    try:
        runtime.write(server)
    except OSError as error:
        logger.debug("The inspector cannot be announced to the commands of this user: %s", error)
