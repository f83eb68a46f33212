"""The form of all answers of the inspector: security headers, and errors in JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sanic import Sanic
from sanic.errorpages import JSONRenderer
from sanic.exceptions import MethodNotAllowed, PayloadTooLarge, ServiceUnavailable
from sanic.handlers import ErrorHandler
from sanic.request import Request
from sanic.response import BaseHTTPResponse, HTTPResponse

from worker._state import schema
from worker._state.foreign import snapshot
from worker.constants import excerpt

__all__ = ["Errors", "prepare", "read_state", "reading_state", "secure", "unreachable"]

# A page has a policy of its own; all else is data, from which a browser must load and run nothing.
HEADERS = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


def prepare(app: Sanic[Any, Any]) -> None:
    """Give all answers of an application this form."""
    app.config.FALLBACK_ERROR_FORMAT = "json"
    app.error_handler = Errors()
    app.register_middleware(secure, "response")


@contextmanager
def reading_state() -> Iterator[None]:
    """Answer 503 if the body cannot read the shared state."""
    try:
        yield
    except (OSError, EOFError) as error:
        raise ServiceUnavailable(unreachable(error)) from error


def unreachable(error: Exception) -> str:
    """Return the message of an answer without the shared state."""
    return f"The state of the workers cannot be reached: {excerpt(error)}"


def read_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of the shared state, as they are shown, or answer 503."""
    with reading_state():
        found = snapshot(state)
    return {name: _shown(entry) for name, entry in found.items()}


def _shown(entry: Any) -> Any:
    """Return an entry without the answers to questions of single clients, if it has any."""
    if not isinstance(entry, Mapping) or schema.UNSHOWN.isdisjoint(entry):
        return entry
    return {key: value for key, value in entry.items() if key not in schema.UNSHOWN}


def secure(_: Request, response: BaseHTTPResponse) -> None:
    """Add the security headers that an answer does not have yet."""
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)


class Errors(ErrorHandler):
    """Makes the answers of errors: always JSON, always with the security headers."""

    def default(self, request: Request, exception: Exception) -> HTTPResponse:
        """Return the answer of an error, and log it if it is a fault of the inspector."""
        self.log(request, exception)
        if isinstance(exception, MethodNotAllowed):
            allowed = exception.headers.get("Allow", "")
            exception.args = (f"{request.method} is not allowed here; allowed methods: {allowed}",)
        elif isinstance(exception, PayloadTooLarge):
            config = request.app.config
            limits = f"{config.REQUEST_MAX_HEADER_SIZE} bytes of header, {config.REQUEST_MAX_SIZE} of body"
            exception.args = (f"{excerpt(exception)}; allowed: {limits}",)
        response: HTTPResponse = JSONRenderer(request, exception, debug=False).render()
        # Sanic runs no middleware for an error in the header of a request.
        secure(request, response)
        return response
