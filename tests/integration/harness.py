"""Real servers under test: started in a session of their own, steered, and checked for leftovers."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals
from ssl import SSLContext
from time import monotonic
from types import TracebackType
from typing import Any

from support.modes import START_METHOD

from .output import Event, Line, Output
from .tools import MODULE, TIMEOUT, environment, free_port, port_is_free, wait_until

# Each process of a server has this variable in its environment.
MARKER = "SERVER_UNDER_TEST"


@dataclass(frozen=True)
class Response:
    """An answer to one request."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class UnixConnection(HTTPConnection):
    """A plain HTTP connection over a unix socket."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Server:
    """A command under test, in its own session.

    Use it as a context manager. At the end it stops a server that still runs, and raises AssertionError if a
    process that the server started is left, or if it still holds its port.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        port: int = 0,
        unix: Path | None = None,
        tls: SSLContext | None = None,
    ) -> None:
        self.port = port
        self.cwd = cwd
        self.unix = unix
        self.tls = tls
        self.token = uuid.uuid4().hex
        self.started_at = monotonic()
        self._process = subprocess.Popen(
            list(command),
            cwd=cwd,
            env=environment({**(env or {}), MARKER: self.token, "PORT": str(port)}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.output = Output(self._process)

    @classmethod
    def run(
        cls,
        target: str,
        *args: str,
        cwd: Path,
        workers: int = 2,
        env: Mapping[str, str] | None = None,
        start_method: str = START_METHOD,
        tls: SSLContext | None = None,
        unix: Path | None = None,
        closed: str = "",
    ) -> Server:
        """Start `target` as `python -m worker` does, on a free port, without waiting for it.

        ``closed`` are shell redirections, such as ``<&-``.
        """
        port = free_port()
        place = [f"--unix={unix}"] if unix else ["--host=127.0.0.1", f"--port={port}"]
        command = [sys.executable, "-m", MODULE, target, *place, f"--workers={workers}", "--no-motd", *args]
        if closed:
            command = ["sh", "-c", f'exec "$@" {closed}', "sh", *command]
        method = {"START_METHOD": start_method}
        return cls(
            command, cwd=cwd, env={**method, **(env or {})}, port=0 if unix else port, unix=unix, tls=tls
        )

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        leftovers = self.close()
        if error is None:
            assert not leftovers, leftovers

    # Steering

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        return self._process.poll()

    def signal(self, number: Signals, to: str = "main") -> None:
        """Send a signal to "main", to its process "group", or to "all" processes of the server."""
        if to == "group":
            os.killpg(self.pid, number)
            return
        for pid in [self.pid] if to == "main" else self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def wait(self, timeout: float = TIMEOUT) -> int:
        """Return the exit code, once the process has exited and all output has been read."""
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the server has not ended within {timeout:g} s\n{self.log()}") from None
        self.output.finish(TIMEOUT)
        return code

    def stop(self, number: Signals = SIGTERM, to: str = "main") -> int:
        """Send a signal and return the exit code."""
        self.signal(number, to)
        return self.wait()

    def close(self) -> str:
        """End all processes that still run; return a list of leftovers, empty if all is well."""
        problems = []
        if self.exit_code is None:
            self._process.send_signal(SIGTERM)
            try:
                self._process.wait(TIMEOUT)
            except subprocess.TimeoutExpired:
                problems.append(f"main did not end within {TIMEOUT:g} s of SIGTERM")
        try:
            wait_until(lambda: not self.processes(), "all processes gone", timeout=0 if problems else TIMEOUT)
        except AssertionError:
            problems.append(f"processes left: {self.processes()}")
        if problems:
            self.signal(SIGKILL, to="all")
            self._process.wait()
        self.output.finish(10)
        self.output.close()
        # Shown by pytest if the test has failed.
        print(self.log()[-20_000:])
        if self.port and not port_is_free(self.port):
            problems.append(f"port {self.port} is still held")
        if self.unix and self.unix.exists():
            problems.append(f"{self.unix} is still there")
        return "; ".join(problems) + (f"\n{self.log()}" if problems else "")

    def processes(self) -> dict[int, str]:
        """Return the command line by pid of every live process of this server, in any session."""
        mark = f"{MARKER}={self.token}".encode()
        found = {}
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            try:
                if mark in Path(f"/proc/{entry}/environ").read_bytes():
                    command = Path(f"/proc/{entry}/cmdline").read_bytes()
                    # A title is padded.
                    found[int(entry)] = (
                        command.rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")[-120:]
                    )
            except OSError:
                continue
        return found

    # Output

    def log(self, stream: str | None = None) -> str:
        """Return all lines so far, of one stream or of both."""
        return "\n".join(line.text for line in list(self.output.lines) if stream in (None, line.stream))

    def mark(self) -> int:
        """Return a position in the output; waits can start from it."""
        return len(self.output.lines)

    def wait_line(self, pattern: str, *, since: int = 0, timeout: float = TIMEOUT) -> Line:
        """Return the first line that matches the regular expression."""

        def look() -> Line | None:
            return next((line for line in self.output.lines[since:] if re.search(pattern, line.text)), None)

        found = self.output.wait(look, f"a line with {pattern!r}", timeout)
        assert found is not None
        return found

    def events(self, name: str, **fields: Any) -> list[Event]:
        """Return the journal's entries of that name whose fields have these values."""
        return [
            event
            for event in list(self.output.events)
            if event.name == name and all(event.value(key) == value for key, value in fields.items())
        ]

    def wait_events(self, name: str, count: int = 1, timeout: float = TIMEOUT, **fields: Any) -> list[Event]:
        """Wait for at least `count` journal entries of that name."""

        def look() -> list[Event]:
            found = self.events(name, **fields)
            return found if len(found) >= count else []

        return self.output.wait(look, f"{count} x {name} {fields}", timeout)

    # HTTP

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        port: int | None = None,
        timeout: float = TIMEOUT,
    ) -> Response:
        """Send one request on a connection of its own."""
        connection: HTTPConnection
        if self.unix:
            connection = UnixConnection(self.unix, timeout)
        elif self.tls:
            connection = HTTPSConnection("localhost", port or self.port, timeout=timeout, context=self.tls)
        else:
            connection = HTTPConnection("127.0.0.1", port or self.port, timeout=timeout)
        with contextlib.closing(connection):
            connection.request(method, path, body, {"Connection": "close", **(headers or {})})
            answer = connection.getresponse()
            return Response(answer.status, answer.read(), answer.headers)

    def get(self, path: str, **options: Any) -> Any:
        """Return the JSON of a GET; any status but 200 is an error."""
        response = self.request("GET", path, **options)
        assert response.status == 200, response
        return response.json

    def post(self, path: str, data: Any = None, **options: Any) -> Any:
        """Return the JSON of a POST of JSON; any status but 200 is an error."""
        response = self.request("POST", path, json.dumps(data).encode(), **options)
        assert response.status == 200, response
        return response.json

    def wait_ready(self, path: str = "/whoami", timeout: float = TIMEOUT) -> Server:
        """Wait until a worker answers."""

        def answered() -> bool:
            assert self.exit_code is None, f"the server has ended with {self.exit_code}\n{self.log()}"
            try:
                return self.request("GET", path, timeout=1).status == 200
            except (OSError, HTTPException):
                return False

        wait_until(answered, f"an answer to {path}", timeout)
        return self

    def table(self) -> dict[str, dict[str, Any]]:
        """Return `app.m.workers` as some worker sees it (apps/steering.py defines the form of times)."""
        found: dict[str, dict[str, Any]] = self.get("/workers")
        return found

    def settled(self, count: int) -> dict[str, dict[str, Any]]:
        """Wait until exactly `count` server processes live and serve, each under its own name."""
        seen: dict[str, Any] = {}

        def look() -> dict[str, dict[str, Any]]:
            with contextlib.suppress(OSError, HTTPException):
                alive = self.processes()
                seen.update(alive=alive, table=self.table())
                servers = {name: entry for name, entry in seen["table"].items() if entry.get("server")}
                current = {name: entry for name, entry in servers.items() if entry.get("pid") in alive}
                if len(current) == count and all(map(serves, current.values())):
                    return current
            return {}

        try:
            return wait_until(look, f"{count} live servers that serve")
        except AssertionError as error:
            raise AssertionError(f"{error}; the table: {seen}") from None


def serves(entry: Mapping[str, Any]) -> bool:
    """Whether an entry says that its process serves, by the main process and by the worker itself."""
    return entry["state"] == "ACKED" and bool(entry.get("serving"))


@contextlib.contextmanager
def load(server: Server, path: str = "/whoami") -> Iterator[list[str]]:
    """Send requests one after another, each on its own connection, before, while and after the body runs.

    Yields the list of failures.
    """
    failures: list[str] = []
    stop, under_way = threading.Event(), threading.Event()

    def client() -> None:
        is_last = False
        while not is_last:
            is_last = stop.is_set()
            try:
                status = server.request("GET", path).status
                if status != 200:
                    failures.append(f"status {status}")
            except (OSError, HTTPException) as error:
                failures.append(repr(error))
            under_way.set()

    thread = threading.Thread(target=client, name="load")
    thread.start()
    try:
        assert under_way.wait(60)
        yield failures
    finally:
        stop.set()
        thread.join()
