"""The key of the inspector: a client that guesses it is slowed down, and others are not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest
from sanic.exceptions import Unauthorized
from support.inspecting import ask, make
from support.running import until_in_loop

from worker._inspect import guard
from worker._inspect.guard import Guard, TooManyFailures, is_key

KEY = "right"


def check(request: Any) -> None:
    if not is_key(request.token, KEY):
        raise Unauthorized("Bad API key")


def sent(token: str, ip: str = "10.0.0.1") -> Any:
    return SimpleNamespace(token=token, ip=ip)


async def outcomes(asked: Guard, *requests: Any) -> list[Any]:
    return await asyncio.gather(*(asked(request) for request in requests), return_exceptions=True)


def guesses(asked: Guard, count: int) -> list[Any]:
    """Send this number of wrong keys at once; return the answers."""

    async def run() -> list[Any]:
        return await outcomes(asked, *(sent(f"guess {number}") for number in range(count)))

    return asyncio.run(run())


def released(asked: Guard, guessing: asyncio.Future[list[Any]]) -> asyncio.Future[list[Any]]:
    """End the delays of guesses, of which none has been answered yet."""
    assert not guessing.done()
    asked._stopping.set()
    return guessing


@pytest.mark.slow
class TestGuessing:
    @pytest.fixture
    def held(self, monkeypatch: pytest.MonkeyPatch) -> Guard:
        """Return a guard whose delays last longer than any test."""
        monkeypatch.setattr(guard, "FIRST_DELAY", 3600)
        return Guard(check, asyncio.Event(), max_delay=3600)

    def test_the_attack_works_without_limits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(guard, "MAX_WAITING_OF_ALL", 10_000)
        asked = Guard(check, asyncio.Event(), max_delay=0, max_waiting=10_000)
        answers = guesses(asked, 1000)
        assert [type(one) for one in answers] == [Unauthorized] * 1000

    def test_few_failures_of_a_client_wait_at_a_time(self) -> None:
        asked = Guard(check, asyncio.Event())
        answers = guesses(asked, 1000)
        kinds = [type(one) for one in answers]
        assert kinds.count(Unauthorized) == guard.MAX_WAITING
        assert kinds.count(TooManyFailures) == 1000 - guard.MAX_WAITING
        refusal = next(one for one in answers if isinstance(one, TooManyFailures))
        assert refusal.headers["Retry-After"] == "2"

    def test_each_failure_doubles_the_delay_up_to_a_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        delays: list[float] = []

        async def wait_for(waiting: Any, delay: float) -> None:
            waiting.close()
            delays.append(delay)

        monkeypatch.setattr(asyncio, "wait_for", wait_for)

        async def run() -> None:
            asked = Guard(check, asyncio.Event())
            for _ in range(14):
                with pytest.raises(Unauthorized):
                    await asked(sent("wrong"))

        asyncio.run(run())
        assert delays == [0.1] * 5 + [0.2, 0.4, 0.8, 1.6] + [2.0] * 5

    def test_others_are_not_held(self, held: Guard) -> None:
        async def run() -> None:
            wrong = [sent("wrong") for _ in range(100)]
            guessing = asyncio.create_task(outcomes(held, *wrong))
            await until_in_loop(lambda: held._waiting == guard.MAX_WAITING)
            assert await outcomes(held, sent(KEY, "10.0.0.2"), sent(KEY, "::1")) == [None, None]
            await released(held, guessing)

        asyncio.run(run())

    def test_the_right_key_of_a_client_that_failed_is_accepted_at_once(self, held: Guard) -> None:
        async def run() -> None:
            failing = asyncio.create_task(outcomes(held, sent("wrong"), sent("wrong")))
            await until_in_loop(lambda: held._waiting == 2)
            assert await outcomes(held, sent(KEY)) == [None]
            await released(held, failing)

        asyncio.run(run())

    def test_the_right_key_is_accepted_while_others_of_its_address_guess(self, held: Guard) -> None:
        async def run() -> None:
            wrong = [sent("wrong") for _ in range(100)]
            guessing = asyncio.create_task(outcomes(held, *wrong))
            await until_in_loop(lambda: held._waiting == guard.MAX_WAITING)
            assert await outcomes(held, sent(KEY)) == [None]
            await released(held, guessing)

        asyncio.run(run())

    def test_few_failures_of_all_clients_wait_at_a_time(self) -> None:
        async def run() -> list[Any]:
            asked = Guard(check, asyncio.Event())
            return await outcomes(asked, *(sent("wrong", f"10.0.0.{number}") for number in range(200)))

        kinds = [type(one) for one in asyncio.run(run())]
        assert kinds.count(Unauthorized) == guard.MAX_WAITING_OF_ALL
        assert kinds.count(TooManyFailures) == 200 - guard.MAX_WAITING_OF_ALL

    def test_clients_of_ipv4_are_told_apart_on_a_socket_of_ipv6(self) -> None:
        async def run() -> list[Any]:
            asked = Guard(check, asyncio.Event())
            return await outcomes(asked, *(sent("wrong", f"::ffff:10.0.0.{number}") for number in range(20)))

        assert not any(isinstance(one, TooManyFailures) for one in asyncio.run(run()))

    def test_a_site_of_ipv6_is_one_client(self) -> None:
        async def run() -> list[Any]:
            asked = Guard(check, asyncio.Event())
            return await outcomes(asked, *(sent("wrong", f"2001:db8::{number:x}") for number in range(100)))

        assert any(isinstance(one, TooManyFailures) for one in asyncio.run(run()))

    def test_the_memory_is_bounded(self) -> None:
        async def run() -> Guard:
            asked = Guard(check, asyncio.Event(), max_delay=0)
            for number in range(guard.MAX_CLIENTS + 50):
                await outcomes(asked, sent("wrong", f"10.1.{number // 256}.{number % 256}"))
            return asked

        asked = asyncio.run(run())
        assert len(asked._failures) == guard.MAX_CLIENTS
        assert "10.1.0.0" not in asked._failures

    def test_failures_are_forgotten(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = [1000.0]
        monkeypatch.setattr(guard, "monotonic", lambda: now[0])

        async def run() -> None:
            asked = Guard(check, asyncio.Event(), max_delay=0)
            for _ in range(20):
                await outcomes(asked, sent("wrong"))
            assert asked._failures["10.0.0.1"].count == 20
            now[0] += guard.FORGET_AFTER + 1
            await outcomes(asked, sent("wrong"))
            assert asked._failures["10.0.0.1"].count == 1

        asyncio.run(run())

    def test_a_stop_ends_the_delays(self) -> None:
        async def run() -> None:
            stopping = asyncio.Event()
            asked = Guard(check, stopping, max_delay=3600)
            asked._failed("10.0.0.1").count = 100
            failing = asyncio.create_task(outcomes(asked, sent("wrong")))
            while not asked._failures["10.0.0.1"].waiting:
                await asyncio.wait({failing}, timeout=0.001)
            stopping.set()
            assert [type(one) for one in await asyncio.wait_for(failing, 30)] == [Unauthorized]

        asyncio.run(run())

    def test_a_check_of_a_subclass_may_be_async(self) -> None:
        async def slow_check(request: Any) -> None:
            check(request)

        async def run() -> list[Any]:
            asked = Guard(slow_check, asyncio.Event(), max_delay=0)
            return await outcomes(asked, sent(KEY), sent("wrong"))

        accepted, refused = asyncio.run(run())
        assert accepted is None and isinstance(refused, Unauthorized)


class TestLog:
    @pytest.fixture
    def fail(self, caplog: pytest.LogCaptureFixture) -> Callable[..., list[str]]:
        """Return a function that fails once for each address, and returns the lines of the log."""

        def fail(*ips: str) -> list[str]:
            with caplog.at_level(logging.WARNING, "sanic.error"):
                self.refuse(*ips)
            return caplog.messages

        return fail

    @staticmethod
    def refuse(*ips: str) -> None:
        async def run() -> None:
            asked = Guard(check, asyncio.Event(), max_delay=0)
            for ip in ips:
                await outcomes(asked, sent("wrong", ip))

        asyncio.run(run())

    def test_failures_are_logged(self, fail: Callable[..., list[str]]) -> None:
        (line,) = fail("10.0.0.1")
        assert "from 10.0.0.1: bad API key (1 in a row)" in line

    def test_a_flood_of_one_client_makes_few_lines(self, fail: Callable[..., list[str]]) -> None:
        lines = fail(*["10.0.0.1"] * 1000)
        assert len(lines) == 10
        assert "(512 in a row)" in lines[-1]

    def test_a_flood_of_many_clients_makes_few_lines(self, fail: Callable[..., list[str]]) -> None:
        lines = fail(*(f"10.0.{number // 256}.{number % 256}" for number in range(1000)))
        assert len(lines) == guard.MAX_LINES
        assert lines[-1].endswith("Further such lines are left out for a minute.")


@pytest.mark.parametrize(
    ("token", "key", "expected"),
    [
        ("a", "a", True),
        ("a", "b", False),
        ("", "b", False),
        (None, "b", False),
        ("12", 12, True),
        ("se\u00e7ret", "se\u00e7ret", True),
        ("\udce7", "\udce7", True),
        ("\udce7", "b", False),
    ],
)
def test_is_key(token: Any, key: Any, expected: bool) -> None:
    assert is_key(token, key) is expected


def test_an_inspector_with_a_key_slows_down_failures() -> None:
    inspector = make(api_key=KEY)(run=False)
    began = monotonic()
    assert ask(inspector, "POST", "/shutdown", authorization="Bearer wrong").status == 401
    assert monotonic() - began >= guard.FIRST_DELAY
    assert ask(inspector, "GET", "/", authorization=f"Bearer {KEY}").status == 200
