"""The methods that can be called over HTTP, their arguments, and the messages of refused requests."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from support.fakes import FakePublisher
from support.inspecting import Served, Shared, ask, make

from worker.constants import MAIN_NAME, WORKER_PREFIX, prefixed
from worker.inspector import Inspector, action


class Mixin:
    def helper(self) -> str:
        return "not an action"

    @action(read_only=True)
    def offered(self) -> str:
        return "an action"

    def reload(self, zero_downtime: bool = False) -> None:
        """An override of an action is one."""
        super().reload(zero_downtime)  # type: ignore[misc]


class Base(Inspector):
    def inherited(self) -> str:
        return "inherited"

    def covered(self) -> str:
        raise AssertionError("a subclass has put an attribute in its place")

    @property
    def computed(self) -> Any:
        raise AssertionError("a property was read")


class Custom(Mixin, Base):
    handler = staticmethod(lambda: None)
    covered = "no action"  # type: ignore[assignment]

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.assigned = lambda: "not of the class"

    @action(read_only=True)
    def look(self, at: str = "all", *args: str) -> list[str]:
        return [at, *args]

    @action(hidden=True)
    def secret(self) -> None:
        raise AssertionError("hidden")

    @action(hidden=True)
    def shutdown(self) -> None:
        raise AssertionError("hidden")

    @action(read_only=True)
    @classmethod
    def of_class(cls) -> str:
        return cls.__name__

    def status(self) -> str:
        return "of the subclass"

    def echo(self, **values: Any) -> Any:
        return values


@pytest.fixture
def publisher() -> FakePublisher:
    return FakePublisher()


@pytest.fixture
def call(publisher: FakePublisher, shared: Shared) -> Callable[..., Any]:
    inspector = make(Custom, publisher, worker_state=shared.state)(run=False)

    def call(method: str, path: str, data: Any = None, **options: Any) -> Any:
        return ask(inspector, method, path, data, **options)

    return call


Call = Callable[..., Any]
KNOWN = "echo, inherited, look, of_class, offered, reload, restart, scale, stacks, status, upgrade"


class TestWhatCanBeCalled:
    @pytest.mark.parametrize(
        ("name", "result"),
        [
            ("inherited", "inherited"),
            ("offered", "an action"),
            ("look", ["all"]),
            ("of_class", "Custom"),
            ("echo", {}),
            ("status", "of the subclass"),
            ("reload", None),
        ],
    )
    def test_public_methods_of_a_subclass(self, call: Call, name: str, result: Any) -> None:
        answer = call("POST", f"/{name}")
        assert (answer.status, answer.json) == (200, {"meta": {"action": name}, "result": result})

    @pytest.mark.parametrize(
        "name",
        [
            *("helper", "secret", "shutdown", "assigned", "covered", "computed", "handler", "worker_state"),
            *("_setup", "__init__", "app", "app_info", "restart_policy", "api_key"),
        ],
    )
    @pytest.mark.parametrize("method", ["GET", "POST"])
    def test_all_else_is_unknown(self, call: Call, method: str, name: str) -> None:
        answer = call(method, f"/{name}")
        assert answer.status == 404
        assert answer.json["message"] == f"Unknown action: {name}. Known actions: {KNOWN}"

    def test_a_long_name_is_cut(self, call: Call) -> None:
        message = call("POST", "/" + "x" * 5000).json["message"]
        assert message.startswith("Unknown action: xxx")
        assert len(message) < 400

    @pytest.mark.parametrize(
        ("path", "result"),
        [
            ("/look", ["all"]),
            ("/look?at=here", ["here"]),
            ("/look?args=a&args=b", ["a", "b"]),
            ("/of_class", "Custom"),
            ("/offered", "an action"),
        ],
    )
    def test_get_calls_a_read_only_action(self, call: Call, path: str, result: Any) -> None:
        answer = call("GET", path)
        assert (answer.status, answer.json["result"]) == (200, result)

    @pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
    @pytest.mark.parametrize("name", ["reload", "scale", "echo"])
    def test_only_post_calls_another_action(
        self, call: Call, publisher: FakePublisher, method: str, name: str
    ) -> None:
        answer = call(method, f"/{name}")
        assert answer.status == 405
        assert answer.headers["allow"] == "POST"
        assert method == "HEAD" or answer.json["message"].endswith("allowed methods: POST")
        assert publisher.sent == []

    @pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
    @pytest.mark.parametrize("path", ["/reload", "/status", "/operations"])
    def test_other_methods_are_refused(self, call: Call, method: str, path: str) -> None:
        assert call(method, path).status == 405

    def test_get_of_the_status_is_the_inspector_s_own(self, call: Call) -> None:
        assert {one["name"] for one in call("GET", "/status").json["result"]["workers"]} == {
            "Sanic-Server-0-0",
            "Sanic-Server-1-0",
        }

    @pytest.mark.parametrize("marked", [property(lambda self: None), staticmethod(lambda: None), 3])
    def test_only_a_method_can_be_marked(self, marked: Any) -> None:
        with pytest.raises(TypeError, match="marks methods"):
            action(read_only=True)(marked)


REFUSED = [
    ("/reload", {"zero_downtime": "yes"}, 400, ["zero_downtime", "'yes'", "true or false"]),
    ("/reload", {"zero_downtime": 1}, 400, ["zero_downtime", "1", "true or false"]),
    ("/reload", {"when": "now"}, 400, ["'when': 'now'", "zero_downtime=False"]),
    ("/scale", {"replicas": 1000}, 400, ["replicas", "1000", "at most "]),
    ("/scale", {"replicas": "+1000"}, 400, ["replicas", "'+1000'", "at most "]),
    ("/scale", {"replicas": "-2"}, 400, ["replicas", "'-2'", "from 1 on"]),
    ("/scale", {"replicas": "9" * 5000}, 400, ["replicas", "'999", "from 1 on"]),
    ("/scale", {"replicas": 2.5}, 400, ["replicas", "2.5", "from 1 on"]),
    ("/scale", {"replicas": 2, "more": [1]}, 400, ["'more': [1]", "replicas"]),
    ("/restart", {}, 400, ["names", "zero_downtime=False"]),
    ("/restart", {"names": []}, 400, ["names", "[]", "Sanic-Server-0-0, Sanic-Server-1-0"]),
    ("/restart", {"names": 3}, 400, ["names", "3", "Sanic-Server-0-0"]),
    ("/restart", {"names": ["Sanic-Server-0-0", "x"]}, 400, ["names", "'x'", "Sanic-Server-0-0"]),
    ("/restart", {"names": ["Sanic-Main"]}, 400, ["names", "'Sanic-Main'", "Sanic-Server-1-0"]),
    ("/restart", {"names": [["Sanic-Server-0-0"]]}, 400, ["names", "[['Sanic-Server-0-0']]"[1:-1]]),
    ("/restart", {"names": ["Sanic-Server-0-0"], "zero_downtime": 0}, 400, ["zero_downtime", "0"]),
    ("/echo", {"self": 1}, 400, ["Cannot call echo", "'self'", "**values"]),
    ("/look", {"args": {"a": 1}}, 400, ["args", "{'a': 1}", "JSON array"]),
]
BODIES = [
    (b"[1]", {}, 400, ["JSON object", "[1]"]),
    (b'"text"', {}, 400, ["JSON object", "'text'"]),
    (b"{", {}, 400, ["Failed when parsing body as json", "b'{'"]),
    (b'{"replicas": NaN}', {}, 400, ["NaN"]),
    (b"\xff\xfe\xfd", {}, 400, ["Failed when parsing body as json"]),
    (b"[" * 50_000, {}, 400, ["Failed when parsing body as json"]),
    (b"1" * 6_000, {}, 400, ["Failed when parsing body as json"]),
    (b"replicas=2", {"content_type": "text/plain"}, 415, ["text/plain", "application/json"]),
    (b"<a/>", {"content_type": "application/xml"}, 415, ["application/xml", "application/json"]),
]


class TestRefusedRequests:
    """A refused request has no effect. The message names the field, the value and the allowed values."""

    @pytest.mark.parametrize(("path", "data", "status", "parts"), REFUSED)
    def test_arguments(
        self, call: Call, publisher: FakePublisher, path: str, data: Any, status: int, parts: list[str]
    ) -> None:
        answer = call("POST", path, data)
        assert answer.status == status
        assert answer.json.keys() == {"description", "status", "message"}
        assert all(part in answer.json["message"] for part in parts), answer.json["message"]
        assert len(answer.body) < 900
        assert publisher.sent == []

    @pytest.mark.parametrize(("body", "headers", "status", "parts"), BODIES)
    def test_bodies(
        self,
        call: Call,
        publisher: FakePublisher,
        body: bytes,
        headers: dict[str, str],
        status: int,
        parts: list[str],
    ) -> None:
        answer = call("POST", "/scale", raw=body, **headers)
        assert answer.status == status
        assert all(part in answer.json["message"] for part in parts), answer.json["message"]
        assert len(answer.body) < 900
        assert publisher.sent == []

    @pytest.mark.parametrize(
        ("path", "parts"),
        [
            ("/status?interval=0.1", ["interval", "from 0.2 to 60.0", "'0.1'"]),
            ("/status?interval=1e9", ["interval", "'1e9'"]),
            ("/status?every=1", ["'every' = '1'", "interval"]),
            ("/events?since=-1", ["since", "a whole number", "'-1'"]),
            ("/events?limit=0", ["limit", "from 1 to 1000", "'0'"]),
            ("/operations?id=1", ["'id' = '1'", "none"]),
            ("/operations/x?wait=61", ["wait", "from 0.0 to 60.0", "'61'"]),
            ("/operations/x?wait=", ["wait", "''"]),
        ],
    )
    def test_queries(self, call: Call, path: str, parts: list[str]) -> None:
        answer = call("GET", path)
        assert answer.status == 400
        assert all(part in answer.json["message"] for part in parts), answer.json["message"]

    def test_an_error_is_json_for_a_browser_too(self, call: Call) -> None:
        answer = call("POST", "/nothing", accept="text/html")
        assert answer.headers["content-type"] == "application/json"

    @pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "application/x-www-form-urlencoded"])
    def test_the_types_that_clients_send_are_accepted(self, call: Call, kind: str) -> None:
        answer = call("POST", "/echo", {"a": 1}, content_type=kind)
        assert answer.json["result"] == {"a": 1}


class TestCommands:
    """Without operations in the state, the commands are those of Sanic's inspector."""

    @pytest.mark.parametrize(
        ("name", "data", "sent"),
        [
            ("reload", {"zero_downtime": True}, "__ALL_PROCESSES__::STARTUP_FIRST"),
            ("restart", {"names": ["a"]}, "a:"),
            ("restart", {"names": ["a", "b", "a"], "zero_downtime": True}, "a,b::STARTUP_FIRST"),
            ("restart", {"args": ["a, b"]}, "a,b:"),
            ("scale", {"replicas": "+1"}, "__SCALE__:3"),
            ("scale", {"replicas": "-1"}, "__SCALE__:1"),
            ("scale", {"replicas": " +2 "}, "__SCALE__:4"),
        ],
    )
    def test_commands(self, publisher: FakePublisher, name: str, data: Any, sent: str) -> None:
        stopping = {"server": True, "phase": "stopping"}
        state = {"Sanic-Main": {}, "a": {"server": True}, "b": {"server": True}, "c": stopping}
        inspector = make(publisher=publisher, worker_state=state)(run=False)
        answer = ask(inspector, "POST", f"/{name}", data)
        assert answer.status == 200, answer.json
        assert "location" not in answer.headers
        assert publisher.sent == [sent]

    @pytest.mark.native
    @pytest.mark.parametrize("replicas", [1, 0, "", 5, "+3", "-1"])
    def test_a_number_out_of_the_range_is_refused(
        self, publisher: FakePublisher, replicas: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SANIC_WORKER_WORKERS", "2..4")
        state = {name: {"server": True} for name in "ab"}
        inspector = make(publisher=publisher, worker_state=state)(run=False)
        answer = ask(inspector, "POST", "/scale", {"replicas": replicas})
        assert answer.status == 400
        assert "a whole number from 2 on, at most 4 (workers), or" in answer.json["message"]
        for right in (2, 4, "+1", "+2"):
            assert ask(inspector, "POST", "/scale", {"replicas": right}).status == 200

    def test_a_name_that_no_command_can_hold_is_unknown(self, publisher: FakePublisher) -> None:
        inspector = make(publisher=publisher, worker_state={"a:b": {}, "c,d": {}})(run=False)
        for name in ("a:b", "c,d"):
            assert ask(inspector, "POST", "/restart", {"names": [name]}).status == 400
        assert publisher.sent == []

    @pytest.mark.parametrize("name", ["Inspector-0", "Reloader-0", "Health-0"])
    def test_a_process_of_the_manager_cannot_be_restarted(self, publisher: FakePublisher, name: str) -> None:
        name = prefixed(WORKER_PREFIX, name)
        state = {MAIN_NAME: {}, name: {}, "a": {"server": True}, "b": {}}
        inspector = make(publisher=publisher, worker_state=state)(run=False)
        answer = ask(inspector, "POST", "/restart", {"names": ["a", name]})
        assert answer.status == 400
        assert answer.json["message"].endswith(f"no restart may name: '{name}'; workers: a, b")
        assert publisher.sent == []

    def test_a_state_that_cannot_be_reached(self, publisher: FakePublisher) -> None:
        class Gone(dict[str, Any]):
            def copy(self) -> Any:
                raise ConnectionError("gone")

            def merge(self, name: str, changes: Any) -> None:
                raise ConnectionError("gone")

            def cells(self, sheet: str) -> Any:
                raise EOFError

        inspector = make(publisher=publisher, worker_state=Gone())(run=False)
        for method, path in [("GET", "/"), ("GET", "/status"), ("GET", "/events"), ("GET", "/operations")]:
            assert ask(inspector, method, path).status == 503
        assert ask(inspector, "POST", "/shutdown").status == 200
        assert publisher.sent == ["__TERMINATE__"]


@pytest.mark.slow
def test_a_path_without_a_slash_is_the_information(shared: Shared) -> None:
    with Served(shared.state) as served, closing(served.connect()) as sock:
        sock.sendall(b"GET * HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert sock.makefile("rb").readline().split()[1] == b"200"


def test_all_answers_have_security_headers(call: Call) -> None:
    for method, path in [
        ("GET", "/"),
        ("GET", "/status"),
        ("POST", "/nothing"),
        ("PUT", "/"),
        ("GET", "/a/b"),
    ]:
        headers = call(method, path).headers
        assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["cache-control"] == "no-store"


def test_a_decorated_method_is_not_changed() -> None:
    assert Custom.look.__name__ == "look"
    assert json.dumps(Custom.of_class()) == '"Custom"'
