"""Checks the key of a request, and slows down a client that guesses it."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from hmac import compare_digest
from inspect import isawaitable
from ipaddress import IPv4Address, ip_address, ip_network
from time import monotonic
from typing import Any

from sanic.exceptions import SanicException, Unauthorized
from sanic.log import error_logger
from sanic.request import Request

from worker._inspect.requests import client

__all__ = ["Guard", "TooManyFailures", "is_key"]

# The first failures of a client are answered after the first delay. Each further one doubles it.
FREE = 5
FIRST_DELAY = 0.1
MAX_DELAY = 2.0
# The largest number of failures of one client that wait for their answer at the same time.
MAX_WAITING = 8
# The same for all clients together. Requests with the right key have the rest of the connections.
MAX_WAITING_OF_ALL = 40
# The number of clients that are remembered, and for how long after their last failure, seconds.
MAX_CLIENTS = 1000
FORGET_AFTER = 60.0
# The largest number of lines in a minute, of all clients together.
MAX_LINES = 20
SPAN = 60.0
# One site has this part of the addresses of IPv6.
PREFIX = 64

Check = Callable[[Request], Awaitable[None] | None]


class TooManyFailures(SanicException):
    """A client has guessed too often, so this failure gets no answer of its own."""

    status_code = 429
    quiet = True


class _Failures:
    """The failures of one client."""

    def __init__(self) -> None:
        self.count = 0
        self.waiting = 0
        self.last = 0.0


class Guard:
    """Middleware that lets requests pass a check of their key.

    The answer to a failed request is delayed, the more the more often its client has failed. A right key is
    never delayed nor refused, also while others of its address guess. The memory is bounded.

    Args:
        check (Callable): Raises ``Unauthorized`` unless a request has the key.
        stopping (asyncio.Event): Ends all delays.
        max_delay (float): The longest delay, seconds; 0 for none. Defaults to 2.
        max_waiting (int): The largest number of delayed answers of one client. Defaults to 8.
    """

    def __init__(
        self,
        check: Check,
        stopping: asyncio.Event,
        *,
        max_delay: float = MAX_DELAY,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        self._check = check
        self._stopping = stopping
        self._max_delay = max_delay
        self._max_waiting = max_waiting
        self._waiting = 0
        self._failures: OrderedDict[str, _Failures] = OrderedDict()
        self._lines = 0
        self._span_began = monotonic()

    async def __call__(self, request: Request) -> None:
        """Check a request.

        Raises:
            Unauthorized: It does not have the key.
            TooManyFailures: It does not, and too many failures wait already.
        """
        try:
            outcome = self._check(request)
            if isawaitable(outcome):
                await outcome
        except Unauthorized:
            await self._delay(_network(client(request)))
            raise

    async def _delay(self, address: str) -> None:
        failures = self._failed(address)
        if failures.waiting >= self._max_waiting or self._waiting >= MAX_WAITING_OF_ALL:
            raise TooManyFailures(
                f"{failures.count} requests from {address} had a bad API key; try again later",
                headers={"Retry-After": str(int(self._max_delay) or 1)},
            ) from None
        delay = min(FIRST_DELAY * 2.0 ** min(max(failures.count - FREE, 0), 16), self._max_delay)
        self._log(address, failures.count, delay)
        failures.waiting += 1
        self._waiting += 1
        try:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay)
        finally:
            failures.waiting -= 1
            self._waiting -= 1

    def _failed(self, address: str) -> _Failures:
        now = monotonic()
        failures = self._failures.setdefault(address, _Failures())
        if now - failures.last > FORGET_AFTER:
            failures.count = 0
        failures.count += 1
        failures.last = now
        self._failures.move_to_end(address)
        if len(self._failures) > MAX_CLIENTS:
            self._failures.popitem(last=False)
        return failures

    def _log(self, address: str, count: int, delay: float) -> None:
        # The first failure, the second, the fourth, and so on: a flood makes few lines.
        if count & (count - 1):
            return
        now = monotonic()
        if now - self._span_began > SPAN:
            self._span_began, self._lines = now, 0
        self._lines += 1
        if self._lines <= MAX_LINES:
            error_logger.warning(
                "Inspector refused a request from %s: bad API key (%s in a row). Answering after %.1f s.%s",
                address,
                count,
                delay,
                "" if self._lines < MAX_LINES else " Further such lines are left out for a minute.",
            )


def is_key(token: Any, key: Any) -> bool:
    """Return whether a token is the key, in a time that does not tell where they differ."""
    first, second = (str(one).encode(errors="surrogatepass") for one in (token or "", key))
    return compare_digest(first, second)


def _network(address: str) -> str:
    """Return the name of a client: for IPv6 its network, which has more addresses than fit into memory."""
    try:
        ip = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(ip, IPv4Address):
        return str(ip)
    # A socket of IPv6 shows all clients of IPv4 in one network.
    return str(ip.ipv4_mapped or ip_network((str(ip), PREFIX), strict=False))
