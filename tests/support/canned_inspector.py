"""An inspector for tests of its client: it answers as the real one does, from data that the test sets."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlsplit

Status = dict[str, Any]


def worker(name: str = "Sanic-Server-0-0", **fields: Any) -> dict[str, Any]:
    """Return one worker of a status."""
    found = {
        "name": name,
        "server": True,
        "phase": "ready",
        "state": "ACKED",
        "pid": 4243,
        "uptime": 75.0,
        "restarts": 0,
        "requests": 1000,
        "in_flight": 2,
        "connections": 5,
        "loop_lag_p50": 0.0004,
        "loop_lag_p99": 0.003,
        "heartbeat_age": 0.5,
        "rss_bytes": 48 << 20,
        "pss_bytes": 30 << 20,
        "cpu_seconds": 12.5,
        "why": None,
        "next_restart_in": None,
    }
    assert fields.keys() <= found.keys(), fields
    return {**found, **fields}


def status(*workers: dict[str, Any], second: float = 0.0, **server: Any) -> Status:
    """Return a status, ``second`` seconds after noon."""
    found = {
        "app": "shop",
        "version": "0.1.0",
        "core": "native",
        "sanic": "25.12.1",
        "pid": 4242,
        "uptime": 3700.0,
        "workers_wanted": len(workers),
        "workers_ready": len(workers),
        "restarts": 2,
        "backlog": 0,
        "state_bytes": 1 << 20,
        "state_max_bytes": 1 << 30,
        "last_event": 2,
    }
    return {
        "time": f"2026-11-28T12:00:{second:09.6f}+00:00",
        "server": {**found, **server},
        "workers": list(workers),
        "operations": [],
    }


def operation(state: str = "running", **fields: Any) -> dict[str, Any]:
    """Return one operation."""
    ended = state in ("done", "failed")
    found = {
        "id": "3f2a9c01d4e8",
        "kind": "reload",
        "status": state,
        "by": "inspector 127.0.0.1",
        "requested_at": "2026-11-28T12:00:00+00:00",
        "ended_at": "2026-11-28T12:00:01+00:00" if ended else None,
        "seconds": 1.2 if ended else None,
        "done": 3,
        "total": 8,
        "text": "3 of 8 workers replaced",
        "reason": "",
        "rolled_back": [],
    }
    return {**found, **fields}


def event(seq: int, text: str = "", level: str = "info", **fields: Any) -> dict[str, Any]:
    """Return one event, ``seq`` seconds after noon."""
    time = f"2026-11-28T12:00:{seq:02}+00:00"
    text = text or f"Sanic-Server-0-0 [{4000 + seq}] started"
    return {"seq": seq, "time": time, "type": "process_started", "level": level, "text": text, **fields}


class FakeInspector:
    """A server on a port or a unix socket, as a context manager. The test sets its data, from any thread.

    Attributes:
        status: The answer to ``GET /status``.
        events: The event log.
        operation_states: The states of the operation that an action creates, the last one for good.
        refusals: The status and message for a path, instead of its answer.
        requests: The method, path, headers and JSON body of each request.
    """

    def __init__(self, *, key: str = "", unix: Path | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.key = key
        self.unix = unix
        self.tls = tls
        self.port = 0
        self.status = status(worker(), worker("Sanic-Server-1-0", pid=4244))
        self.events = [event(1), event(2, "Sanic-Server-0-0 [4001] exited", "error")]
        self.operation_states = [operation("done")]
        self.refusals: dict[str, tuple[int, str]] = {}
        self.requests: list[tuple[str, str, dict[str, str], Any]] = []
        self.changed = threading.Condition()
        self._server: ThreadingHTTPServer | None = None
        self._open: set[socket.socket] = set()

    def __enter__(self) -> FakeInspector:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Listen, on the same port as before."""
        server: ThreadingHTTPServer = _UnixServer(self) if self.unix else _Server(self)
        self.port = 0 if self.unix else server.server_address[1]
        if self.tls:
            server.socket = self.tls.wrap_socket(server.socket, server_side=True)
        self._server = server
        self._thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        self._thread.start()

    def stop(self) -> None:
        """Close the listening socket and all connections."""
        server, self._server = self._server, None
        if server is None:
            return
        server.shutdown()
        self._thread.join()
        with self.changed:
            for sock in self._open:
                _shut(sock)
            self.changed.notify_all()
        server.server_close()

    @property
    def is_open(self) -> bool:
        """Whether it listens."""
        return self._server is not None

    @property
    def args(self) -> list[str]:
        """The options of the client for this address."""
        return [f"--unix={self.unix}"] if self.unix else ["-H", "127.0.0.1", "-p", str(self.port)]

    def change(self, do: Callable[[], Any]) -> None:
        """Change the data; streams send it at once."""
        with self.changed:
            do()
            self.changed.notify_all()

    def add_event(self, one: dict[str, Any]) -> None:
        """Append to the event log."""
        self.change(lambda: self.events.append(one))

    def posted(self) -> list[tuple[str, Any]]:
        """Return the path and body of each POST request."""
        return [(path, body) for method, path, _, body in self.requests if method == "POST"]


def _shut(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


class _Server(ThreadingHTTPServer):
    daemon_threads = False

    def __init__(self, inspector: FakeInspector) -> None:
        self.inspector = inspector
        self.bind_to()

    def bind_to(self) -> None:
        super().__init__(("127.0.0.1", self.inspector.port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep quiet: clients go away in the middle of an answer."""


class _UnixServer(_Server):
    address_family = socket.AF_UNIX

    def bind_to(self) -> None:
        ThreadingHTTPServer.__init__(self, str(self.inspector.unix), _Handler)  # type: ignore[arg-type]

    def server_bind(self) -> None:
        # That of HTTPServer wants a port.
        Path(str(self.server_address)).unlink(missing_ok=True)
        self.socket.bind(self.server_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def setup(self) -> None:
        super().setup()
        with self.inspector.changed:
            self.inspector._open.add(self.connection)

    def finish(self) -> None:
        with self.inspector.changed:
            self.inspector._open.discard(self.connection)
        with suppress(OSError):
            super().finish()

    @property
    def inspector(self) -> FakeInspector:
        return self.server.inspector

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def answer(self) -> None:
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        inspector = self.inspector
        inspector.requests.append((self.command, self.path, dict(self.headers.items()), body))
        if inspector.key and self.headers.get("Authorization") != f"Bearer {inspector.key}":
            self.refuse(401, "Bad API key")
        elif url.path in inspector.refusals:
            self.refuse(*inspector.refusals[url.path])
        elif self.command == "GET":
            self.get(url.path, query)
        else:
            self.post(url.path[1:], body or {})

    def get(self, path: str, query: dict[str, str]) -> None:
        inspector = self.inspector
        since = int(query.get("since", 0))
        if "text/event-stream" in self.headers.get("Accept", ""):
            self.stream(path, since)
        elif path == "/status":
            self.send("status", inspector.status)
        elif path == "/events":
            found = [one for one in inspector.events if one["seq"] > since]
            limit = int(query.get("limit", 1000))
            if limit not in range(1, 1001):
                self.refuse(400, f"limit must be a whole number from 1 to 1000, not '{limit}'")
                return
            last = inspector.events[-1]["seq"] if inspector.events else 0
            self.send("events", {"events": found[-limit:], "last": last})
        elif path == "/operations":
            self.send("operations", {"operations": inspector.operation_states})
        elif path.startswith("/operations/"):
            self.send("operation", self.next_state(path.rpartition("/")[2]))
        elif path == "/metrics":
            self.send_body(200, b"sanic_worker_up 1\n", "text/plain")
        elif path == "/":
            self.send("info", {"info": {"app": "shop"}, "workers": {}})
        else:
            self.refuse(404, f"{path} not found")

    def next_state(self, operation_id: str) -> dict[str, Any]:
        states = self.inspector.operation_states
        return {**(states.pop(0) if len(states) > 1 else states[0]), "id": operation_id}

    def post(self, action: str, body: dict[str, Any]) -> None:
        creates = action in ("reload", "restart", "scale", "shutdown")
        headers = {"Location": "/operations/3f2a9c01d4e8"} if creates else {}
        if creates and self.headers.get("Prefer"):
            result = {
                **self.inspector.operation_states[0],
                "kind": action,
                "status": "pending",
                "seconds": None,
            }
            self.send(action, result, 202, headers)
        elif action == "scale":
            self.send(action, f"Scaling to {body.get('replicas')}", 200, headers)
        elif action == "echo":
            args = body.pop("args", [])
            self.send(action, {"args": args, "kwargs": body})
        elif creates or action == "nothing":
            self.send(action, None, 200, headers)
        elif action == "greet":
            self.send(action, "hello")
        else:
            self.refuse(404, f"Unknown action: {action}")

    def stream(self, path: str, since: int) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.end_headers()
        inspector, shown = self.inspector, None
        if path == "/status":
            since = max((one["seq"] for one in inspector.events), default=0)
        while inspector.is_open:
            with inspector.changed:
                current, events = inspector.status, [*inspector.events]
            if path == "/status" and current is not shown:
                shown = current
                self.message("status", current)
            for one in events:
                if one["seq"] > since:
                    since = one["seq"]
                    self.message("event", one, since)
            with inspector.changed:
                if inspector.is_open and inspector.status is current and inspector.events == events:
                    inspector.changed.wait(0.05)
            # Fails, and so ends the stream, once the client is gone.
            self.wfile.write(b": alive\n\n")

    def message(self, name: str, data: Any, seq: int | None = None) -> None:
        number = f"id: {seq}\n" if seq is not None else ""
        self.wfile.write(f"event: {name}\n{number}data: {json.dumps(data)}\n\n".encode())

    def send(self, action: str, result: Any, code: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps({"meta": {"action": action}, "result": result}).encode()
        self.send_body(code, body, "application/json", headers)

    def refuse(self, code: int, message: str) -> None:
        body = json.dumps({"description": "Refused", "status": code, "message": message}).encode()
        self.send_body(code, body, "application/json")

    def send_body(self, code: int, body: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
