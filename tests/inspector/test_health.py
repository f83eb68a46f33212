"""Probes: whether the main process turns its loop, and whether enough servers accept requests."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from multiprocessing import Pipe
from time import monotonic
from typing import Any

import pytest
from sanic import Sanic
from sanic.helpers import Default
from sanic_testing.testing import SanicASGITestClient
from support.fakes import FakePublisher
from support.processes import Children
from support.running import until, until_in_loop

from worker._inspect import health
from worker._inspect.health import MainCheck
from worker._inspect.status import Sampler
from worker._state.event_log import EventLog
from worker._state.shared import SharedState
from worker.constants import MAIN_NAME
from worker.inspector import Inspector

KEY = "a secret"
Ask = Callable[..., Any]


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANIC_IGNORE_PRODUCTION_WARNING", "")


@pytest.fixture(autouse=True)
def _no_thread_left() -> Iterator[None]:
    yield
    until(
        lambda: {"ping", "memory"}.isdisjoint(one.name for one in threading.enumerate()), "the threads' end"
    )


@pytest.fixture
def state() -> Iterator[SharedState]:
    state = SharedState(8 << 20)
    state[MAIN_NAME] = {"pid": os.getpid()}
    yield state
    state.close()


@pytest.fixture
def children() -> Iterator[Children]:
    with Children() as children:
        yield children


class Main:
    """A publisher whose main process answers pings, as long as it is well."""

    def __init__(self, state: SharedState) -> None:
        self.state = state
        self.pings: list[Any] = []
        self.is_well = True

    def send(self, obj: Any, /) -> None:
        self.pings.append(obj)
        if self.is_well:
            self.answer()

    def answer(self) -> None:
        EventLog(self.state).pong(str(len(self.pings)))


def checked(*checks: MainCheck) -> list[str]:
    """Return the results of concurrent checks."""

    async def run() -> list[str]:
        return await asyncio.gather(*(check.failure() for check in checks))

    return asyncio.run(run())


@pytest.mark.native
class TestMainCheck:
    def test_a_main_process_that_answers_is_live(self, state: SharedState) -> None:
        main = Main(state)
        check = MainCheck(main, Sampler(state, {}), 30)
        assert checked(check) == [""]
        assert checked(check) == [""]
        assert len(main.pings) == 2

    def test_a_check_at_once_after_another_sends_a_ping_of_its_own(
        self, state: SharedState, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        main = Main(state)
        check = MainCheck(main, Sampler(state, {}), 30)
        goes_on = threading.Event()

        def ping(publisher: Any, token: str) -> None:
            publisher.send(token)
            # The thread that has sent the ping is slower than the answer.
            assert goes_on.wait(15)

        monkeypatch.setattr(health, "ping", ping)

        async def run() -> str:
            assert await check.failure() == ""
            again = asyncio.ensure_future(check.failure())
            await until_in_loop(lambda: check._check is not None and not check._check.done())
            goes_on.set()
            return await again

        assert asyncio.run(run()) == ""
        assert len(main.pings) == 2

    def test_one_that_does_not_answer_in_time_is_not_live(self, state: SharedState) -> None:
        main = Main(state)
        main.is_well = False
        check = MainCheck(main, Sampler(state, {}), deadline=0.05)
        began = monotonic()
        assert checked(check) == ["The main process did not answer within 0.05 s: its loop does not turn"]
        assert 0.05 <= monotonic() - began < 10

    def test_concurrent_requests_share_one_ping(self, state: SharedState) -> None:
        main = Main(state)
        check = MainCheck(main, Sampler(state, {}), 30)
        assert checked(*[check] * 50) == [""] * 50
        assert len(main.pings) == 1

    def test_a_client_that_leaves_does_not_fail_the_check_of_another(self, state: SharedState) -> None:
        main = Main(state)
        main.is_well = False
        check = MainCheck(main, Sampler(state, {}), deadline=30)

        async def run() -> str:
            first, second = (asyncio.ensure_future(check.failure()) for _ in range(2))
            await until_in_loop(lambda: main.pings)
            first.cancel()
            main.answer()
            return await second

        assert asyncio.run(run()) == ""

    def test_a_main_process_that_hangs_gets_one_ping(self, state: SharedState) -> None:
        main = Main(state)
        main.is_well = False
        check = MainCheck(main, Sampler(state, {}), deadline=0.02)
        assert all(checked(check)[0] for _ in range(5))
        assert check._sender is not None
        check._sender.join()
        assert len(main.pings) == 1
        # It turns its loop again, and answers that ping; the next check sends a new one.
        main.answer()
        main.is_well = True
        check._deadline = 30
        assert checked(check) == [""]
        assert len(main.pings) == 2

    def test_a_ping_that_was_lost_is_sent_again(
        self, state: SharedState, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        main = Main(state)
        main.is_well = False
        check = MainCheck(main, Sampler(state, {}), deadline=0.02)
        assert checked(check) != [""]
        assert check._sender is not None
        check._sender.join()
        main.is_well = True
        monkeypatch.setattr(health, "PING_AGAIN", 0.0)
        check._deadline = 30
        assert checked(check) == [""]

    def test_the_answer_to_another_process_counts(self, state: SharedState) -> None:
        main = Main(state)
        main.is_well = False
        check = MainCheck(main, Sampler(state, {}), deadline=30)

        async def run() -> str:
            failure = asyncio.ensure_future(check.failure())
            await until_in_loop(lambda: main.pings)
            EventLog(state).pong("of another")
            return await failure

        assert asyncio.run(run()) == ""

    def test_a_full_channel_blocks_neither_the_loop_nor_the_check(self, state: SharedState) -> None:
        reader, writer = Pipe(True)
        with reader, writer:
            poll = select.poll()
            poll.register(writer.fileno(), select.POLLOUT)
            os.set_blocking(writer.fileno(), False)
            while poll.poll(0):
                os.write(writer.fileno(), bytes(1 << 10))
            os.set_blocking(writer.fileno(), True)
            check = MainCheck(writer, Sampler(state, {}), deadline=30)

            async def run() -> str:
                failure = asyncio.ensure_future(check.failure())
                # The loop turns while the thread waits for room.
                await until_in_loop(lambda: check._is_full)
                check._deadline = 0.05
                return await failure

            assert asyncio.run(run()) == (
                "The main process did not answer within 0.05 s: its control channel is full"
            )
            reader.close()
            assert check._sender is not None
            check._sender.join()

    def test_a_main_process_that_is_gone_is_not_live(self, state: SharedState) -> None:
        reader, writer = Pipe(True)
        with writer:
            reader.close()
            assert "does not turn" in checked(MainCheck(writer, Sampler(state, {}), deadline=0.05))[0]


def test_without_a_place_for_answers_the_kernel_is_asked(children: Children) -> None:
    pid = children.fork(signal.pause)
    check = MainCheck(FakePublisher(), Sampler({MAIN_NAME: {"pid": pid}}, {}), 30)
    assert checked(check) == [""]
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED)
    assert checked(check) == ["The main process does not run"]
    assert checked(MainCheck(FakePublisher(), Sampler({}, {}), 30)) == ["The main process does not run"]


def answers(
    path: str, workers: Any, *, key: str = "", publisher: Any = None, method: str = "GET", **headers: str
) -> Any:
    """Return the answer of an inspector to a request for ``path``."""
    inspector = Inspector(
        publisher or FakePublisher(), {"app": "shop"}, workers, "localhost", 6457, key, Default(), Default()
    )(run=False)

    async def request() -> Any:
        async with SanicASGITestClient(inspector.app) as client:
            own = {"host": "localhost:6457", **headers}
            return (await client.request(method, path, headers=own))[1]

    try:
        return asyncio.run(request())
    finally:
        del Sanic._app_registry["Inspector"]


def server(phase: str = "ready", **more: Any) -> dict[str, Any]:
    return {"server": True, "state": "ACKED", "pid": os.getpid(), "phase": phase, **more}


MAIN = {"pid": os.getpid()}
ALL_READY = {MAIN_NAME: MAIN, "a": server(), "b": server()}
ONE_READY = {MAIN_NAME: MAIN, "a": server(), "b": server("backoff", why="b exited with code 1.")}


class TestReadyz:
    def test_all_wanted_servers_are_ready(self) -> None:
        response = answers("/readyz", ALL_READY)
        assert response.status == 200
        assert response.json == {
            "status": "ok",
            "workers_ready": 2,
            "workers_wanted": 2,
            "workers_required": 2,
        }
        assert response.headers["cache-control"] == "no-store"

    def test_tells_which_server_is_not_ready(self) -> None:
        response = answers("/readyz", ONE_READY)
        assert response.status == 503
        assert response.json == {
            "status": "failed",
            "workers_ready": 1,
            "workers_wanted": 2,
            "workers_required": 2,
            "reason": "1 of 2 workers accept requests",
            "not_ready": [{"name": "b", "phase": "backoff", "pid": None, "why": "b exited with code 1."}],
        }

    @pytest.mark.parametrize(("minimum", "status"), [(1, 200), (2, 503), (3, 503)])
    def test_a_minimum_suffices(self, minimum: int, status: int) -> None:
        response = answers(f"/readyz?min={minimum}", ONE_READY)
        assert response.status == status
        assert response.json["workers_required"] == minimum

    @pytest.mark.parametrize("wrong", ["", "0", "-1", "x", "1.5", "1e3", "1000000", "٣", " 1", "1&min=2"])
    def test_a_wrong_minimum_is_refused(self, wrong: str) -> None:
        response = answers(f"/readyz?min={wrong}", ALL_READY)
        assert response.status == 400
        assert response.json["message"].startswith("min must be a whole number from 1 to 999999, not ")

    def test_a_server_that_stops_is_not_ready(self) -> None:
        stopping = {MAIN_NAME: MAIN, "a": server("stopping"), "b": server("stopping")}
        for path in ("/readyz", "/readyz?min=1"):
            assert answers(path, stopping).status == 503
        assert answers("/readyz", {MAIN_NAME: MAIN}).status == 503

    @pytest.mark.parametrize("path", ["/readyz", "/readyz?min=1"])
    def test_a_server_that_is_about_to_stop_is_not_ready(self, path: str) -> None:
        main = {**MAIN, "stop_at": datetime.now(tz=timezone.utc) + timedelta(seconds=5)}
        response = answers(path, {**ALL_READY, MAIN_NAME: main})
        assert response.status == 503
        assert response.json["reason"] == "the server is about to stop"
        assert response.json["workers_ready"] == 2

    def test_the_list_is_bounded(self) -> None:
        many = {MAIN_NAME: MAIN, **{f"s{number}": server("failed") for number in range(100)}}
        assert len(answers("/readyz", many).json["not_ready"]) == 20

    def test_a_state_that_cannot_be_reached_is_not_ready(self) -> None:
        response = answers("/readyz", Unreachable())
        assert response.status == 503
        assert response.json["status"] == "failed"
        assert "cannot be reached" in response.json["reason"]
        assert answers("/metrics", Unreachable()).status == 503


class Unreachable(dict[str, Any]):
    """A state whose process is gone."""

    def copy(self) -> Any:
        raise ConnectionRefusedError("the process of the state is gone")


class Closed(Unreachable):
    """One that has sheets."""

    def merge(self, name: str, changes: Any) -> None:
        raise EOFError

    def cells(self, sheet: str) -> Any:
        raise EOFError


def test_livez_of_a_state_that_cannot_be_reached() -> None:
    response = answers("/livez", Closed())
    assert (response.status, response.json["status"]) == (503, "failed")
    assert "cannot be reached" in response.json["reason"]


@pytest.mark.native
def test_livez(state: SharedState, monkeypatch: pytest.MonkeyPatch) -> None:
    main = Main(state)
    monkeypatch.setattr(health, "DEADLINE", 30)
    response = answers("/livez", state, publisher=main)
    assert (response.status, response.json) == (200, {"status": "ok"})
    main.is_well = False
    monkeypatch.setattr(health, "DEADLINE", 0.05)
    response = answers("/livez", state, publisher=main)
    assert response.status == 503
    assert response.json["status"] == "failed"
    assert response.json["reason"].startswith("The main process did not answer")


class TestKey:
    @pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics"])
    def test_is_needed_as_for_any_path(self, path: str) -> None:
        assert answers(path, ALL_READY, key=KEY).status == 401
        assert answers(path, ALL_READY, key=KEY, authorization=f"Bearer {KEY}").status == 200

    @pytest.mark.parametrize("path", ["/livez", "/readyz", "/readyz?min=1"])
    def test_is_not_needed_for_probes_with_health_open(
        self, path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SANIC_WORKER_HEALTH_OPEN", "true")
        assert answers(path, ALL_READY, key=KEY).status == 200
        # A probe names the pod by its address, or by any name.
        assert answers(path, ALL_READY, key=KEY, host="shop.example").status == 200
        assert answers(path, ALL_READY, host="shop.example").status == 200

    @pytest.mark.parametrize("path", ["/metrics", "/", "/livez/", "/LIVEZ", "//livez", "/livez/../"])
    def test_is_needed_for_all_else_with_health_open(
        self, path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SANIC_WORKER_HEALTH_OPEN", "true")
        assert answers(path, ALL_READY, key=KEY).status in (401, 404)
        assert answers(path, ALL_READY, host="shop.example").status in (403, 404)

    def test_is_needed_for_an_action_that_has_the_name_of_a_probe(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SANIC_WORKER_HEALTH_OPEN", "true")
        assert answers("/livez", ALL_READY, key=KEY, method="POST").status == 401
        assert answers("/livez", ALL_READY, method="POST", host="shop.example").status == 403

    def test_without_a_key_the_origin_is_checked(self) -> None:
        assert answers("/livez", ALL_READY).status == 200
        assert answers("/livez", ALL_READY, host="shop.example").status == 403
