"""The page of the inspector: one HTML document with its styles and scripts, and without any data.

The document is the same for every client, so it is served without a key. Its scripts get the data from the
inspector's other routes, with the key that the operator has typed.
"""

from __future__ import annotations

from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import NamedTuple

from sanic.exceptions import InvalidHeader
from sanic.request import Request
from sanic.response import HTTPResponse

__all__ = ["Document", "document", "respond", "wants_page"]

# One script is made of these, in this order. They share their names.
SCRIPTS = (
    "format.js",
    "client.js",
    "series.js",
    "view.js",
    "activity.js",
    "actions.js",
    "stacks.js",
    "main.js",
)
STYLE_SLOT, SCRIPT_SLOT = "/* page.css */", "/* scripts */"


class Document(NamedTuple):
    """The page, ready to be sent: its body and the headers of its own."""

    body: bytes
    headers: dict[str, str]


def wants_page(request: Request) -> bool:
    """Return whether this is a GET of ``/`` by a client that prefers HTML to JSON, and the page is installed.

    A client that accepts both alike (``*/*``, or no ``Accept`` at all) gets JSON. A frozen program may lack
    the files of the page.
    """
    # A program names no type of text. Reading the header in full would take a tenth of its answer.
    named = request.headers.get("accept", "").lower()
    if request.method != "GET" or request.path != "/" or "text/" not in named:
        return False
    try:
        preferred = request.accept.match("application/json", "text/html")
    except InvalidHeader:
        return False
    return preferred == "text/html" and files(__package__).joinpath("page.html").is_file()


def respond(request: Request) -> HTTPResponse:
    """Return the page, or 304 if the client holds it already."""
    page = document()
    held = request.headers.get("if-none-match", "")
    if page.headers["ETag"] in [tag.strip().removeprefix("W/") for tag in held.split(",")]:
        return HTTPResponse(status=304, headers=page.headers)
    return HTTPResponse(page.body, headers=page.headers, content_type="text/html; charset=utf-8")


@cache
def document() -> Document:
    """Return the document, put together from the files of this package."""
    style, script = _text("page.css"), "\n".join(map(_text, SCRIPTS))
    body = _text("page.html").replace(STYLE_SLOT, style).replace(SCRIPT_SLOT, script).encode()
    policy = [
        "default-src 'none'",
        f"script-src '{_source(script)}'",
        f"style-src '{_source(style)}'",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # Text never becomes HTML: the browser refuses innerHTML and its kin.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
    # The other security headers are those of all answers.
    headers = {
        "Content-Security-Policy": "; ".join(policy),
        "Cache-Control": "no-cache",
        "ETag": f'"{sha256(body).hexdigest()[:32]}"',
        "Vary": "Accept",
    }
    return Document(body, headers)


def _text(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _source(inlined: str) -> str:
    """Return the CSP source of an inlined element: the browser runs only this text."""
    return f"sha256-{b64encode(sha256(inlined.encode()).digest()).decode()}"
