"""A fake inspector: it serves the page, and answers the page's requests with the data of a test."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from worker._inspect.page import document

STARTED_AT = datetime(2026, 3, 1, 12, 0, tzinfo=timezone.utc)
# The longest time without a message in a stream, seconds.
INTERVAL = 0.5
MAX_EVENTS = 200


def make_worker(name: str, **given: Any) -> dict[str, Any]:
    """Return one worker of a status; a server that is ready, unless ``given`` tells otherwise."""
    return {
        "name": name,
        "server": True,
        "phase": "ready",
        "state": "ACKED",
        "pid": 4250,
        "uptime": 61.0,
        "restarts": 0,
        "requests": 0,
        "in_flight": 0,
        "connections": 0,
        "loop_lag_p50": 0.0002,
        "loop_lag_p99": 0.0004,
        "heartbeat_age": 0.4,
        "rss_bytes": 80 * 2**20,
        "pss_bytes": 40 * 2**20,
        "cpu_seconds": 1.0,
        "why": "",
        "next_restart_in": None,
    } | given


def make_servers(number: int) -> list[dict[str, Any]]:
    """Return that many servers, ready, with pids from 4250 on."""
    return [make_worker(f"Sanic-Server-{index}-0", pid=4250 + index) for index in range(number)]


def make_operation(ident: str, kind: str = "restart", **given: Any) -> dict[str, Any]:
    """Return one operation; running, with nothing done, unless ``given`` tells otherwise."""
    return {
        "id": ident,
        "kind": kind,
        "status": "running",
        "by": "inspector 127.0.0.1",
        "requested_at": STARTED_AT.isoformat(),
        "ended_at": None,
        "seconds": None,
        "done": 0,
        "total": 2,
        "text": "",
        "reason": "",
        "rolled_back": [],
    } | given


class FakeInspector:
    """Serves the page, a status, events and operations on a port of its own, and records the actions.

    The attributes may be changed at any time; :meth:`push` sends the change to every stream.
    """

    def __init__(self) -> None:
        self.workers = make_servers(2)
        self.server: dict[str, Any] = {
            "app": "shop",
            "version": "1.0.0",
            "core": "native",
            "sanic": "25.12.1",
            "pid": 4249,
            "uptime": 3723.0,
            "restarts": 0,
            "backlog": 0,
            "state_bytes": 20_000,
            "state_max_bytes": 2**26,
        }
        self.time = STARTED_AT
        self.events: list[dict[str, Any]] = []
        self.operations: list[dict[str, Any]] = []
        self.actions: list[tuple[str, Any, str]] = []
        """Each action: its name, its body, and the value of its header ``Prefer``."""
        self.key = ""
        self.refusal: tuple[int, str] | None = None
        """The status and the message that every action gets instead of an operation."""
        self.outcome: dict[str, Any] = {}
        """Fields of the operations that actions begin from now on."""
        self.is_silent = False
        """Whether the streams send nothing at present, as over a connection that has broken unnoticed."""
        self.streams = 0
        self.changed = threading.Condition()
        self._turn = self._sent = 0
        self._http: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/"

    @property
    def status(self) -> dict[str, Any]:
        """The present status; the figures about the workers follow from them."""
        servers = [worker for worker in self.workers if worker["server"]]
        counted = {
            "workers_wanted": len(servers),
            "workers_ready": sum(worker["phase"] == "ready" for worker in servers),
            "last_event": len(self.events),
        }
        running = [one for one in self.operations if one["status"] in ("pending", "running")]
        return {
            "time": self.time.isoformat(),
            "server": counted | self.server,
            "workers": self.workers,
            "operations": running,
        }

    def worker(self, name: str) -> dict[str, Any]:
        return next(worker for worker in self.workers if worker["name"] == name)

    def log(self, kind: str, text: str, level: str = "info", **fields: Any) -> None:
        """Add an event; the streams get it with the next status."""
        seq = len(self.events) + 1
        time = self.time.isoformat()
        self.events.append({"seq": seq, "time": time, "type": kind, "level": level, "text": text, **fields})

    def push(self, seconds: float = 1.0) -> None:
        """Send a status, that much later than the one before; wait until an open stream has taken it."""
        with self.changed:
            self.time += timedelta(seconds=seconds)
            self._turn += 1
            self.changed.notify_all()
            self.changed.wait_for(lambda: not self.streams or self._sent == self._turn, 5)

    # Serving

    def start(self) -> None:
        """Listen: on the same port again after a :meth:`stop`."""
        fake = self

        class Handler(_Handler):
            inspector = fake

        self._http = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._http.daemon_threads = False
        self._port = self._http.server_address[1]
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), name="fake inspector")
        self._thread.start()

    def stop(self) -> None:
        """Close the listening socket and all streams."""
        http, thread = self._http, self._thread
        if http is None or thread is None:
            return
        self._http = None
        http.shutdown()
        with self.changed:
            self._turn += 1
            self.changed.notify_all()
        thread.join()
        http.server_close()

    @property
    def listens(self) -> bool:
        return self._http is not None

    @contextmanager
    def open_stream(self) -> Iterator[None]:
        with self.changed:
            self.streams += 1
            self.changed.notify_all()
        try:
            yield
        finally:
            with self.changed:
                self.streams -= 1
                self.changed.notify_all()

    def wait_streams(self, number: int, timeout: float = 15) -> None:
        """Wait until exactly that many streams are open."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.streams == number, timeout), self.streams

    def messages(self) -> Iterator[tuple[str, Any]]:
        """Yield the messages of one stream, until the inspector stops."""
        seen = len(self.events)
        while self.listens:
            turn = self._turn
            for event in self.events[seen:]:
                seen += 1
                yield "event", event
            if not self.is_silent:
                yield "status", self.status
            with self.changed:
                self._sent = turn
                self.changed.notify_all()
                self.changed.wait_for(lambda: self._turn != turn, INTERVAL)  # noqa: B023

    def act(self, name: str, data: Any, prefer: str) -> dict[str, Any]:
        """Record an action and return its operation, which a test may then advance."""
        self.actions.append((name, data, prefer))
        operation = make_operation(f"op{len(self.actions)}", name, status="pending") | self.outcome
        self.operations.insert(0, operation)
        self.push(0)
        return operation

    def end(self, operation: dict[str, Any], **given: Any) -> None:
        """End an operation: with these values."""
        operation.update(given, ended_at=self.time.isoformat())
        self.push(0)

    def wait_ended(self, ident: str) -> dict[str, Any]:
        """Return the operation, once it has ended or the inspector stops."""
        operation = next(one for one in self.operations if one["id"] == ident)
        with self.changed:
            self.changed.wait_for(lambda: operation["ended_at"] or not self.listens, 15)
        return operation


class _Handler(BaseHTTPRequestHandler):
    """HTTP/1.0: each response ends with its connection."""

    inspector: FakeInspector

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        accept = self.headers.get("Accept", "")
        if path == "/":
            page = document()
            self._send(200, page.body, {"Content-Type": "text/html; charset=utf-8", **page.headers})
        elif not self._is_allowed():
            self._send_json(401, {"description": "Unauthorized", "status": 401, "message": "Bad API key"})
        elif path == "/status" and "text/event-stream" in accept:
            self._stream()
        elif path == "/status":
            self._result("status", self.inspector.status)
        elif path == "/events":
            limit = int(parse_qs(urlsplit(self.path).query)["limit"][0])
            events = self.inspector.events
            self._result("events", {"events": events[-limit:], "last": len(events)})
        elif path == "/operations":
            self._result("operations", {"operations": self.inspector.operations})
        else:
            self._result("operations", self.inspector.wait_ended(path.removeprefix("/operations/")))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self._is_allowed():
            self._send_json(401, {"message": "Bad API key"})
        elif refusal := self.inspector.refusal:
            self._send_json(refusal[0], {"status": refusal[0], "message": refusal[1]})
        else:
            name = self.path.removeprefix("/")
            data = json.loads(body) if body else None
            operation = self.inspector.act(name, data, self.headers.get("Prefer", ""))
            self._send_json(202, {"meta": {"action": name}, "result": operation})

    def _is_allowed(self) -> bool:
        key = self.inspector.key
        sent = self.headers.get("Authorization", "").encode("latin-1")
        return not key or sent == f"Bearer {key}".encode()

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        with suppress(OSError), self.inspector.open_stream():
            for name, data in self.inspector.messages():
                number = f"id: {data['seq']}\n" if name == "event" else ""
                self.wfile.write(f"event: {name}\n{number}data: {json.dumps(data)}\n\n".encode())
                self.wfile.flush()

    def _result(self, action: str, result: Any) -> None:
        self._send_json(200, {"meta": {"action": action}, "result": result})

    def _send_json(self, status: int, data: Any) -> None:
        self._send(status, json.dumps(data).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Log nothing."""
