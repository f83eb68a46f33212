"""Sends the status and the events of a server to clients as they come (server-sent events)."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from math import inf
from typing import Any, Protocol

from sanic import Sanic
from sanic.exceptions import ServiceUnavailable
from sanic.log import error_logger
from sanic.request import Request
from sanic.response import HTTPResponse

from worker._inspect.requests import query
from worker._inspect.responses import reading_state
from worker._state.event_log import last_seq, read_events

__all__ = ["Streams"]

Respond = Callable[[Request, Any], Awaitable[HTTPResponse]]

MIME = "text/event-stream"
# The largest number of streams. Each takes a little work per interval.
MAX_STREAMS = 16
# The largest number of events that wait in the buffer of a client. The others wait in the state.
MAX_BUFFERED = 200
# The time in which a client must take one piece, and the longest pause between two, seconds.
SEND_TIMEOUT = 10.0
KEEP_ALIVE = 15.0
# The time after which a client that was disconnected comes back, milliseconds.
RETRY = 1000
# The time from one look for events to the next, while there is a client, seconds.
LOOK_AGAIN = 0.25
# The range of the interval between two statuses, and its default, seconds.
INTERVALS = (0.2, 60.0)
INTERVAL = 1.0
MAX_SEQ = 2**53


class Source(Protocol):
    """Makes the status of the server: :class:`worker._inspect.status.Sampler`."""

    def status(self) -> dict[str, Any]:
        """Return the status of now."""


class _Client:
    """One stream.

    Args:
        last (int): The number of the last event that the client has.
        interval (float | None): The time between two statuses, seconds; ``None`` for none.
    """

    def __init__(self, last: int, interval: float | None) -> None:
        self.last = last
        self._interval = interval
        # The number of the interval in which the next status is due, from the start of the clock.
        self._turn = 0
        self._status = ""
        self._events: deque[str] = deque()
        self._filled = asyncio.Event()
        self.has_ended = False

    def take_turn(self, now: float) -> bool:
        """Return whether a status is due; clients of one interval are due at the same time."""
        if self._interval is None:
            return False
        # The end of an interval is a rounded number: with the clock at it, it may count as not reached.
        turn = int(now // self._interval)
        is_due = turn >= self._turn
        if is_due:
            self._turn = turn + 1
        return is_due

    def pause(self, now: float) -> float:
        """Return the time until a status is due, seconds."""
        return inf if self._interval is None else self._turn * self._interval - now

    def put_status(self, text: str) -> None:
        """Buffer a status; it takes the place of one that was not sent yet."""
        self._status = text
        self._filled.set()

    def put_event(self, event: Mapping[str, Any]) -> None:
        """Buffer an event, unless the client has it, or too many wait: then it is offered once more."""
        if event["seq"] > self.last and len(self._events) < MAX_BUFFERED:
            self.last = event["seq"]
            self._events.append(_piece("event", event, self.last))
            self._filled.set()

    async def next(self) -> str:
        """Return all that is buffered, once there is something; a comment after a long pause."""
        try:
            await asyncio.wait_for(self._filled.wait(), KEEP_ALIVE)
        except asyncio.TimeoutError:
            return ": keep-alive\n\n"
        self._filled.clear()
        text = "".join(self._events) + self._status
        self._events.clear()
        self._status = ""
        return text

    def end(self) -> None:
        """End the stream, as soon as its last piece is sent."""
        self.has_ended = True
        self._filled.set()


class Streams:
    """All streams. One task feeds them, and runs only while there is one.

    Args:
        state (Mapping): The state of all processes.
        source (Source): Makes the status, once for all clients that are due.
        stopping (asyncio.Event): Set when the inspector stops.
    """

    def __init__(self, state: Mapping[str, Any], source: Source, stopping: asyncio.Event) -> None:
        self._state = state
        self._source = source
        self._stopping = stopping
        self._clients: set[_Client] = set()
        self._feeder: asyncio.Task[None] | None = None
        self._last_seq = 0

    def add_routes(self, app: Sanic[Any, Any], respond: Respond) -> None:
        """Add the routes that answer with one status or a list of events, or with a stream of them."""

        async def status(request: Request) -> HTTPResponse | None:
            interval = query(request, interval=INTERVALS).get("interval", INTERVAL)
            if not _wants_stream(request):
                with reading_state():
                    found = self._source.status()
                return await respond(request, found)
            await self._serve(request, _Client(self._resume(request, self._newest()), interval))
            return None

        async def events(request: Request) -> HTTPResponse | None:
            asked = query(request, since=(0, MAX_SEQ), limit=(1, 1000))
            since = int(asked.get("since", 0))
            if _wants_stream(request):
                await self._serve(request, _Client(self._resume(request, since), None))
                return None
            since = self._known(since)
            with reading_state():
                found = read_events(self._state, since)
            limit = int(asked.get("limit", len(found)))
            # A client that names a number reads on from it; any other one wants the newest.
            found = found[:limit] if "since" in asked else found[len(found) - min(limit, len(found)) :]
            last = found[-1]["seq"] if found else since
            return await respond(request, {"events": found, "last": last})

        app.add_route(status, "/status")
        app.add_route(events, "/events")

    def _newest(self) -> int:
        with reading_state():
            self._last_seq = last_seq(self._state, self._last_seq)
        return self._last_seq

    def _resume(self, request: Request, default: int) -> int:
        """Return the number of the last event that a client has."""
        text = request.headers.get("last-event-id", "")
        return self._known(int(text) if text.isascii() and text.isdecimal() and len(text) < 17 else default)

    def _known(self, seq: int) -> int:
        """Return the number of an event; 0 for one beyond the newest, from before a restart of the server."""
        return seq if seq <= self._newest() else 0

    async def _serve(self, request: Request, client: _Client) -> None:
        if len(self._clients) >= MAX_STREAMS:
            raise ServiceUnavailable(
                f"{MAX_STREAMS} streams are open, and no more are allowed; close one, or ask for JSON",
                quiet=True,
            )
        self._clients.add(client)
        try:
            if self._feeder is None:
                self._feeder = asyncio.create_task(self._feed())
            response = await request.respond(content_type=MIME, headers={"X-Accel-Buffering": "no"})
            # Sanic sends the headers with the first piece. The client learns when to connect again.
            await response.send(f"retry: {RETRY}\n\n")
            # A request may come while the inspector stops already.
            while not client.has_ended and not self._stopping.is_set():
                # Whether the client reads shows only when the buffers of the system are full.
                await asyncio.wait_for(response.send(await client.next()), SEND_TIMEOUT)
            await response.eof()
        except asyncio.TimeoutError:
            transport: Any = request.transport
            transport.abort()
        finally:
            self._clients.discard(client)

    async def _feed(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._clients and not self._stopping.is_set():
                self._offer(loop.time())
                pause = min(LOOK_AGAIN, *(one.pause(loop.time()) for one in self._clients))
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), max(pause, 0.001))
        except Exception:
            error_logger.exception("Inspector cannot read the state; its streams end.")
        finally:
            self._feeder = None
            for one in self._clients:
                one.end()

    def _offer(self, now: float) -> None:
        """Buffer new events, and one status for all clients that are due."""
        for event in read_events(self._state, min(one.last for one in self._clients)):
            for one in self._clients:
                one.put_event(event)
        due = [one for one in self._clients if one.take_turn(now)]
        if due:
            text = _piece("status", self._source.status())
            for one in due:
                one.put_status(text)


def _piece(kind: str, data: Mapping[str, Any], seq: int | None = None) -> str:
    ident = "" if seq is None else f"id: {seq}\n"
    return f"event: {kind}\n{ident}data: {json.dumps(data, separators=(',', ':'))}\n\n"


def _wants_stream(request: Request) -> bool:
    return request.accept.match("application/json", MIME).mime == MIME
