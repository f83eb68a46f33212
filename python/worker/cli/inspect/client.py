"""Requests to the inspector, over TCP, TLS or a unix socket."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any, NamedTuple

from worker.cli.inspect.address import Address
from worker.cli.inspect.exits import CommandError, ExitCode
from worker.cli.inspect.text import one_line

__all__ = ["Answer", "Client", "Message", "Stream"]

STREAM = "text/event-stream"
# The longest text of a server in a message.
LIMIT = 2000
HOW_TO_START = (
    "Start the server with app.config.INSPECTOR = True (or SANIC_INSPECTOR=true). If it listens elsewhere, "
    "give the address by --host and --port, --unix, or SANIC_INSPECTOR_HOST and SANIC_INSPECTOR_PORT."
)


class Answer(NamedTuple):
    """An answer of the inspector.

    Attributes:
        status: The status of HTTP.
        location: The path of the operation that the request has created; empty where there is none.
        body: The bytes of the body.
    """

    status: int
    location: str
    body: bytes

    @property
    def result(self) -> Any:
        """The result in the body.

        Raises:
            CommandError: The body is none of the inspector.
        """
        try:
            return json.loads(self.body)["result"]
        except (ValueError, KeyError, TypeError) as error:
            raise CommandError("The answer is not that of an inspector", ExitCode.FAILED) from error


class Message(NamedTuple):
    """One message of a stream: its type, and its data from JSON."""

    event: str
    data: Any


class Stream:
    """Server-sent events, one :class:`Message` after the other, until the stream ends or is closed."""

    def __init__(self, sock: socket.socket, response: HTTPResponse) -> None:
        self._sock = sock
        self._response = response

    def __iter__(self) -> Iterator[Message]:
        event, data = "message", []
        for raw in self._response:
            line = raw.decode(errors="replace").rstrip("\r\n")
            if line:
                field, _, value = line.partition(":")
                value = value.removeprefix(" ")
                if field == "event":
                    event = value
                elif field == "data":
                    data.append(value)
                continue
            if data:
                yield Message(event, json.loads("\n".join(data)))
            event, data = "message", []

    def close(self) -> None:
        """End the stream, from any thread: a reader that waits for a message ends as well."""
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def release(self) -> None:
        """Close the connection; only the reader may do so."""
        self._response.close()
        self._sock.close()


class Client:
    """Sends requests to one inspector, each on a connection of its own.

    Args:
        address (Address): Where the inspector listens.
        api_key (str): The key that goes with each request; empty for none.
        timeout (float | None): The longest time to wait for an answer, in seconds; ``None`` for no limit.
    """

    def __init__(self, address: Address, api_key: str = "", timeout: float | None = None) -> None:
        self.address = address
        self.timeout = timeout
        self._key = api_key

    def get(self, path: str, timeout: float | None = None) -> Any:
        """Return the result of a request for information.

        Args:
            path (str): The path, with its query.
            timeout (float | None): The longest time to wait for this answer, in seconds. Defaults to that
                of the client.

        Raises:
            CommandError: There is no answer, or it is an error.
        """
        return self.request("GET", path, timeout=timeout).result

    def request(
        self,
        method: str,
        path: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        prefer: str = "",
        timeout: float | None = None,
    ) -> Answer:
        """Send one request; return the answer.

        Args:
            method (str): The method of HTTP.
            path (str): The path, with its query.
            arguments (Mapping[str, Any] | None): The members of the JSON object in the body; no body for
                none.
            prefer (str): The preference, as of RFC 7240.
            timeout (float | None): The longest time to wait for this answer, in seconds. Defaults to that
                of the client.

        Raises:
            CommandError: There is no answer, or it is an error.
        """
        headers = {"Prefer": prefer} if prefer else {}
        body = json.dumps(arguments).encode() if arguments else None
        if body:
            headers["Content-Type"] = "application/json"
        sock, response = self._open(method, path, body, headers, timeout or self.timeout)
        content = self._read(sock, response)
        answer = Answer(response.status, response.headers.get("Location") or "", content)
        if answer.status >= 400:
            raise _error(answer, response.reason)
        return answer

    def stream(self, path: str, timeout: float | None = None) -> Stream:
        """Open a stream of server-sent events.

        Args:
            path (str): The path, with its query.
            timeout (float | None): The longest time between two messages, in seconds. Defaults to no limit.

        Raises:
            CommandError: There is no answer, or it is an error.
        """
        sock, response = self._open("GET", path, None, {"Accept": STREAM}, timeout)
        if response.status < 400 and STREAM in (response.headers.get("Content-Type") or ""):
            return Stream(sock, response)
        content = self._read(sock, response)
        if response.status >= 400:
            raise _error(Answer(response.status, "", content), response.reason)
        raise CommandError(
            "The inspector has no stream: the server is older than the command", ExitCode.FAILED
        )

    def _open(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str], timeout: float | None
    ) -> tuple[socket.socket, HTTPResponse]:
        connection = self._connection(timeout)
        sent: dict[str, str | bytes] = {**headers}
        if self._key:
            # Text would be sent as latin-1. A key from the environment may be no UTF-8.
            sent["Authorization"] = f"Bearer {self._key}".encode(errors="surrogateescape")
        try:
            connection.request(method, path, body, sent)
            # The connection forgets its socket if the server is going to close it.
            return connection.sock, connection.getresponse()
        except (OSError, HTTPException) as error:
            connection.close()
            raise self._unreachable(error) from error
        except ValueError as error:
            connection.close()
            message = f"The key, {self.address} or {one_line(path)} has characters that HTTP cannot send"
            raise CommandError(message, ExitCode.USAGE) from error

    def _read(self, sock: socket.socket, response: HTTPResponse) -> bytes:
        try:
            return response.read()
        except (OSError, HTTPException) as error:
            raise self._unreachable(error) from error
        finally:
            response.close()
            sock.close()

    def _connection(self, timeout: float | None) -> HTTPConnection:
        address = self.address
        if address.unix:
            return _UnixConnection(address.unix, timeout)
        if address.tls:
            context = ssl.create_default_context()
            return HTTPSConnection(address.host, address.port, timeout=timeout, context=context)
        return HTTPConnection(address.host, address.port, timeout=timeout)

    def _unreachable(self, error: Exception) -> CommandError:
        address, reason = self.address, one_line(error) or type(error).__name__
        if isinstance(error, (ConnectionRefusedError, FileNotFoundError)):
            message = f"Nothing listens at {address}. {HOW_TO_START}"
        elif isinstance(error, TimeoutError):
            message = f"No answer from {address} in time. --timeout sets the limit, in seconds."
        elif isinstance(error, ssl.SSLCertVerificationError):
            message = (
                f"The certificate of {address} is not trusted: {error.verify_message}. Name that of its "
                "authority in SSL_CERT_FILE."
            )
        elif isinstance(error, PermissionError):
            message = f"Cannot connect to {address}: {reason}. The socket belongs to another user."
        else:
            is_tls_possible = not (address.tls or address.unix or isinstance(error, socket.gaierror))
            hint = " If the inspector has TLS, add --secure." if is_tls_possible else ""
            message = f"Cannot connect to {address}: {reason}.{hint}"
        return CommandError(message, ExitCode.UNREACHABLE)


class _UnixConnection(HTTPConnection):
    """A connection to a unix socket."""

    def __init__(self, path: str, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.settimeout(self.timeout)
            sock.connect(self._path)
        except BaseException:
            sock.close()
            raise
        self.sock = sock


def _error(answer: Answer, reason: str) -> CommandError:
    """Return the error in an answer, in the server's own words."""
    text = answer.body[:LIMIT].decode(errors="replace")
    with suppress(ValueError, KeyError, TypeError):
        text = json.loads(answer.body)["message"]
    message = one_line(text) or f"{answer.status} {one_line(reason)}"
    refused = answer.status in (401, 403)
    if answer.status == 401:
        message += ". Give the key by SANIC_INSPECTOR_API_KEY or --api-key"
    return CommandError(message, ExitCode.REFUSED if refused else ExitCode.FAILED)
