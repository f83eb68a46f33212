"""Each security rule against its attack, which works on an inspector without the rule.

The rules against guessed keys are in test_guard.py, those against slow clients in test_limits.py and
test_streams.py.
"""

from __future__ import annotations

from typing import Any

import pytest
from sanic.request import Request
from support.fakes import FakePublisher
from support.inspecting import Announced, Served, ask, make

from worker._inspect import connections
from worker.inspector import Inspector, action

EVIL = "http://evil.example"


class Trusting(Inspector):
    """An inspector that obeys any web page."""

    def _same_origin(self, request: Request) -> None:
        pass


FOREIGN = {
    # A form or a script of a foreign page, which the browser sends without a preflight request.
    "form": {"origin": EVIL, "content-type": "application/x-www-form-urlencoded"},
    "same site": {"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors"},
    "sandboxed frame": {"origin": "null"},
    # The name of the attacker resolves to this machine (DNS rebinding).
    "rebinding": {"host": "evil.example:6457", "origin": "http://evil.example:6457"},
    "rebinding without origin": {"host": "evil.example:6457"},
}


class TestForeignPages:
    @pytest.mark.parametrize("headers", FOREIGN.values(), ids=FOREIGN)
    def test_a_foreign_page_stops_a_server_that_trusts_it_alone(self, headers: dict[str, str]) -> None:
        sent: dict[type, list[Any]] = {}
        for kind in (Trusting, Inspector):
            publisher = FakePublisher()
            answer = ask(make(kind, publisher)(run=False), "POST", "/shutdown", raw=b"{}", **headers)
            sent[kind] = publisher.sent
        assert sent == {Trusting: ["__TERMINATE__"], Inspector: []}
        assert answer.status == 403

    @pytest.mark.parametrize("headers", FOREIGN.values(), ids=FOREIGN)
    @pytest.mark.parametrize("path", ["/", "/status", "/events", "/operations", "/openapi.json"])
    def test_a_foreign_page_reads_nothing(self, path: str, headers: dict[str, str]) -> None:
        assert ask(make(Trusting)(run=False), "GET", path, **headers).status == 200
        answer = ask(make()(run=False), "GET", path, **headers)
        assert answer.status == 403
        assert answer.json.keys() == {"description", "status", "message"}

    def test_no_answer_allows_another_origin_to_read_it(self) -> None:
        headers = ask(make(api_key="k")(run=False), "GET", "/", authorization="Bearer k", origin=EVIL).headers
        assert not [name for name in headers if name.startswith("access-control-")]


class Tools:
    """A base class that knows nothing of inspectors."""

    def remove(self, path: str) -> str:
        return f"removed {path}"


class Offered:
    @action()
    def remove(self, path: str) -> str:
        return f"removed {path}"


def test_a_method_of_a_base_class_is_called_only_if_it_is_offered() -> None:
    class Plain(Tools, Inspector): ...

    class Offering(Offered, Inspector): ...

    answers = [ask(make(kind)(run=False), "POST", "/remove", {"path": "/"}) for kind in (Offering, Plain)]
    assert [answer.status for answer in answers] == [200, 404]
    assert answers[0].json["result"] == "removed /"


def test_a_page_cannot_be_framed_or_misread() -> None:
    """A browser frames or runs an answer without these headers; test_actions.py checks them for all."""
    answer = ask(make()(run=False), "GET", "/")
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"


class Measuring(Announced):
    def size(self, text: str) -> int:
        return len(text)


@pytest.mark.slow
def test_a_large_body_is_kept_only_without_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    body = b'{"text": "%s"}' % (b"x" * 1_000_000)
    for limit, status in ((10_000_000, 200), (connections.MAX_BODY, 413)):
        monkeypatch.setattr(connections, "MAX_BODY", limit)
        with Served({}, Measuring) as served, served.open("POST", "/size", body) as answer:
            assert answer.status == status
