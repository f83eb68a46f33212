"""Finds the address of the inspector: options, the environment, or the one server of this user."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from worker._system.runtime import RunningServer, directories, is_private, is_running
from worker.cli.inspect.exits import CommandError, ExitCode
from worker.cli.inspect.text import one_line

__all__ = ["Address", "find", "parse"]

DEFAULT_HOST = "localhost"
DEFAULT_PORT = 6457
PORTS = range(65536)
# A server that listens on all addresses is reached on the loopback one.
LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}
UNIX = "unix:"


class Address(NamedTuple):
    """Where an inspector listens: a host and a port, or the path of a unix socket."""

    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    tls: bool = False
    unix: str = ""

    def __str__(self) -> str:
        if self.unix:
            return UNIX + self.unix
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"


def find(options: Mapping[str, Any], environment: Mapping[str, str]) -> Address:
    """Return the address of the inspector.

    Options come first, then ``SANIC_WORKER_INSPECTOR_UNIX``, then ``SANIC_INSPECTOR_HOST`` and
    ``SANIC_INSPECTOR_PORT``, then the one server of this user that runs here, then Sanic's default.

    Args:
        options (Mapping[str, Any]): The given ones of ``host``, ``port``, ``unix`` and ``secure``.
        environment (Mapping[str, str]): The environment of the process.

    Raises:
        CommandError: An option or a variable is wrong, or several servers run.
    """
    where = _find(options, environment)
    if not options.get("secure"):
        return where
    if where.unix:
        raise CommandError(f"--secure cannot be combined with {where}: it has no TLS", ExitCode.USAGE)
    return where._replace(tls=True)


def _find(options: Mapping[str, Any], environment: Mapping[str, str]) -> Address:
    host, port = options.get("host"), options.get("port")
    # Like the server, which takes both.
    tls = all(environment.get(f"SANIC_INSPECTOR_TLS_{name}") for name in ("KEY", "CERT"))
    if unix := options.get("unix"):
        if host or port:
            raise CommandError("--unix cannot be combined with --host or --port", ExitCode.USAGE)
        return Address(unix=unix)
    host_there = environment.get("SANIC_INSPECTOR_HOST")
    if host or port:
        port = port or _port_in(environment) or DEFAULT_PORT
        return parse(str(host or host_there or DEFAULT_HOST), tls, port)
    # The server opens no port then.
    if unix := environment.get("SANIC_WORKER_INSPECTOR_UNIX"):
        return Address(unix=unix)
    port_there = _port_in(environment)
    # With port 0 the system has chosen one, which only the file of the server tells.
    if port_there or (host_there and port_there is None):
        return parse(host_there or DEFAULT_HOST, tls, port_there or DEFAULT_PORT)
    found = running()
    if len(found) > 1:
        shown = "".join(f"\n  {_name(one)} [{one['pid']}]  {_option(one['url'])}" for one in found)
        raise CommandError(f"{len(found)} servers run here. Choose one of them:{shown}", ExitCode.USAGE)
    return parse(found[0]["url"], tls) if found else Address(tls=tls)


def parse(text: str, tls: bool = False, port: int = DEFAULT_PORT) -> Address:
    """Return the address in a URL, a host with or without a port, or ``unix:<path>``.

    Args:
        text (str): The address.
        tls (bool): Whether an address without a scheme has TLS.
        port (int): The port of an address without one.

    Raises:
        CommandError: It is none.
    """
    if text.startswith(UNIX):
        return Address(unix=text[len(UNIX) :])
    url_text = text
    if "://" not in text:
        # An IPv6 address alone needs no brackets.
        url_text = f"//[{text}]" if text.count(":") > 1 and "[" not in text else f"//{text}"
    try:
        url = urlsplit(url_text, "https" if tls else "http")
        host, port = url.hostname or "", url.port or port
    except ValueError:
        host = ""
    if not host or url.scheme not in ("http", "https"):
        message = f"{one_line(text)!r} is neither a host, with or without a port, nor a URL of http or https"
        raise CommandError(message, ExitCode.USAGE)
    return Address(LOOPBACK.get(host, host), port, url.scheme == "https")


def running() -> list[RunningServer]:
    """Return the servers of this user that have left a file for this command, by pid."""
    found = {}
    for directory in directories():
        # Any user may create a directory in /tmp, with an address of his own in it.
        if not is_private(directory):
            continue
        for path in Path(directory).glob("*.json"):
            # A file may be of another format, or of a server that was killed.
            with suppress(OSError, ValueError, KeyError, TypeError, OverflowError):
                server: RunningServer = json.loads(path.read_bytes())
                if is_running(server):
                    found[server["pid"], str(server["app"]), str(server["url"])] = server
    return [found[key] for key in sorted(found)]


def _port_in(environment: Mapping[str, str]) -> int | None:
    text = environment.get("SANIC_INSPECTOR_PORT")
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and int(text) in PORTS):
        message = f"SANIC_INSPECTOR_PORT cannot be {one_line(text)!r}: it takes a port, from 0 to {PORTS[-1]}"
        raise CommandError(message, ExitCode.USAGE)
    return int(text)


def _name(server: RunningServer) -> str:
    return one_line(server["app"] or "") or "(no name)"


def _option(url: str) -> str:
    option = f"--unix {url[len(UNIX) :]}" if url.startswith(UNIX) else f"--host {url}"
    return one_line(option)
