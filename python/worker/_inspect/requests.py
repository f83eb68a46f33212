"""Reads the parts of a request to the inspector, and refuses those that are wrong.

Each message names the part, its value, and the values that are allowed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

from sanic.exceptions import BadRequest, SanicException
from sanic.request import Request

from worker.constants import NAME_LIMIT, excerpt

__all__ = [
    "MAX_WAIT",
    "Preferences",
    "UnsupportedType",
    "arguments",
    "client",
    "is_malformed",
    "json_object",
    "preferences",
    "query",
]

# The longest time for which a request is held until an operation ends, seconds.
MAX_WAIT = 60

# The type that curl and urllib give to any body stands for JSON, too: Sanic's inspector never looks at it.
_JSON = re.compile(r"application/(json|[\w.+-]+\+json|x-www-form-urlencoded)")


class UnsupportedType(SanicException):
    """The body of a request has another type than JSON."""

    status_code = 415
    quiet = True


class Preferences(NamedTuple):
    """The header ``Prefer`` of a request (RFC 7240).

    Attributes:
        respond_async: The client wants an answer at once, and asks for the result later.
        wait: How long the client waits for the result, seconds; ``None`` if it does not say so.
    """

    respond_async: bool = False
    wait: int | None = None

    def __str__(self) -> str:
        names = ["respond-async"] * self.respond_async
        return ", ".join(names if self.wait is None else [*names, f"wait={self.wait}"])


def json_object(request: Request) -> dict[str, Any]:
    """Return the JSON object in the body of a request; an empty one if there is no body.

    Raises:
        BadRequest: The body holds something else.
        UnsupportedType: The body has another type.
    """
    if not request.body:
        return {}
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind and not _JSON.fullmatch(kind):
        raise UnsupportedType(
            f"Content-Type is {excerpt(kind, NAME_LIMIT, quoted=True)}; the body must be application/json"
        )
    try:
        content = json.loads(request.body, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise BadRequest(
            f"Failed when parsing body as json: {excerpt(error)}. The body begins with "
            f"{excerpt(request.body[:NAME_LIMIT])}; it must be a JSON object"
        ) from error
    if not isinstance(content, dict):
        raise BadRequest(f"The body must be a JSON object, not {excerpt(content, NAME_LIMIT, quoted=True)}")
    return content


def arguments(request: Request) -> dict[str, Any]:
    """Return the arguments of an action in the query of a request: text, as the command line gives it."""
    given: Mapping[str, list[str]] = request.get_args(keep_blank_values=True)
    return {name: values if name == "args" else values[-1] for name, values in given.items()}


def query(request: Request, **ranges: tuple[float, float]) -> dict[str, float]:
    """Return the numbers in the query of a request, those that are given.

    Args:
        request (Request): The request.
        **ranges (tuple[float, float]): The names that are allowed, each with the least and the greatest
            number. A range of two integers takes integers alone.

    Raises:
        BadRequest: There is another name, or a value that is not in its range.
    """
    given: Mapping[str, list[str]] = request.get_args(keep_blank_values=True)
    for name in given:
        if name not in ranges:
            allowed = ", ".join(ranges) or "none"
            raise BadRequest(
                f"The query has {excerpt(name, NAME_LIMIT, quoted=True)} = "
                f"{excerpt(given[name][0], NAME_LIMIT, quoted=True)}; allowed parameters: {allowed}"
            )
    return {name: _number(name, given[name][-1], *ranges[name]) for name in given}


def preferences(request: Request) -> Preferences:
    """Return the preferences of a client. Unknown and malformed ones are ignored, as RFC 7240 demands."""
    found = Preferences()
    for part in ",".join(request.headers.getall("prefer", [])).split(","):
        name, _, value = (piece.strip().strip('"') for piece in part.partition(";")[0].partition("="))
        if name.lower() == "respond-async":
            found = found._replace(respond_async=True)
        elif name.lower() == "wait" and re.fullmatch(r"[0-9]{1,9}", value):
            found = found._replace(wait=min(int(value), MAX_WAIT))
    return found


def client(request: Request) -> str:
    """Return the address of a client; of one that came over a unix socket, ``unix``."""
    return request.ip or "unix"


def is_malformed(request: Request) -> bool:
    """Return whether Sanic could not parse a request: it then makes an empty one, for the answer alone."""
    return request.method == "NONE" and not request.head


def _number(name: str, text: str, least: float, greatest: float) -> float:
    is_whole = isinstance(least, int) and isinstance(greatest, int)
    if re.fullmatch(r"[0-9]{1,15}" if is_whole else r"[0-9]{1,15}(\.[0-9]{0,15})?", text):
        number = int(text) if is_whole else float(text)
        if least <= number <= greatest:
            return number
    kind = "a whole number" if is_whole else "a number"
    raise BadRequest(
        f"{name} must be {kind} from {least} to {greatest}, not {excerpt(text, NAME_LIMIT, quoted=True)}"
    )


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")
