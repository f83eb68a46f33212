"""Actions that tell the truth: the operation that a command begins, and how it ends."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe
from time import time
from typing import Any

import pytest
from support.fakes import FakePublisher
from support.inspecting import Served, Shared, ask, make

from worker._control.send import OPERATION, UPGRADE, send
from worker._inspect import operations
from worker.inspector import Inspector


class Custom(Inspector):
    def reload(self, zero_downtime: bool = False) -> None:
        super().reload(zero_downtime)

    def twice(self) -> str:
        self.reload()
        self.scale(3)
        return "both"

    async def later(self) -> str:
        self.shutdown()
        return "soon"

    def raw(self) -> str:
        send(self._publisher, "__ALL_PROCESSES__:")
        return "sent"


Call = Callable[..., Any]


@pytest.fixture
def publisher() -> FakePublisher:
    return FakePublisher()


@pytest.fixture
def call(publisher: FakePublisher, shared: Shared) -> Call:
    inspector = make(Custom, publisher, worker_state=shared.state)(run=False)
    return lambda *args, **options: ask(inspector, *args, **options)


def test_a_full_channel_holds_no_client_up(shared: Shared) -> None:
    """The main process does not read: a stopped one, for instance."""
    reader, writer = Pipe(True)
    with reader, writer:
        os.set_blocking(writer.fileno(), False)
        with suppress(BlockingIOError):
            while True:
                os.write(writer.fileno(), bytes(65536))
        os.set_blocking(writer.fileno(), True)
        inspector = make(Custom, writer, worker_state=shared.state)(run=False)
        answer = ask(inspector, "POST", "/scale", {"replicas": 3})
        assert answer.status == 503
        assert "does not read its commands" in answer.json["message"]


class TestScalingByAChange:
    def test_counts_from_the_scaling_that_has_not_ended(
        self, call: Call, publisher: FakePublisher, shared: Shared
    ) -> None:
        assert [call("POST", "/scale", {"replicas": "+1"}).status for _ in range(3)] == [200] * 3
        assert [sent[1] for sent in publisher.sent] == ["__SCALE__:3", "__SCALE__:4", "__SCALE__:5"]
        for message in publisher.sent:
            shared.show_operation(message[2], "running", kind="scale")
        assert call("POST", "/scale", {"replicas": "-2"}).json["result"] == "Scaling to 3"

    @pytest.mark.parametrize("ends", [True, False])
    def test_counts_the_servers_after_its_end_or_a_later_scaling(
        self, call: Call, publisher: FakePublisher, shared: Shared, ends: bool
    ) -> None:
        call("POST", "/scale", {"replicas": 7})
        shared.show_operation(publisher.sent[0][2], "failed" if ends else "running", kind="scale")
        if not ends:
            shared.show_operation("by a signal", "running", kind="scale")
        assert call("POST", "/scale", {"replicas": "+1"}).json["result"] == "Scaling to 3"


class TestAnswers:
    @pytest.mark.parametrize(
        ("name", "data", "result", "command"),
        [
            ("reload", {"zero_downtime": True}, None, "__ALL_PROCESSES__::STARTUP_FIRST"),
            ("restart", {"names": ["Sanic-Server-1-0"]}, None, "Sanic-Server-1-0:"),
            ("scale", {"replicas": 3}, "Scaling to 3", "__SCALE__:3"),
            ("shutdown", None, None, "__TERMINATE__"),
            ("later", None, "soon", "__TERMINATE__"),
        ],
    )
    def test_the_stock_answer_names_the_operation(
        self, call: Call, publisher: FakePublisher, name: str, data: Any, result: Any, command: str
    ) -> None:
        answer = call("POST", f"/{name}", data)
        assert (answer.status, answer.json) == (200, {"meta": {"action": name}, "result": result})
        ((verb, sent, ident, by, made_at),) = publisher.sent
        assert abs(made_at - time()) < 60
        assert (verb, sent, by) == (OPERATION, command, "inspector mockserver")
        assert answer.headers["location"] == f"/operations/{ident}"
        assert len(ident) == 12
        int(ident, 16)

    def test_an_upgrade_has_a_verb_of_its_own(self, call: Call, publisher: FakePublisher) -> None:
        answer = call("POST", "/upgrade")
        assert (answer.status, answer.json["result"]) == (200, None)
        ((verb, ident, by, made_at),) = publisher.sent
        assert (verb, by) == (UPGRADE, "inspector mockserver")
        assert abs(made_at - time()) < 60
        assert answer.headers["location"] == f"/operations/{ident}"

    def test_the_last_operation_of_an_action_is_named(self, call: Call, publisher: FakePublisher) -> None:
        answer = call("POST", "/twice")
        assert answer.json["result"] == "both"
        assert answer.headers["location"] == f"/operations/{publisher.sent[1][2]}"

    def test_an_action_that_sends_by_itself_has_no_operation(
        self, call: Call, publisher: FakePublisher
    ) -> None:
        answer = call("POST", "/raw", prefer="respond-async")
        assert (answer.status, answer.json["result"]) == (200, "sent")
        assert not {"location", "preference-applied"} & answer.headers.keys()
        assert publisher.sent == ["__ALL_PROCESSES__:"]

    @pytest.mark.parametrize("prefer", ["respond-async", "Respond-Async; foo=bar", "foo, respond-async"])
    def test_a_client_that_prefers_it_gets_the_operation(self, call: Call, prefer: str) -> None:
        answer = call("POST", "/scale", {"replicas": 3}, prefer=prefer)
        assert answer.status == 202
        assert answer.headers["preference-applied"] == "respond-async"
        operation = answer.json["result"]
        assert answer.headers["location"] == f"/operations/{operation['id']}"
        assert (operation["kind"], operation["status"], operation["ended_at"]) == ("scale", "pending", None)

    @pytest.mark.parametrize("prefer", ["", "foo", "wait", "wait=x", "wait=-1", "respond-asyncs", 'wait="'])
    def test_unknown_preferences_are_ignored(self, call: Call, prefer: str) -> None:
        answer = call("POST", "/scale", {"replicas": 3}, prefer=prefer)
        assert (answer.status, answer.json["result"]) == (200, "Scaling to 3")
        assert "preference-applied" not in answer.headers

    @pytest.mark.parametrize(
        ("outcome", "wait", "status"), [("done", 30, 200), ("failed", 30, 200), ("running", 1, 202)]
    )
    def test_a_client_can_wait_for_the_end(
        self, shared: Shared, outcome: str, wait: int, status: int
    ) -> None:
        def execute(message: Any) -> None:
            shared.show_operation(message[2], outcome)

        inspector = make(publisher=FakePublisher(execute), worker_state=shared.state)(run=False)
        answer = ask(inspector, "POST", "/reload", prefer=f"respond-async, wait={wait}")
        assert (answer.status, answer.json["result"]["status"]) == (status, outcome)
        assert answer.headers["preference-applied"] == f"respond-async, wait={wait}"

    def test_a_subclass_calls_its_actions_without_a_request(
        self, publisher: FakePublisher, shared: Shared
    ) -> None:
        make(Custom, publisher, worker_state=shared.state).reload()  # type: ignore[attr-defined]
        assert publisher.sent[0][3] == "inspector"


class TestList:
    def test_pending_operations_come_first(
        self, call: Call, shared: Shared, publisher: FakePublisher
    ) -> None:
        shared.show_operation("a" * 12, "done")
        shared.show_operation("b" * 12, "running")
        call("POST", "/reload")
        call("POST", "/reload")
        first, second = (message[2] for message in publisher.sent)

        def shown() -> list[tuple[str, str]]:
            found = call("GET", "/operations").json["result"]["operations"]
            return [(one["id"], one["status"]) for one in found]

        known = [("b" * 12, "running"), ("a" * 12, "done")]
        assert shown() == [(second, "pending"), (first, "pending"), *known]
        shared.show_operation(first, "running")
        assert shown() == [(second, "pending"), (first, "running"), *known]

    def test_pending_operations_have_the_form_of_others(self, call: Call) -> None:
        call("POST", "/shutdown")
        (shown,) = call("GET", "/operations").json["result"]["operations"]
        assert shown.keys() == {
            *("id", "kind", "status", "by", "requested_at", "ended_at", "seconds"),
            *("done", "total", "text", "reason", "rolled_back"),
        }

    @pytest.mark.slow
    def test_operations_under_way_are_bounded(
        self, call: Call, publisher: FakePublisher, shared: Shared
    ) -> None:
        for _ in range(operations.MAX_UNDER_WAY):
            assert call("POST", "/reload").status == 200
        answer = call("POST", "/reload")
        assert answer.status == 429
        assert answer.json["message"].startswith(f"{operations.MAX_UNDER_WAY} operations are under way")
        assert len(publisher.sent) == operations.MAX_UNDER_WAY
        for message in publisher.sent:
            shared.show_operation(message[2], "done")
        assert call("POST", "/reload").status == 200

    def test_an_operation_that_was_overwritten_is_not_pending(
        self, call: Call, publisher: FakePublisher, shared: Shared
    ) -> None:
        call("POST", "/reload")
        call("POST", "/reload")
        shared.show_operation(publisher.sent[1][2], "done")
        assert [one["status"] for one in call("GET", "/operations").json["result"]["operations"]] == ["done"]
        assert call("GET", f"/operations/{publisher.sent[0][2]}").status == 404


class TestOne:
    def test_an_operation_is_shown(self, call: Call, shared: Shared) -> None:
        shared.show_operation("a" * 12, "running", text="1 of 2 workers replaced")
        answer = call("GET", "/operations/" + "a" * 12)
        assert answer.status == 200
        assert answer.json["meta"] == {"action": "operations"}
        assert answer.json["result"]["text"] == "1 of 2 workers replaced"

    @pytest.mark.parametrize("ident", ["b" * 12, "x", "%00", "x" * 3000])
    def test_an_unknown_operation(self, call: Call, ident: str) -> None:
        answer = call("GET", f"/operations/{ident}?wait=5")
        assert answer.status == 404
        assert answer.json["message"].startswith("Unknown operation: ")
        assert len(answer.body) < 400

    def test_a_wait_of_no_time_is_over_at_once(self, call: Call, shared: Shared) -> None:
        shared.show_operation("a" * 12, "running")
        assert call("GET", "/operations/" + "a" * 12 + "?wait=0").json["result"]["status"] == "running"
        assert call("GET", "/operations/" + "a" * 12 + "?wait=0.1").json["result"]["status"] == "running"

    @pytest.mark.slow
    def test_a_wait_ends_with_the_operation(self, shared: Shared) -> None:
        shared.show_operation("a" * 12, "running")
        with Served(shared.state) as served:
            answers: list[Any] = []
            client = threading.Thread(
                target=lambda: answers.append(served.get("/operations/" + "a" * 12 + "?wait=60"))
            )
            client.start()
            # While that client waits, others are answered.
            assert served.get("/operations/" + "a" * 12)[1]["result"]["status"] == "running"
            assert answers == []
            shared.show_operation("a" * 12, "done")
            client.join(10)
            ((status, answer),) = answers
            assert (status, answer["result"]["status"]) == (200, "done")

    @pytest.mark.slow
    def test_a_wait_ends_with_the_inspector(self, shared: Shared) -> None:
        shared.show_operation("a" * 12, "running")
        with Served(shared.state) as served, served.connect() as sock:
            path = b"/operations/" + b"a" * 12 + b"?wait=60"
            sock.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
            # An answer to a later request shows that the first one is held.
            assert served.get("/operations")[0] == 200
            assert served.stop() == 0
            assert b'"status":"running"' in sock.recv(4096)
