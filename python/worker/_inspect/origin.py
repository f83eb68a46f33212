"""Checks the origin of a request to the inspector, without a key.

A browser sends requests on behalf of any page that it shows. It describes them in headers that the page
cannot set: ``Host``, ``Origin`` and ``Sec-Fetch-*``.
"""

from __future__ import annotations

import re
from contextlib import suppress
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from socket import AI_NUMERICHOST, getaddrinfo, socket
from typing import NamedTuple

from sanic.request import Request

__all__ = ["is_loopback", "refusal_reason"]

LOCALHOST = "localhost"
_AUTHORITY = r"(?ai:\[([0-9a-f:.]+)\]|([\w.-]+))(?::([0-9]{0,5}))?"
_ORIGIN = r"(?i:(https?)://(.+))"
_PORTS = {"http": "80", "https": "443"}
# The values of Sec-Fetch-Site for a request that no other site has caused.
_OWN_SITES = {"same-origin", "none"}

Address = IPv4Address | IPv6Address


class Authority(NamedTuple):
    """A host and a port, in a form that can be compared."""

    host: str
    port: str


def is_loopback(sock: socket) -> bool:
    """Return whether only this machine reaches the address that a TCP socket is bound to."""
    return _plain(ip_address(sock.getsockname()[0])).is_loopback


def refusal_reason(request: Request, scheme: str) -> str:
    """Return why a request may come from a foreign web page; empty if nothing shows that.

    Args:
        request (Request): The request.
        scheme (str): ``http`` or ``https``, as the inspector is served.
    """
    hosts, origins, sites, modes = (
        [value.strip() for value in request.headers.getall(name, [])]
        for name in ("host", "origin", "sec-fetch-site", "sec-fetch-mode")
    )
    if len(hosts) > 1 or len(origins) > 1:
        return "it has several Host or Origin headers"
    # A browser speaks HTTP/1.1 and names the host. Probes that speak HTTP/1.0 may leave it out.
    if not hosts and (origins or request.version != "1.0"):
        return "it has no Host header"
    own = _authority(hosts[0], scheme) if hosts else None
    # The name of an attacker may resolve to this machine. An address or localhost cannot be redirected.
    if hosts and own is None:
        return f"its Host, {hosts[0][:100]!r}, is neither an IP address nor {LOCALHOST}"
    if origins and _origin(origins[0]) != (scheme, own):
        return f"its Origin, {origins[0][:100]!r}, is not the inspector's own"
    is_link = request.method == "GET" and modes == ["navigate"]
    if not is_link and not _OWN_SITES.issuperset(site.lower() for site in sites):
        return f"another site caused it (Sec-Fetch-Site: {', '.join(sites)[:100]})"
    return ""


def _origin(text: str) -> tuple[str, Authority | None] | None:
    found = re.fullmatch(_ORIGIN, text)
    return (found[1].lower(), _authority(found[2], found[1].lower())) if found else None


@lru_cache(maxsize=64)
def _authority(text: str, scheme: str) -> Authority | None:
    """Return a host with its port; ``None`` where the host is neither an IP address nor localhost.

    All names and addresses of this machine for itself are one host.
    """
    found = re.fullmatch(_AUTHORITY, text)
    if found is None:
        return None
    host = (found[1] or found[2].removesuffix(".")).lower()
    if host != LOCALHOST:
        address = _address(host)
        if address is None:
            return None
        host = LOCALHOST if address.is_loopback else str(address)
    return Authority(host, found[3] or _PORTS[scheme])


def _address(host: str) -> Address | None:
    # Browsers take the short forms of IPv4 (127.1) for addresses as well, and never ask a name server.
    with suppress(OSError, ValueError):
        return _plain(ip_address(getaddrinfo(host, None, flags=AI_NUMERICHOST)[0][4][0]))
    return None


def _plain(address: Address) -> Address:
    """Return the IPv4 address where an IPv6 address stands for one."""
    return getattr(address, "ipv4_mapped", None) or address
