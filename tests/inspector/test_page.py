"""The page as it is sent: its clients, its headers, and the elements that a browser is allowed to run."""

from __future__ import annotations

import asyncio
import re
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser
from typing import Any

import pytest
from sanic import Sanic
from sanic.helpers import Default
from sanic_testing.testing import SanicASGITestClient
from support.fakes import FakePublisher

from worker._inspect.page import document
from worker._inspect.responses import HEADERS
from worker.inspector import Inspector

CHROME = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
# Elements and attributes by which a document loads more than itself.
LOADING = {"src", "srcset", "data", "poster", "action", "formaction", "background", "ping"}


class Elements(HTMLParser):
    """Collects the elements of a document, each with its attributes and the text in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), []))

    def handle_endtag(self, tag: str) -> None:
        self.found.append((f"/{tag}", {}, []))

    def handle_data(self, data: str) -> None:
        if self.found:
            self.found[-1][2].append(data)

    def text(self, tag: str) -> str:
        (content,) = ["".join(content) for name, _, content in self.found if name == tag]
        return content


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sanic, "__call__", Sanic.__call__)
    monkeypatch.setenv("SANIC_IGNORE_PRODUCTION_WARNING", "")


def ask(path: str = "/", method: str = "GET", key: str = "", **headers: str) -> Any:
    unset = Default()
    inspector = Inspector(FakePublisher(), {}, {}, "localhost", 6457, key, unset, unset)(run=False)  # type: ignore[arg-type]

    async def request() -> Any:
        async with SanicASGITestClient(inspector.app) as client:
            # The client of the test sends `Accept: */*` of its own.
            own = {
                "host": "localhost:6457",
                **{name.replace("_", "-"): text for name, text in headers.items()},
            }
            return (await client.request(method, path, headers=own))[1]

    return asyncio.run(request())


def policy() -> dict[str, list[str]]:
    """Return the content security policy: the sources by directive."""
    directives = document().headers["Content-Security-Policy"].split("; ")
    return {name: sources for name, *sources in (directive.split(" ") for directive in directives)}


def source(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


@pytest.mark.parametrize("accept", [CHROME, "text/html", "text/html, application/json;q=0.9"])
def test_a_client_that_prefers_html_gets_the_page(accept: str) -> None:
    response = ask(accept=accept)
    assert response.status == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.body == document().body
    assert (
        document().headers.items()
        <= {name: response.headers[name.lower()] for name in document().headers}.items()
    )


@pytest.mark.parametrize(
    "accept",
    ["*/*", "", "application/json", "text/html, application/json", "text/html;q=0.5, */*", "nonsense"],
)
def test_any_other_client_gets_json_as_before(accept: str) -> None:
    response = ask(accept=accept)
    assert response.status == 200
    assert response.json["meta"] == {"action": "info"}


def test_the_page_is_served_without_the_key_and_nothing_else_is() -> None:
    assert ask(key="secret", accept=CHROME).body == document().body
    assert ask(key="secret", accept="application/json").status == 401
    assert ask("/scale", "POST", key="secret", accept=CHROME).status == 401
    assert ask("/workers", key="secret", accept=CHROME).status != 200


def test_the_page_has_the_headers_of_all_answers_unless_it_needs_others() -> None:
    page = {name.lower(): value for name, value in document().headers.items()}
    assert page.keys() == {"content-security-policy", "cache-control", "etag", "vary"}
    for if_none_match in ("", page["etag"]):
        answered = ask(accept=CHROME, if_none_match=if_none_match).headers
        for name, value in {**HEADERS, **page}.items():
            assert answered.get_list(name) == [value], name


def test_a_foreign_host_gets_no_page() -> None:
    assert ask(host="evil.example", accept=CHROME).status == 403


def test_a_browser_that_holds_the_page_gets_304() -> None:
    tag = ask(accept=CHROME).headers["etag"]
    for held in (tag, f"W/{tag}", f'"other", {tag}'):
        response = ask(accept=CHROME, if_none_match=held)
        assert (response.status, response.body, response.headers["etag"]) == (304, b"", tag)
        assert response.headers["content-security-policy"] == document().headers["Content-Security-Policy"]
    assert ask(accept=CHROME, if_none_match='"other"').status == 200


def test_the_policy_allows_the_inlined_style_and_script_alone() -> None:
    elements = Elements(document().body.decode())
    assert policy()["default-src"] == ["'none'"]
    assert policy()["script-src"] == [source(elements.text("script"))]
    assert policy()["style-src"] == [source(elements.text("style"))]
    assert policy()["connect-src"] == ["'self'"]
    assert policy()["frame-ancestors"] == policy()["base-uri"] == policy()["form-action"] == ["'none'"]
    assert "unsafe" not in document().headers["Content-Security-Policy"]


def test_the_page_is_one_document() -> None:
    """It loads nothing, and has no attribute that the policy would refuse."""
    elements = Elements(document().body.decode())
    for tag, attributes, _ in elements.found:
        assert not LOADING & set(attributes), tag
        assert not [name for name in attributes if name == "style" or name.startswith("on")], tag
        assert (attributes.get("href") or "data:").startswith("data:")
    assert not re.search(r"url\(|@import", elements.text("style"))
    assert not re.search(r"https?://|\bimport\b", elements.text("script"))


def test_the_scripts_never_make_html_from_text() -> None:
    script = Elements(document().body.decode()).text("script")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b", script)
