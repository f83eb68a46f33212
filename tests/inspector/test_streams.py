"""Server-sent events of the status and of the event log, over real sockets."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack, suppress
from itertools import pairwise
from time import monotonic
from typing import Any

import pytest
from support.inspecting import TIMEOUT, EventReader, Served, Shared, ask, make
from support.running import until

from worker._inspect import stream
from worker._inspect.status import Sampler

pytestmark = pytest.mark.slow

STREAM = {"Accept": "text/event-stream"}


@pytest.fixture
def numbered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each status have a number."""
    taken: list[int] = []

    def status(self: Sampler) -> dict[str, Any]:
        taken.append(0)
        return {"number": len(taken)}

    monkeypatch.setattr(Sampler, "status", status)


def is_event(piece: dict[str, str]) -> bool:
    return piece.get("event") == "event"


def is_status(piece: dict[str, str]) -> bool:
    return piece.get("event") == "status"


def number(piece: dict[str, str]) -> int:
    """Return the number of a status; -1 for another piece."""
    return int(json.loads(piece["data"])["number"]) if is_status(piece) else -1


def from_number(first: int) -> Callable[[dict[str, str]], bool]:
    return lambda piece: number(piece) >= first


def texts(reader: EventReader, count: int) -> list[str]:
    return [json.loads(reader.next(is_event)["data"])["text"] for _ in range(count)]


class TestEvents:
    def test_events_come_as_they_are_appended(self, shared: Shared) -> None:
        shared.append("first")
        with Served(shared.state) as served, served.open("GET", "/events", None, STREAM) as answer:
            assert answer.status == 200
            assert answer.headers["content-type"] == "text/event-stream"
            reader = EventReader(answer)
            piece = reader.next()
            assert (piece["event"], piece["id"], json.loads(piece["data"])["seq"]) == ("event", "1", 1)
            for text in ("second", "third"):
                shared.append(text)
                assert texts(reader, 1) == [text]

    @pytest.mark.parametrize(
        ("path", "headers", "expected"),
        [
            ("/events?since=2", {}, ["3", "4"]),
            ("/events", {"Last-Event-ID": "3"}, ["4"]),
            ("/events?since=1", {"Last-Event-ID": "3"}, ["4"]),
            ("/events", {"Last-Event-ID": "x"}, ["1", "2", "3", "4"]),
            # The client has seen a server that ran before this one.
            ("/events", {"Last-Event-ID": "5000"}, ["1", "2", "3", "4"]),
            ("/status", {"Last-Event-ID": "2"}, ["3", "4"]),
        ],
    )
    def test_a_client_goes_on_where_it_was(
        self, shared: Shared, path: str, headers: dict[str, str], expected: list[str]
    ) -> None:
        for number in range(1, 5):
            shared.append(str(number))
        with Served(shared.state) as served, served.open("GET", path, None, {**STREAM, **headers}) as answer:
            assert texts(EventReader(answer), len(expected)) == expected

    def test_a_long_history_comes_whole_and_in_order(self, shared: Shared) -> None:
        count = 3 * stream.MAX_BUFFERED + 7
        for number in range(count):
            shared.append(str(number))
        with Served(shared.state) as served, served.open("GET", "/events", None, STREAM) as answer:
            assert texts(EventReader(answer), count) == [str(number) for number in range(count)]

    @pytest.mark.parametrize(
        ("query", "expected", "last"),
        [
            ("", [1, 2, 3, 4, 5], 5),
            ("?limit=2", [4, 5], 5),
            ("?since=2", [3, 4, 5], 5),
            ("?since=1&limit=2", [2, 3], 3),
            ("?since=5", [], 5),
            # The client has seen a server that ran before this one.
            ("?since=6", [1, 2, 3, 4, 5], 5),
            ("?since=5000&limit=2", [1, 2], 2),
            ("?limit=1000", [1, 2, 3, 4, 5], 5),
        ],
    )
    def test_a_list_of_events(self, shared: Shared, query: str, expected: list[int], last: int) -> None:
        for number in range(5):
            shared.append(str(number))
        answer = ask(make(worker_state=shared.state)(run=False), "GET", f"/events{query}").json
        assert answer["meta"] == {"action": "events"}
        assert [event["seq"] for event in answer["result"]["events"]] == expected
        assert answer["result"]["last"] == last

    def test_an_empty_list(self) -> None:
        for query in ("", "?since=7"):
            answer = ask(make()(run=False), "GET", f"/events{query}").json
            assert answer["result"] == {"events": [], "last": 0}


@pytest.mark.usefixtures("numbered")
class TestStatus:
    def test_a_status_comes_in_each_interval(self, shared: Shared) -> None:
        with Served(shared.state) as served, ExitStack() as stack:
            began = monotonic()
            path = "/status?interval=0.2"
            reader = EventReader(stack.enter_context(served.open("GET", path, None, STREAM)))
            numbers = [json.loads(reader.next(is_status)["data"])["number"] for _ in range(6)]
            # The first one comes at once.
            assert monotonic() - began > 4 * 0.2 - 0.01
            assert numbers == [1, 2, 3, 4, 5, 6]

    @pytest.mark.parametrize("interval", [0.2, 0.3, 0.7, 1.0])
    def test_a_clock_of_milliseconds_gives_one_status_in_each_interval(self, interval: float) -> None:
        client = stream._Client(0, interval)
        clock = [number / 1000 for number in range(27_262_000, 27_304_000)]
        # The first one comes at once.
        _, *due = [now for now in clock if client.take_turn(now)]
        gaps = [later - before for before, later in pairwise(due)]
        assert interval - 0.002 < min(gaps) <= max(gaps) < interval + 0.002

    def test_events_come_between(self, shared: Shared) -> None:
        shared.append("before the stream")
        with Served(shared.state) as served, served.open("GET", "/status", None, STREAM) as answer:
            reader = EventReader(answer)
            assert reader.next().get("event") == "status"
            shared.append("new")
            assert texts(reader, 1) == ["new"]

    def test_clients_of_one_interval_share_each_status(self, shared: Shared) -> None:
        with Served(shared.state) as served, ExitStack() as stack:
            path = "/status?interval=0.3"
            readers = [
                EventReader(stack.enter_context(served.open("GET", path, None, STREAM))) for _ in range(5)
            ]
            # The first status of a client comes at once, the next ones are due at the same time for all.
            readers[-1].next(is_status)
            for _ in range(2):
                newest = number(readers[-1].next(is_status))
                assert {number(reader.next(from_number(newest))) for reader in readers[:-1]} == {newest}

    def test_nothing_is_done_without_a_client(self, shared: Shared) -> None:
        with Served(shared.state) as served:
            idle = served.sockets()
            with served.open("GET", "/status?interval=0.2", None, STREAM) as answer:
                EventReader(answer).next(is_status)
            until(lambda: served.sockets() <= idle, "the end of the stream")
            first = served.get("/status")[1]["result"]["number"]
            # Another stream runs for several intervals of the first one, and its own is long.
            with served.open("GET", "/status?interval=60", None, STREAM) as answer:
                EventReader(answer).next(is_status)
                shared.append("the feeder looks for events")
                EventReader(answer).next(is_event)
                assert served.get("/status")[1]["result"]["number"] <= first + 3

    def test_an_error_of_the_source_ends_the_streams_alone(
        self, shared: Shared, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        taken: list[int] = []

        def status(self: Sampler) -> dict[str, Any]:
            taken.append(0)
            if len(taken) == 2:
                raise RuntimeError("broken")
            return {"number": len(taken)}

        monkeypatch.setattr(Sampler, "status", status)
        with Served(shared.state) as served:
            with served.open("GET", "/status?interval=0.2", None, STREAM) as answer:
                reader = EventReader(answer)
                assert reader.next(is_status)["data"] == '{"number":1}'
                assert reader.next(is_status) == {}
            with served.open("GET", "/status?interval=0.2", None, STREAM) as answer:
                assert EventReader(answer).next(is_status)["data"] == '{"number":3}'


class TestLimits:
    def test_a_comment_keeps_a_quiet_stream_open(
        self, shared: Shared, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(stream, "KEEP_ALIVE", 0.05)
        with Served(shared.state) as served, served.open("GET", "/events", None, STREAM) as answer:
            reader = EventReader(answer)
            assert [reader.next() for _ in range(2)] == [{"comment": "keep-alive"}] * 2

    def test_the_number_of_streams_is_bounded(self, shared: Shared) -> None:
        with Served(shared.state) as served, ExitStack() as stack:
            for _ in range(stream.MAX_STREAMS):
                assert stack.enter_context(served.open("GET", "/status", None, STREAM)).status == 200
            status, answer = served.get("/events", **STREAM)
            assert status == 503
            assert answer["message"].startswith("16 streams are open, and no more are allowed")
            # Plain requests are answered.
            assert served.get("/status")[0] == 200
            stack.close()

            def opens() -> bool:
                with served.open("GET", "/events", None, STREAM) as again:
                    return again.status == 200

            until(opens, "the end of the streams")

    @pytest.mark.parametrize("limit", [60.0, 0.2])
    def test_a_client_that_does_not_read_is_dropped(
        self, shared: Shared, monkeypatch: pytest.MonkeyPatch, limit: float
    ) -> None:
        monkeypatch.setattr(stream, "SEND_TIMEOUT", limit)
        monkeypatch.setattr(Sampler, "status", lambda self: {"text": "x" * 8_000_000})
        with Served(shared.state) as served, ExitStack() as stack:
            idle, base = served.sockets(), served.memory()
            sock = stack.enter_context(served.connect(receive_buffer=4096))
            before = until(lambda: max(served.sockets() - idle, 0) and served.sockets(), "the connection")
            request = (
                "GET /status?interval=0.2 HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"
            )
            sock.sendall(request.encode())
            if limit == 60.0:
                until(lambda: served.memory() > base + 8_000_000, "the first status is written")
                # The attack works: the stream holds its buffers while many statuses are due.
                for _ in range(3):
                    assert served.get("/events")[0] == 200
                assert served.sockets() >= before
            else:
                until(lambda: served.sockets() < before, "the client is dropped")
            # One status at most waits for each client.
            assert served.memory() < base + 100_000_000
            assert served.get("/events")[0] == 200

    def test_a_stop_ends_the_streams_at_once(self, shared: Shared) -> None:
        with Served(shared.state) as served, ExitStack() as stack:
            readers = [
                EventReader(stack.enter_context(served.open("GET", path, None, STREAM)))
                for path in ("/status?interval=60", "/events")
            ]
            readers[0].next(is_status)
            assert served.stop() == 0
            assert [reader.next() for reader in readers] == [{}, {}]

    def test_a_stop_closes_the_connection_of_a_stream(self, shared: Shared) -> None:
        """A browser asks again over an open connection as soon as its stream has ended."""
        request = b"GET /status HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"
        with Served(shared.state) as served, served.connect() as sock, sock.makefile("rb") as answer:
            sock.sendall(request)
            assert b"200" in answer.readline()
            served.process.terminate()
            assert any(line == b"0\r\n" for line in answer), "the end of the stream"
            with suppress(OSError):
                sock.sendall(request)
                assert b"200 OK" not in answer.read()
            served.process.join(TIMEOUT)
            assert served.process.exitcode == 0
