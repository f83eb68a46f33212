"""An inspector for the tests of its clients: it answers as the real one does, from data that a test sets."""

from __future__ import annotations

import json
import ssl
import sys
import threading
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta, timezone
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import AF_UNIX, socket
from socketserver import TCPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from support.ports import hold_port
from worker._inspect.page import document

Json = dict[str, Any]

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=timezone.utc)
FIRST_OPERATION = 0x3F2A9C01D4E8
ENDED = ("done", "failed")
STACKS = 'Thread MainThread (most recent call last):\n  File "shop.py", line 9, in pay\n    lock.acquire()\n'
# The longest time without a message in a stream, seconds. A client that has gone is noticed by a message.
KEEP_ALIVE = 0.5
# The results of the commands that its application has added. It has `echo`, too.
CUSTOM = {"greet": "hello", "nothing": None, "steer": "a\x1b[2J\tb\r\nc"}


def worker(name: str = "Sanic-Server-0-0", **given: Any) -> Json:
    """Return one worker of a status; a server that is ready, unless ``given`` tells otherwise."""
    usual: Json = {
        "name": name,
        "server": True,
        "phase": "ready",
        "state": "ACKED",
        "pid": 4250,
        "uptime": 61.0,
        "restarts": 0,
        "requests": 1000,
        "in_flight": 2,
        "connections": 5,
        "loop_lag_p50": 0.0002,
        "loop_lag_p99": 0.0004,
        "loop_busy": 0.2,
        "heartbeat_age": 0.4,
        "rss_bytes": 80 << 20,
        "pss_bytes": 40 << 20,
        "cpu_seconds": 12.5,
        "why": None,
        "next_restart_in": None,
    }
    return _changed(usual, given)


def servers(number: int) -> list[Json]:
    """Return that many workers, with pids from 4250 on."""
    return [worker(f"Sanic-Server-{index}-0", pid=4250 + index) for index in range(number)]


def status(*workers: Json, second: float = 0.0, operations: Iterable[Json] = (), **server: Any) -> Json:
    """Return the status at that second after noon. The figures about the workers follow from them."""
    wanted = [one for one in workers if one["server"]]
    usual: Json = {
        "app": "shop",
        "version": "1.0.0",
        "core": "native",
        "sanic": "25.12.1",
        "pid": 4249,
        "uptime": 3723.0,
        "workers_wanted": len(wanted),
        "workers_ready": sum(one["phase"] == "ready" for one in wanted),
        "preload": {"pid": 4248, "depth": "framework", "ready": True},
        "restarts": 2,
        "backlog": 0,
        "state_bytes": 20_000,
        "state_max_bytes": 1 << 26,
        "last_event": 0,
    }
    return {
        "time": _time(second),
        "server": _changed(usual, server),
        "workers": [*workers],
        "operations": [one for one in operations if one["status"] not in ENDED],
    }


def operation(state: str = "running", **given: Any) -> Json:
    """Return one operation in that state."""
    has_ended = state in ENDED
    usual: Json = {
        "id": f"{FIRST_OPERATION:x}",
        "kind": "restart",
        "status": state,
        "by": "inspector 127.0.0.1",
        "requested_at": _time(0),
        "ended_at": _time(1.2) if has_ended else None,
        "seconds": 1.2 if has_ended else None,
        "done": 3,
        "total": 8,
        "text": "3 of 8 workers replaced",
        "reason": "",
        "rolled_back": [],
    }
    return _changed(usual, given)


def event(seq: int, text: str = "", level: str = "info", **given: Any) -> Json:
    """Return one event, ``seq`` seconds after noon; ``given`` has the fields of its type, too."""
    text = text or f"Sanic-Server-0-0 [{4000 + seq}] started"
    usual: Json = {"seq": seq, "time": _time(seq), "type": "process_started", "level": level, "text": text}
    return usual | given


def _changed(usual: Json, given: Json) -> Json:
    assert given.keys() <= usual.keys(), given
    return usual | given


def _message(kind: str, data: Json, ident: str = "") -> bytes:
    return f"event: {kind}\n{ident}data: {json.dumps(data)}\n\n".encode()


def _time(second: float) -> str:
    return (NOON + timedelta(seconds=second)).isoformat()


class Request(NamedTuple):
    """A request that has come; its path has the query, its body is JSON."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


class FakeInspector:
    """Serves the page, a status, events and operations, and records the requests; a context manager.

    A test may change the attributes at any time; :meth:`push` sends the change to every stream.

    Args:
        key (str): The key that each request must carry, if any.
        unix (Path | None): The unix socket to listen on; a TCP port that is free by default.
        tls (ssl.SSLContext | None): Serves TLS.

    Attributes:
        workers: The workers of the status.
        server: The values of the status that are not the usual ones of :func:`status`.
        second: The time of the status, in seconds after noon.
        events: The events, the oldest first.
        operations: The operations, the newest first. An action adds one, which is pending.
        steps: States of an operation that the coming answers show: the one to its action, and each one to a
            request for it. Without any it stays as it is, and is waited for.
        stacks: The answer to a request for the stacks of a process, but for its name.
        refusals: The status and message for a path, instead of its answer.
        requests: All requests so far.
        is_silent: Whether the streams send nothing at present, as over a connection that broke unnoticed.
        streams: The number of open streams.
        changed: Notified when an action has added its operation, and when a stream opens or ends.
    """

    def __init__(self, *, key: str = "", unix: Path | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.key = key
        self.unix = unix
        self.tls = tls
        self.port = 0
        self.workers = servers(2)
        self.server: Json = {}
        self.second = 0.0
        self.events: list[Json] = []
        self.operations: list[Json] = []
        self.steps: list[Json] = []
        self.stacks: Json = {"pid": 4250, "way": "interpreter", "debugger": None, "text": STACKS}
        self.refusals: dict[str, tuple[int, str]] = {}
        self.requests: list[Request] = []
        self.is_silent = False
        self.streams = 0
        self.changed = threading.Condition()
        self._held: socket | None = None
        self._listens = False
        self._turn = self._sent = 0

    def __enter__(self) -> FakeInspector:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        if self._held is not None:
            self._held.close()

    def start(self) -> None:
        """Listen: on the same port again after a :meth:`stop`."""
        handler = partial(_Handler, self)
        if self.unix:
            self._http: ThreadingHTTPServer = _UnixServer(str(self.unix), handler)  # type: ignore[arg-type]
        else:
            if self._held is None:
                self._held = hold_port()
                self.port = self._held.getsockname()[1]
            self._http = _Server(("127.0.0.1", self.port), handler)
        if self.tls:
            self._http.socket = self.tls.wrap_socket(self._http.socket, server_side=True)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), name="fake inspector")
        self._listens = True
        self._thread.start()

    def stop(self) -> None:
        """Close the listening socket, and end all streams and waits."""
        if not self._listens:
            return
        self._http.shutdown()
        self._thread.join()
        with self.changed:
            self._listens = False
            self._turn += 1
            self.changed.notify_all()
        self._http.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    @property
    def args(self) -> list[str]:
        """The options of the command for this address."""
        return [f"--unix={self.unix}"] if self.unix else ["-H", "127.0.0.1", "-p", str(self.port)]

    @property
    def status(self) -> Json:
        """The present status."""
        server = {"last_event": self.last_event} | self.server
        return status(*self.workers, second=self.second, operations=self.operations, **server)

    @property
    def last_event(self) -> int:
        return self.events[-1]["seq"] if self.events else 0

    @property
    def posted(self) -> list[tuple[str, Any, str]]:
        """The path, the body and the header ``Prefer`` of each POST request."""
        return [
            (path, body, headers.get("Prefer", ""))
            for method, path, headers, body in self.requests
            if method == "POST"
        ]

    def worker(self, name: str) -> Json:
        return next(one for one in self.workers if one["name"] == name)

    def log(self, kind: str, text: str, level: str = "info", **given: Any) -> None:
        """Add an event of the present; :meth:`push` sends it."""
        fields = {"type": kind, "time": _time(self.second)} | given
        self.events.append(event(self.last_event + 1, text, level, **fields))

    def push(self, seconds: float = 1.0) -> None:
        """Send a status, that much later than the one before; wait until an open stream has taken it."""
        with self.changed:
            self.second += seconds
            self._turn += 1
            self.changed.notify_all()
            self.changed.wait_for(lambda: not self.streams or self._sent == self._turn, 15)

    def wait_streams(self, number: int, timeout: float = 15) -> None:
        """Wait until exactly that many streams are open."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.streams == number, timeout), self.streams

    def begin(self, kind: str) -> Json:
        """Add the operation of an action, and return it."""
        with self.changed:
            ident = f"{FIRST_OPERATION + len(self.operations):x}"
            found = operation("pending", id=ident, kind=kind)
            self._step(found)
            self.operations.insert(0, found)
        self.push(0)
        return found

    def end(self, one: Json, state: str, **given: Any) -> None:
        """End an operation: with this status and these fields."""
        one.update(given, status=state, ended_at=_time(self.second))
        self.push(0)

    def look_at(self, one: Json, wait: float) -> Json:
        """Return an operation at its next step; without one, wait so many seconds until it has ended."""
        if not self._step(one):
            with self.changed:
                self.changed.wait_for(lambda: one["status"] in ENDED or not self._listens, wait)
        return one

    def _step(self, one: Json) -> bool:
        if not self.steps:
            return False
        one.update(self.steps.pop(0), id=one["id"], kind=one["kind"])
        return True

    def messages(self, since: int, *, has_status: bool) -> Iterator[bytes]:
        """Yield the messages of one stream: events after ``since``, and statuses if it ``has_status``."""
        shown = -1
        while self._listens:
            turn = self._turn
            for one in [one for one in self.events if one["seq"] > since]:
                since = one["seq"]
                yield _message("event", one, f"id: {since}\n")
            if not self.is_silent:
                is_due = has_status and turn != shown
                yield _message("status", self.status) if is_due else b": keep-alive\n\n"
                shown = turn
            with self.changed:
                self._sent = turn
                self.changed.notify_all()
                self.changed.wait_for(lambda: self._turn != turn, KEEP_ALIVE)  # noqa: B023

    def count_streams(self, more: int) -> None:
        """Note that a stream was opened, or with -1 that one has ended."""
        with self.changed:
            self.streams += more
            self.changed.notify_all()


class _Server(ThreadingHTTPServer):
    daemon_threads = False

    def handle_error(self, *about: Any) -> None:
        """Keep quiet about clients that go away in the middle of an answer."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(*about)


class _UnixServer(_Server):
    address_family = AF_UNIX
    # That of HTTPServer wants a port.
    server_bind = TCPServer.server_bind


class _Handler(BaseHTTPRequestHandler):
    """Answers one request. HTTP/1.0: each response ends with its connection."""

    # A browser may open a connection and not use it. The stop waits for its thread.
    timeout = 10.0

    def __init__(self, inspector: FakeInspector, *args: Any) -> None:
        self.inspector = inspector
        super().__init__(*args)

    def log_message(self, *_: Any) -> None:
        """Log nothing."""

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def answer(self) -> None:
        inspector, url = self.inspector, urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        inspector.requests.append(Request(self.command, self.path, dict(self.headers), body))
        key = self.headers.get("Authorization", "").encode("latin-1")
        if url.path == "/" and "text/html" in self.headers.get("Accept", ""):
            page = document()
            self.send(200, page.body, {"Content-Type": "text/html; charset=utf-8", **page.headers})
        elif inspector.key and key != f"Bearer {inspector.key}".encode():
            self.refuse(401, "Bad API key")
        elif url.path in inspector.refusals:
            self.refuse(*inspector.refusals[url.path])
        elif self.command == "GET":
            self.get(unquote(url.path), dict(parse_qsl(url.query)))
        else:
            self.act(url.path[1:], body or {})

    def get(self, path: str, query: dict[str, str]) -> None:
        inspector, since = self.inspector, int(query.get("since", 0))
        if "text/event-stream" in self.headers.get("Accept", ""):
            has_status = path == "/status"
            since = inspector.last_event if has_status else since
            self.stream(inspector.messages(since, has_status=has_status))
        elif path == "/status":
            self.succeed("status", inspector.status)
        elif path == "/events":
            limit = int(query.get("limit", 1000))
            found = [one for one in inspector.events if one["seq"] > since]
            if limit in range(1, 1001):
                self.succeed("events", {"events": found[-limit:], "last": inspector.last_event})
            else:
                self.refuse(400, f"limit must be a whole number from 1 to 1000, not '{limit}'")
        elif path == "/operations":
            self.succeed("operations", {"operations": inspector.operations})
        elif named := [one for one in inspector.operations if path == f"/operations/{one['id']}"]:
            self.succeed("operations", inspector.look_at(named[0], float(query.get("wait", 0))))
        elif path == "/metrics":
            self.send(200, b"sanic_worker_up 1\n", {"Content-Type": "text/plain"})
        elif path == "/":
            self.succeed("info", {"info": {"app": "shop"}, "workers": {}})
        else:
            self.refuse(404, f"{path} not found")

    def act(self, name: str, body: Json) -> None:
        if name in ("reload", "restart", "scale", "shutdown", "upgrade"):
            begun = self.inspector.begin(name)
            said = f"Scaling to {body['replicas']}" if name == "scale" else None
            code, result = (202, begun) if "Prefer" in self.headers else (200, said)
            self.succeed(name, result, code, Location=f"/operations/{begun['id']}")
        elif name == "stacks":
            self.succeed(name, {"name": body["name"], **self.inspector.stacks})
        elif name == "echo":
            self.succeed(name, {"args": body.pop("args", []), "kwargs": body})
        elif name in CUSTOM:
            self.succeed(name, CUSTOM[name])
        else:
            self.refuse(404, f"Unknown action: {name}")

    def stream(self, messages: Iterator[bytes]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.end_headers()
        self.inspector.count_streams(1)
        try:
            for message in messages:
                self.wfile.write(message)
        finally:
            self.inspector.count_streams(-1)

    def succeed(self, action: str, result: Any, code: int = 200, **headers: str) -> None:
        self.send_json(code, {"meta": {"action": action}, "result": result}, headers)

    def refuse(self, code: int, message: str) -> None:
        self.send_json(code, {"description": "Refused", "status": code, "message": message}, {})

    def send_json(self, code: int, data: Any, headers: dict[str, str]) -> None:
        self.send(code, json.dumps(data).encode(), {"Content-Type": "application/json"} | headers)

    def send(self, code: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
