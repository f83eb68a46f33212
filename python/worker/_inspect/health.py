"""Answers whether the main process turns its loop (``/livez``), and whether the servers accept requests.

The probes of an orchestrator ask for it: Kubernetes replaces a server that is not live, and sends no requests
to one that is not ready.
"""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import suppress
from secrets import token_hex
from threading import Thread
from typing import Any

from sanic import Sanic
from sanic.exceptions import BadRequest
from sanic.request import Request
from sanic.response import HTTPResponse, json, raw

from worker._control.send import Publisher, has_room, ping
from worker._inspect.responses import reading_state, unreachable
from worker._inspect.status import Sampler
from worker._state.event_log import read_pong
from worker.constants import NAME_LIMIT, excerpt

__all__ = ["MainCheck", "add_routes", "is_probe", "readiness"]

PROBES = frozenset({"/livez", "/readyz"})

# How long the main process may take to answer, seconds.
DEADLINE = 2.0
# The time from one look for the answer to the next, seconds: it doubles from the first to the second.
FIRST_LOOK, LAST_LOOK = 0.001, 0.02
# A main process that hangs gets another ping only after this time, seconds: pings must not fill its channel.
PING_AGAIN = 60.0
MAX_LISTED = 20
_MINIMUM = re.compile(r"[1-9][0-9]{0,5}", re.ASCII)


class MainCheck:
    """Checks whether the main process turns its loop: it writes an answer to a ping into the shared state.

    Args:
        publisher (Publisher): The sending end of the control channel.
        sampler (Sampler): Reads the shared state.
        deadline (float): How long the main process may take, seconds.
    """

    def __init__(self, publisher: Publisher, sampler: Sampler, deadline: float) -> None:
        self._publisher = publisher
        self._sampler = sampler
        self._deadline = deadline
        self._check: asyncio.Future[str] | None = None
        self._sender: Thread | None = None
        self._is_full = False
        # The answer before the last ping, and when that ping was sent.
        self._last_answer = ""
        self._sent_at = float("-inf")

    async def failure(self) -> str:
        """Return why the main process is not live; empty if it is. Concurrent calls share one ping."""
        if self._check is None or self._check.done():
            self._check = asyncio.ensure_future(self._run())
        # A client that disconnects must not cancel the check of the others.
        return await asyncio.shield(self._check)

    async def _run(self) -> str:
        state = self._sampler.worker_state
        if not self._sampler.has_sheets:
            # The state is of another kind, and has no place for an answer.
            usage = self._sampler.main_usage()
            return "" if usage is not None and usage.is_running else "The main process does not run"
        began = time.monotonic()
        before = read_pong(state)
        # An answer to any ping since then shows that the loop turns: also to that of another process.
        is_due = before != self._last_answer or began - self._sent_at > PING_AGAIN
        pause = FIRST_LOOK
        while read_pong(state) == before:
            # The thread of the last ping may end only after its answer has come.
            if is_due and not self._is_sending():
                is_due = False
                self._last_answer, self._sent_at = before, began
                self._send()
            if time.monotonic() - began > self._deadline:
                reason = "its control channel is full" if self._is_full else "its loop does not turn"
                return f"The main process did not answer within {self._deadline:g} s: {reason}"
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_LOOK)
        return ""

    def _send(self) -> None:
        # In a thread: a channel that another sender fills at the same time would block the loop.
        self._sender = Thread(target=self._ping, name="ping", daemon=True)
        self._sender.start()

    def _is_sending(self) -> bool:
        return self._sender is not None and self._sender.is_alive()

    def _ping(self) -> None:
        is_sent = False
        # An error shows that the main process is gone. The missing answer tells the same.
        with suppress(OSError):
            if self._has_room():
                ping(self._publisher, token_hex(8))
                is_sent = True
        if not is_sent:
            self._sent_at = float("-inf")

    def _has_room(self) -> bool:
        """Return whether the control channel takes a message; wait for that until the deadline."""
        # Shown at once: the check gives up at the same time as the second wait.
        for wait in (0.0, self._deadline):
            self._is_full = not has_room(self._publisher, wait)
            if not self._is_full:
                return True
        return False


def readiness(sampler: Sampler, minimum: int | None = None) -> dict[str, Any]:
    """Return whether enough servers accept requests, and which ones do not.

    Args:
        sampler (Sampler): Reads the shared state.
        minimum (int | None): How many servers suffice. Defaults to ``None``: all that are wanted.

    Returns:
        dict[str, Any]: ``status`` (``ok`` or ``failed``), ``workers_ready``, ``workers_wanted``,
            ``workers_required``; if it failed, also ``reason``, and ``not_ready``, a list of up to 20
            servers, unless the server is about to stop.
    """
    servers = sampler.servers()
    ready = sum(worker.is_ready for worker in servers)
    # A server that stops wants no workers any more, and is not ready.
    required = minimum or max(1, len(servers))
    is_stopping = sampler.is_stopping()
    found: dict[str, Any] = {
        "status": "ok" if ready >= required and not is_stopping else "failed",
        "workers_ready": ready,
        "workers_wanted": len(servers),
        "workers_required": required,
    }
    if is_stopping:
        found["reason"] = "the server is about to stop"
    elif ready < required:
        missing = [worker.shown for worker in servers if not worker.is_ready]
        found["reason"] = f"{ready} of {required} workers accept requests"
        found["not_ready"] = [
            {key: one[key] for key in ("name", "phase", "pid", "why")} for one in missing[:MAX_LISTED]
        ]
    return found


def is_probe(request: Request) -> bool:
    """Return whether a request is a probe. An action of a subclass may have such a name; it is no GET."""
    return request.method == "GET" and request.path in PROBES


def add_routes(app: Sanic[Any, Any], publisher: Publisher, sampler: Sampler) -> None:
    """Add ``GET /livez``, ``GET /readyz`` and ``GET /metrics`` to an application.

    Args:
        app (Sanic): The application.
        publisher (Publisher): The sending end of the control channel.
        sampler (Sampler): Takes the snapshots.
    """
    check = MainCheck(publisher, sampler, DEADLINE)

    async def livez(request: Request) -> HTTPResponse:
        try:
            reason = await check.failure()
        except (OSError, EOFError) as error:
            reason = unreachable(error)
        return _answer({"status": "failed", "reason": reason} if reason else {"status": "ok"})

    async def readyz(request: Request) -> HTTPResponse:
        minimum = _minimum(request)
        try:
            return _answer(readiness(sampler, minimum))
        except (OSError, EOFError) as error:
            return _answer({"status": "failed", "reason": unreachable(error)})

    async def metrics(request: Request) -> HTTPResponse:
        # Costly to import, and needed only where somebody asks for metrics.
        from worker._inspect.metrics import expose

        with reading_state():
            body, content_type = expose(sampler, request.headers.get("accept", ""))
        return raw(body, content_type=content_type)

    for handler in (livez, readyz, metrics):
        app.add_route(handler, f"/{handler.__name__}")


def _answer(found: dict[str, Any]) -> HTTPResponse:
    return json(found, status=200 if found["status"] == "ok" else 503)


def _minimum(request: Request) -> int | None:
    given = request.get_args(keep_blank_values=True).getlist("min", [])
    if not given:
        return None
    if len(given) > 1 or not _MINIMUM.fullmatch(given[0]):
        shown = excerpt(given[0] if len(given) == 1 else given, NAME_LIMIT, quoted=True)
        raise BadRequest(f"min must be a whole number from 1 to 999999, not {shown}")
    return int(given[0])
