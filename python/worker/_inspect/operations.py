"""Requests operations of the main process, and shows how far they are.

The main process writes its operations to the shared state. An operation that was requested here, and that
the main process has not taken up yet, is pending.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import datetime, timezone
from secrets import token_hex
from time import monotonic
from typing import Any

from sanic import Sanic
from sanic.exceptions import NotFound, SanicException, ServiceUnavailable
from sanic.request import Request
from sanic.response import HTTPResponse

from worker._control.send import UPGRADE, Publisher, has_room, request, send
from worker._inspect.requests import MAX_WAIT, client, preferences, query
from worker._inspect.responses import reading_state
from worker._state.event_log import read_operations
from worker._state.foreign import adapted
from worker.constants import NAME_LIMIT, excerpt

__all__ = ["Operations", "Publisher"]

Operation = dict[str, Any]
Respond = Callable[[Request, Any], Awaitable[HTTPResponse]]

# The number of operations of clients that may be under way at a time. The state keeps 100 operations.
MAX_UNDER_WAY = 50
# The time from one look at the state to the next, while a client waits, seconds.
LOOK_AGAIN = 0.05


class TooManyOperationsError(SanicException):
    """More operations are under way than may be at a time."""

    status_code = 429
    quiet = True


class Call:
    """One call of an action.

    Attributes:
        by: The client, as the operation names it.
        ids: The operations that the action has requested.
    """

    def __init__(self, by: str) -> None:
        self.by = by
        self.ids: list[str] = []


# The call of an action that the running task makes.
_call: ContextVar[Call | None] = ContextVar("call", default=None)


class Operations:
    """The operations of a server.

    Args:
        publisher (Publisher): The sending end of the control channel.
        state (Mapping): The state of all processes. One that cannot hold operations, such as a ``dict``, has
            none: commands are sent all the same.
    """

    def __init__(self, publisher: Publisher, state: Mapping[str, Any]) -> None:
        self._publisher = publisher
        self._state = state
        self._pending: dict[str, Operation] = {}
        self._written: list[Operation] = []
        self._read_at = 0.0
        # The last scaling that was requested here: its operation, and the number of servers.
        self._scaling = ("", 0)
        self.stopping = asyncio.Event()
        """Set when the inspector stops: nothing is waited for any more."""

    def scale(self, servers: int) -> None:
        """Request a scaling to a number of servers, as :meth:`request` does."""
        if ident := self.request("scale", f"__SCALE__:{servers}"):
            self._scaling = (ident, servers)

    def scaling(self) -> int | None:
        """Return the number of servers of the last scaling, if it was requested here and has not ended.

        The state shows it only later. Of several clients that each ask for one server more, each gets one.
        """
        last = next((one for one in self.list() if one["kind"] == "scale"), None)
        ident, servers = self._scaling
        return servers if last is not None and last["id"] == ident and not has_ended(last) else None

    def request(self, kind: str, command: str) -> str:
        """Send a command to the main process, as an operation of its own.

        Args:
            kind (str): The kind of the operation, e.g. ``reload``.
            command (str): The command of the control channel.

        Returns:
            str: The id of the operation; empty if the state cannot hold operations.

        Raises:
            OSError: The main process is gone.
            ServiceUnavailable: The main process does not read its commands, and no more can be sent.
            TooManyOperationsError: Too many operations are under way.
        """
        # A send would hold up all clients.
        if not has_room(self._publisher):
            raise ServiceUnavailable("The main process does not read its commands. Try again later")
        if not self._has_operations():
            if command == UPGRADE:
                request(self._publisher, command, "", "inspector")
            else:
                send(self._publisher, command)
            return ""
        self._read(0.0)
        under_way = len(self._pending) + sum(not has_ended(one) for one in self._written)
        if under_way >= MAX_UNDER_WAY:
            raise TooManyOperationsError(f"{under_way} operations are under way. Wait until one has ended")
        call = _call.get() or Call("inspector")
        ident = token_hex(6)
        request(self._publisher, command, ident, call.by)
        call.ids.append(ident)
        self._pending[ident] = _pending(ident, kind, call.by)
        return ident

    @contextmanager
    def called_by(self, request: Request) -> Iterator[Call]:
        """Note the client and the operations of an action that is called in the body."""
        call = Call(f"inspector {client(request)}")
        token = _call.set(call)
        try:
            yield call
        finally:
            _call.reset(token)

    def list(self) -> list[Operation]:
        """Return all known operations, the newest first."""
        self._read(0.0)
        return [*reversed(self._pending.values()), *self._written]

    def find(self, ident: str) -> Operation | None:
        """Return an operation, as it was a moment ago at the latest; ``None`` if there is none."""
        self._read(LOOK_AGAIN / 2)
        return next((one for one in self._written if one["id"] == ident), self._pending.get(ident))

    async def wait(self, ident: str, seconds: float) -> Operation:
        """Return an operation, once it has ended or the time is over.

        Raises:
            NotFound: There is no such operation.
        """
        deadline = monotonic() + seconds
        while (found := self.find(ident)) is not None:
            left = deadline - monotonic()
            if has_ended(found) or left <= 0:
                return found
            if self.stopping.is_set():
                # An upgrade ends just before it stops this inspector.
                self._read(0.0)
                return self.find(ident) or found
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), min(left, LOOK_AGAIN))
        raise NotFound(
            f"Unknown operation: {excerpt(ident, NAME_LIMIT)}. "
            "The last 100 operations are kept; GET /operations lists them"
        )

    async def complete(self, request: Request, call: Call, output: Any) -> tuple[Any, int, dict[str, str]]:
        """Return the result, the status and the headers of an answer to an action.

        The result is that of the action, unless the client prefers the operation: at once
        (``Prefer: respond-async``), or after a time (``Prefer: wait=10``).
        """
        if not call.ids:
            return output, 200, {}
        headers = {"Location": f"/operations/{call.ids[-1]}"}
        preferred = preferences(request)
        if not str(preferred):
            return output, 200, headers
        headers["Preference-Applied"] = str(preferred)
        operation = await self.wait(call.ids[-1], preferred.wait or 0)
        return operation, 200 if has_ended(operation) else 202, headers

    def add_routes(self, app: Sanic[Any, Any], respond: Respond) -> None:
        """Add the routes of the operations."""

        async def operations(request: Request) -> HTTPResponse:
            query(request)
            return await respond(request, {"operations": self.list()})

        async def operation(request: Request, ident: str) -> HTTPResponse:
            seconds = query(request, wait=(0.0, float(MAX_WAIT))).get("wait", 0)
            return await respond(request, await self.wait(ident, seconds))

        app.add_route(operations, "/operations")
        app.add_route(operation, "/operations/<ident:str>")

    def _has_operations(self) -> bool:
        # A server without a state that can be reached still takes commands.
        with suppress(OSError, EOFError):
            return bool(adapted(self._state).cells("operations"))  # type: ignore[arg-type]
        return False

    def _read(self, max_age: float) -> None:
        """Read the state, unless it was read within ``max_age`` seconds."""
        now = monotonic()
        if now - self._read_at < max_age:
            return
        self._read_at = now
        with reading_state():
            self._written = read_operations(self._state)
        written = {one["id"] for one in self._written}
        taken_up = [number for number, ident in enumerate(self._pending) if ident in written]
        # The main process takes operations up in their order. One that was overwritten since has ended.
        for ident in [*self._pending][: max(taken_up, default=-1) + 1]:
            del self._pending[ident]


def has_ended(operation: Operation) -> bool:
    """Return whether an operation is done or has failed."""
    return operation["status"] in ("done", "failed")


def _pending(ident: str, kind: str, by: str) -> Operation:
    return {
        "id": ident,
        "kind": kind,
        "status": "pending",
        "by": by,
        "requested_at": datetime.now(timezone.utc).isoformat(),
        "ended_at": None,
        "seconds": None,
        "done": 0,
        "total": 0,
        "text": "waits for the main process",
        "reason": "",
        "rolled_back": [],
    }
