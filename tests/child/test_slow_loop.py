"""Steps of an event loop that block it: found by a late timer and samples of the stack, and logged."""

from __future__ import annotations

import asyncio
import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from support.running import until, until_in_loop

from worker._child import samples, slow_loop
from worker._child.samples import Place, Sample, blocking, take
from worker._child.slow_loop import Repeats, SlowLoop

LIMIT = 0.1
HERE = Place("/srv/app.py", 1, "one")
THERE = Place("/srv/app.py", 2, "two")


def block(watch: SlowLoop | None = None) -> None:
    """Block the calling thread, until the watch has seen it, and let others run."""
    while True:
        assert not threading.Event().wait(0.3)
        if watch is None or len(watch._samples) > 3:
            return


class Frames:
    """Samples of two steps at two places; a step is known by its frame."""

    a: Any = sys._getframe()
    b: Any = sys._current_frames()[threading.get_ident()].f_back

    @classmethod
    def of(cls, names: str) -> list[Sample | None]:
        """Return samples: ``a`` and ``b`` are steps, ``A`` the first one at another place, ``.`` none."""
        made = {
            "a": Sample(cls.a, HERE, HERE),
            "A": Sample(cls.a, THERE, THERE),
            "b": Sample(cls.b, THERE, THERE),
            ".": None,
        }
        return [made[name] for name in names]


@pytest.mark.parametrize(
    ("names", "place"),
    [
        ("", None),
        (".", None),
        ("a", HERE),
        ("aaa", HERE),
        # The timer runs after the other steps of the same turn.
        ("aaab", HERE),
        ("aAA", THERE),
        # Many short steps, or the wait of the loop: no step has blocked it.
        ("a..", None),
        ("ab....", None),
    ],
)
def test_the_step_with_most_samples_has_blocked(names: str, place: Place | None) -> None:
    found = blocking(Frames.of(names))
    assert (found and found.place) == place


def test_a_place_is_logged_once_a_minute_with_the_number_of_the_others() -> None:
    repeats = Repeats()
    assert repeats.add(HERE, 100.0) == 0
    assert repeats.add(HERE._replace(line=9), 130.0) is None
    assert repeats.add(THERE, 130.0) == 0
    assert repeats.add(None, 130.0) == 0
    assert repeats.add(HERE, 159.9) is None
    assert repeats.add(HERE, 160.0) == 2
    assert repeats.add(HERE, 220.0) == 0


def test_the_number_of_remembered_places_is_bounded() -> None:
    repeats = Repeats()
    for number in range(1000):
        repeats.add(Place("/srv/app.py", 1, str(number)), 100.0)
    assert len(repeats._logged) == slow_loop.PLACES
    assert repeats.add(Place("/srv/app.py", 1, "999"), 101.0) is None


@contextmanager
def watched(limit: float = LIMIT) -> Iterator[SlowLoop]:
    """Watch the running loop in the body."""
    watch = SlowLoop(asyncio.get_running_loop(), limit)
    watch.begin()
    try:
        yield watch
    finally:
        watch.end()


async def at_rest(watch: SlowLoop) -> None:
    """Wait until the timer and the thread rest: nothing wakes this loop meanwhile but the timer itself."""
    loop, rests = asyncio.get_running_loop(), asyncio.Event()
    before = watch._tick

    def tick() -> None:
        before()
        if watch._timer is None:
            rests.set()

    watch._tick = tick  # type: ignore[method-assign]
    loop.call_later(0, loop.call_soon, lambda: None)
    await asyncio.wait_for(rests.wait(), 15)
    watch._tick = before  # type: ignore[method-assign]


def run(act: Callable[[SlowLoop], Any], limit: float = LIMIT) -> None:
    async def main() -> None:
        with watched(limit) as watch:
            await act(watch)

    asyncio.run(main())


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.WARNING, "sanic.root")
    return lambda: [line for line in caplog.messages if "event loop" in line]


@pytest.fixture
def of_block(lines: Callable[[], list[str]]) -> Callable[[], list[str]]:
    """Return the lines about :func:`block`: the machine may block other steps."""
    return lambda: [line for line in lines() if " in block " in line]


class TestWatch:
    def test_a_blocking_step_is_logged_with_its_place_and_task(
        self, of_block: Callable[[], list[str]]
    ) -> None:
        async def act(watch: SlowLoop) -> None:
            async def poll() -> None:
                block(watch)

            await asyncio.create_task(poll(), name="poller")
            await until_in_loop(of_block)

        run(act)
        (line,) = of_block()
        line_number = block.__code__.co_firstlineno + 3
        assert re.match(r"The event loop was blocked for \d+\.\d\d s or longer at ", line)
        assert f" at {__file__}:{line_number} in block (which called " in line
        assert ", for task poller (TestWatch.test_a_blocking_step" in line
        assert line.endswith("The limit is 0.1 s (slow_loop_warning).")

    def test_the_first_step_after_a_rest_is_seen(self, of_block: Callable[[], list[str]]) -> None:
        async def act(watch: SlowLoop) -> None:
            await at_rest(watch)
            asyncio.get_running_loop().call_soon(block, watch)
            await until_in_loop(of_block)

        run(act)

    def test_nothing_wakes_a_loop_at_rest(self) -> None:
        async def act(watch: SlowLoop) -> None:
            loop, ticks = asyncio.get_running_loop(), []
            await at_rest(watch)
            before = watch._tick
            # A timer is no step of a task: it wakes neither.
            over = loop.create_future()

            def look(seen: int) -> None:
                rests = watch._due == float("inf") and watch._timer is None
                if rests and len(ticks) == seen:
                    over.set_result(None)
                else:
                    # The wait above was a step. Its tick may come late.
                    loop.call_later(5 * LIMIT, look, len(ticks))

            watch._tick = lambda: (ticks.append(1), before())  # type: ignore[method-assign, assignment]
            loop.call_later(5 * LIMIT, look, 1)
            await asyncio.wait_for(over, 15)

        run(act)

    def test_nothing_is_logged_when_nothing_blocks(self, lines: Callable[[], list[str]]) -> None:
        async def act(watch: SlowLoop) -> None:
            began = time.monotonic()
            while time.monotonic() < began + 0.5:
                await asyncio.to_thread(threading.Event().wait, 0.02)

        # The machine may be busy.
        run(act, 1.0)
        assert lines() == []

    def test_the_time_in_which_the_process_does_not_run_is_no_block(
        self, lines: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # It waits for a CPU all the time.
        monkeypatch.setattr(slow_loop, "run_delay", lambda pid: time.monotonic())

        async def act(watch: SlowLoop) -> None:
            asyncio.get_running_loop().call_soon(block)
            await at_rest(watch)

        run(act)
        assert lines() == []

    def test_code_that_lets_no_thread_run_is_logged_without_a_place(
        self, lines: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # As if no sample had been taken: which thread runs after such code is chance.
        monkeypatch.setattr(slow_loop, "MOST", 0)
        monkeypatch.setattr(slow_loop, "thread_time", time.monotonic)

        async def act(watch: SlowLoop) -> None:
            asyncio.get_running_loop().call_soon(block)
            await until_in_loop(lines)

        run(act)
        (line,) = lines()
        assert "by code that let no other thread run. The limit" in line

    def test_a_stopped_process_is_no_block(
        self, lines: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # No sample and no CPU time: neither thread has run.
        monkeypatch.setattr(slow_loop, "MOST", 0)

        async def act(watch: SlowLoop) -> None:
            asyncio.get_running_loop().call_soon(block)
            await at_rest(watch)

        run(act)
        assert lines() == []

    def test_a_step_that_does_not_end_is_logged_meanwhile_and_once(
        self, lines: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(slow_loop, "LONG", 0.2)

        async def act(watch: SlowLoop) -> None:
            look = lambda: any(" in until" in line for line in lines())  # noqa: E731
            asyncio.get_running_loop().call_soon(lambda: until(look, "a line while the loop is blocked"))
            await at_rest(watch)

        run(act)
        # The machine may block other steps.
        (line,) = [line for line in lines() if " in until" in line]
        assert re.match(r"The event loop has been blocked for \d+\.\d s, and still is, at ", line)

    def test_a_debugger_is_no_block(
        self, lines: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(samples, "DEBUGGERS", {__name__.partition(".")[0]})

        async def act(watch: SlowLoop) -> None:
            asyncio.get_running_loop().call_soon(block)
            await at_rest(watch)

        run(act)
        assert lines() == []

    def test_a_method_that_another_has_replaced_stays(self) -> None:
        async def act(watch: SlowLoop) -> None:
            loop: Any = asyncio.get_running_loop()
            await at_rest(watch)
            ours, calls = loop.call_soon, []

            def theirs(*args: Any, **kwargs: Any) -> Any:
                calls.append(args)
                return ours(*args, **kwargs)

            loop.call_soon = theirs
            await asyncio.create_task(_nothing())
            assert calls
            assert loop.call_soon is theirs
            del loop.call_soon

        run(act)


async def _nothing() -> None:
    pass


def test_a_loop_that_waits_for_events_runs_no_step() -> None:
    ready, over = threading.Event(), threading.Event()
    loop = asyncio.new_event_loop()

    def serve() -> None:
        loop.call_soon(ready.set)
        loop.run_forever()
        loop.close()
        over.set()

    thread = threading.Thread(target=serve)
    thread.start()
    assert ready.wait(15)

    def waits() -> bool:
        frame = sys._current_frames()[thread.ident or 0]
        return frame.f_code.co_name == "select"

    until(waits, "the wait for events")
    assert take(thread.ident or 0, loop) is None
    loop.call_soon_threadsafe(loop.stop)
    assert over.wait(15)
    thread.join()


def test_c_code_that_the_loop_calls_itself_is_named() -> None:
    loop, over = asyncio.new_event_loop(), threading.Lock()
    over.acquire()

    def serve() -> None:
        loop.call_soon(over.acquire)
        loop.call_soon(loop.stop)
        loop.run_forever()
        loop.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        sample = until(lambda: take(thread.ident or 0, loop), "the step")
        assert sample.work.startswith("callback ")
        assert sample.work.endswith(".acquire")
        assert sample.place.function.endswith("_run")
        assert blocking([sample, take(thread.ident or 0, loop)]) == sample
    finally:
        over.release()
        thread.join()
