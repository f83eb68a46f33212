"""The text about a stuck server: the important parts first, and never too long."""

from __future__ import annotations

import asyncio
import linecache
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from sanic.http.constants import Stage

from worker._child import stacks
from worker._child.stacks import INNER, MAX_BYTES, OUTER, Subject, debugger, describe


@contextmanager
def loop_with(*coroutines: Any) -> Iterator[Subject]:
    """Return a loop with a task for each coroutine, which has run as far as it could."""
    loop = asyncio.new_event_loop()
    with closing(loop):
        tasks = [loop.create_task(one, name=f"task-{number:03}") for number, one in enumerate(coroutines)]
        loop.call_later(0.01, loop.stop)
        loop.run_forever()
        yield Subject(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))


def connection(number: int, stage: Stage = Stage.HANDLER, path: str = "/") -> Any:
    request = SimpleNamespace(method="GET", path=path)
    return SimpleNamespace(_http=SimpleNamespace(request=request, stage=stage), _time=float(-number))


def in_thread(act: Callable[[], str]) -> str:
    """Call a function in another thread, as the responder does."""
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(act()))
    thread.start()
    thread.join()
    return found[0]


def deep(frames: int, act: Callable[[], str]) -> str:
    return deep(frames - 1, act) if frames else in_thread(act)


async def waits_in(depth: int, *args: str) -> None:
    if depth:
        await waits_in(depth - 1, *args)
    await asyncio.Event().wait()


def test_the_text_is_never_too_long() -> None:
    requests = [connection(number, path=f"/{'x' * 5000}") for number in range(1000)]
    with loop_with(*(waits_in(5) for _ in range(1000))) as subject:
        text = describe(subject._replace(connections=requests))
    assert MAX_BYTES // 2 < len(text.encode()) <= MAX_BYTES
    assert text.startswith("Requests in progress: 1000\n  GET /xxx")
    assert "(980 more requests left out)" in text
    left_out = 1000 - text.count("\nTask ")
    assert text.endswith(f"({left_out} more tasks left out)\n")


def test_the_oldest_requests_come_first_and_idle_connections_not_at_all() -> None:
    text = describe(
        Subject(None, [connection(1, path="/a"), connection(2, path="/b"), connection(3, Stage.IDLE, "/c")])
    )
    assert text.index("GET /b") < text.index("GET /a")
    assert "GET /c" not in text


def test_a_deep_stack_keeps_its_ends() -> None:
    text = deep(200, lambda: describe(Subject()))
    main = text.partition("Thread MainThread")[2].partition("\n\n")[0]
    assert " frames left out)\n" in main
    assert main.count('\n  File "') == OUTER + INNER


def test_a_task_shows_the_chain_of_its_coroutines() -> None:
    with loop_with(waits_in(2)) as subject:
        text = describe(subject)
    task = text.partition("Task task-000 (waits for Future):\n")[2]
    assert task.count(", in waits_in\n") == 3
    assert task.rpartition("File")[2].startswith(' "')
    assert ", in wait\n" in task.rpartition("File")[2]


def test_a_task_that_waits_for_another_names_it() -> None:
    async def waits_for_task() -> None:
        await asyncio.create_task(waits_in(0), name="inner")

    with loop_with(waits_for_task()) as subject:
        text = describe(subject)
        for task in asyncio.all_tasks(subject.loop):
            if task.get_name() == "inner":
                task.cancel()
    assert "Task task-000 (waits for task inner):\n" in text
    assert "Task inner (waits for Future):\n" in text


def test_no_code_of_the_application_runs() -> None:
    class Awaited:
        def __await__(self) -> Any:
            yield from asyncio.Event().wait().__await__()

        def __repr__(self) -> str:
            raise AssertionError

    async def waits() -> None:
        await Awaited()

    with loop_with(waits()) as subject:
        assert ", in waits\n" in describe(subject)


def test_lines_of_files_are_not_kept_in_memory() -> None:
    linecache.clearcache()
    assert ", in in_thread\n    thread." in in_thread(lambda: describe(Subject()))
    assert not linecache.cache


def test_a_name_cannot_steer_a_terminal_or_look_like_a_line() -> None:
    async def waits() -> None:
        asyncio.current_task().set_name("a\x1b[2J\nTask b" + "x" * 5000)  # type: ignore[union-attr]
        await asyncio.Event().wait()

    with loop_with(waits()) as subject:
        text = describe(subject)
    line = next(line for line in text.splitlines() if line.startswith("Task"))
    assert line.startswith("Task a\\x1b[2J\\nTask bxxx")
    assert line.endswith("x... (waits for Future):")


def test_a_running_request_on_an_unknown_connection_is_shown() -> None:
    """Sanic keeps no set of the connections of HTTP/3."""
    found: list[str] = []
    request = SimpleNamespace(method="GET", path="/h3")
    act = "def handle_request(self, request):\n    act()\nhandle_request(None, request)"
    names = {"__name__": "sanic.app", "request": request}
    exec(act, {**names, "act": lambda: found.append(in_thread(lambda: describe(Subject())))})
    assert found[0].startswith("Requests in progress: 1\n  GET /h3, running in the main thread\n")


def test_a_path_that_is_no_text_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacks, "_main_frame", lambda: None)
    monkeypatch.setattr(stacks, "_other_threads", lambda: iter([("\udc80", sys._getframe())]))
    assert "Thread \\udc80 (most recent call last)" in describe(Subject())


@pytest.mark.skipif(sys.gettrace() is not None, reason="a debugger is at work here")
class TestDebugger:
    def test_none_is_found_in_a_plain_process(self) -> None:
        assert debugger() == ""

    def test_a_trace_function_is_named_by_its_module(self) -> None:
        def trace(*_: Any) -> Any:
            return trace

        sys._getframe().f_trace = trace
        try:
            assert in_thread(debugger) == f"the trace function of {__name__}"
        finally:
            sys._getframe().f_trace = None

    def test_pdb_is_found_by_its_frames(self) -> None:
        found: list[str] = []
        exec("act()", {"__name__": "pdb", "act": lambda: found.append(in_thread(debugger))})
        assert found == ["pdb"]

    @pytest.mark.skipif(sys.version_info < (3, 12), reason="sys.monitoring came with CPython 3.12")
    def test_a_tool_of_sys_monitoring_is_named(self) -> None:
        monitoring: Any = sys.monitoring  # type: ignore[attr-defined,unused-ignore]
        monitoring.use_tool_id(monitoring.DEBUGGER_ID, "mine")
        try:
            assert debugger() == "mine"
        finally:
            monitoring.free_tool_id(monitoring.DEBUGGER_ID)

    def test_debugpy_counts_once_a_client_is_connected(self, monkeypatch: pytest.MonkeyPatch) -> None:
        is_connected = False
        module = SimpleNamespace(is_client_connected=lambda: is_connected)
        monkeypatch.setitem(sys.modules, "debugpy", module)
        assert debugger() == ""
        is_connected = True
        assert debugger() == "debugpy"
