"""A server that is stuck in one way or another tells its stacks."""

from __future__ import annotations

import asyncio
import ctypes
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from sanic import Request, text
from support.processes import is_stopped
from support.running import until
from support.serving import NAME, Server
from support.stacks import collect

from worker._system.stacks import ANSWER, DUMP, Stacks

pytestmark = [pytest.mark.native, pytest.mark.slow]

Start = Callable[..., Server]
PROMPTLY = 10 * (ANSWER + DUMP)
# How long an interpreter that can answer may take on a machine that stalls, seconds.
PATIENCE = 10.0


rests = time.sleep


def waits_without_the_gil() -> None:
    rests(1000)


def spins() -> None:
    while True:
        pass


def holds_the_gil() -> None:
    """Wait in C code, which a signal to this thread ends."""
    ctypes.PyDLL(None).pause()


def locks_itself_out() -> None:
    lock = threading.Lock()
    for _ in range(2):
        lock.acquire()


WAYS: dict[str, Callable[[], None]] = {
    "sleep": waits_without_the_gil,
    "spin": spins,
    "gil": holds_the_gil,
    "lock": locks_itself_out,
}


def build(app: Any) -> None:
    app.config.ACCESS_LOG = False

    @app.get("/hang/<way:str>")
    async def hang(request: Request, way: str) -> Any:
        app.ctx.say(way)
        WAYS[way]()

    @app.get("/wait")
    async def wait(request: Request) -> Any:
        app.ctx.say("wait")
        await inner()
        return text("over")

    async def inner() -> None:
        await asyncio.get_running_loop().create_future()


@pytest.fixture
def serve(start: Start) -> Callable[..., Server]:
    def serve(build: Callable[[Any], None] = build) -> Server:
        server = start(build)
        until(lambda: stack_signal(server), "it to serve")
        return server

    return serve


def stack_signal(server: Server) -> int:
    return server.state.stack_signal(server.process.pid)


def asked(server: Server, path: str) -> HTTPConnection:
    """Send a request that the server begins to handle, and that it does not answer."""
    connection = HTTPConnection("127.0.0.1", server.port, timeout=15)
    connection.request("GET", path)
    server.says(path.rpartition("/")[2])
    return connection


def stacks_with(server: Server, line: str) -> Stacks:
    """Return the stacks once the server is where it hangs."""
    return until(lambda: found if line in (found := stacks_of(server, PATIENCE)).text else None, line)


def dump_of(server: Server) -> Stacks:
    """Return the stacks once C code of the server holds the GIL, and the dump was whole in time."""
    is_whole = lambda one: one.way == "faulthandler" and "in holds_the_gil" in one.text  # noqa: E731
    return until(lambda: found if is_whole(found := stacks_of(server)) else None, "a dump")


def stacks_of(server: Server, patience: float = ANSWER) -> Stacks:
    began = time.monotonic()
    found = collect(server.state, NAME, server.process.pid, patience)
    assert time.monotonic() - began < PROMPTLY
    return found


@pytest.mark.parametrize(
    ("way", "line"),
    [("sleep", "rests(1000)"), ("spin", "in spins"), ("lock", "lock.acquire()")],
)
def test_a_server_that_blocks_its_loop_tells_place_and_request(
    serve: Callable[..., Server], way: str, line: str
) -> None:
    server = serve()
    with closing(asked(server, f"/hang/{way}")):
        found = stacks_with(server, line)
    assert (found.way, found.debugger) == ("interpreter", "")
    assert "Requests in progress: 1\n" in found.text
    assert f"  GET /hang/{way}, for " in found.text
    assert ", running in the main thread" in found.text
    main = found.text.partition("Thread MainThread")[2].partition("\n\n")[0]
    assert line in main
    assert "in hang\n" in main
    assert "worker_serve" not in main


def test_a_server_whose_gil_is_held_dumps_its_threads(serve: Callable[..., Server]) -> None:
    server = serve()
    with closing(asked(server, "/hang/gil")):
        found = [dump_of(server) for _ in range(2)]
    assert [one.text.count("in holds_the_gil") for one in found] == [1, 1]
    main = found[0].text.partition("Thread MainThread (most recent call first):\n")[2].partition("\n\n")[0]
    assert "in holds_the_gil" in main
    assert "Current thread" not in found[0].text
    # The call goes on, and so does the server.
    answers = lambda: server.state.answers(server.process.pid)  # noqa: E731
    until(lambda: answers()[0] > answers()[1], "an answer of the native thread alone")


def test_a_stopped_server_is_described_by_the_kernel(serve: Callable[..., Server]) -> None:
    server = serve()
    server.signal(signal.SIGSTOP)
    until(lambda: is_stopped(server.process.pid), "the stop")
    found = stacks_of(server)
    assert found.way == "kernel"
    assert found.text.startswith(f"Process {server.process.pid}: stopped by a signal (state T)\n")
    assert "'responder': stopped by a signal" in found.text
    server.signal(signal.SIGCONT)
    until(lambda: stacks_of(server).way == "interpreter", "the interpreter to answer")


def test_a_server_that_waits_for_events_shows_its_tasks(serve: Callable[..., Server]) -> None:
    server = serve()
    with closing(asked(server, "/wait")):
        # The loop may still be in the step that has begun to wait.
        waits = lambda text: "(waits for Future):\n" in text and "running in the main thread" not in text  # noqa: E731
        found = until(lambda: one if waits((one := stacks_of(server)).text) else None, "the wait")
    assert found.way == "interpreter"
    assert "  GET /wait, for " in found.text
    task = found.text.partition("(waits for Future):\n")[2]
    outer, inner = task.index("in wait\n    await inner()\n"), task.index("in inner\n")
    assert outer < inner


def test_an_idle_server_has_no_requests(serve: Callable[..., Server]) -> None:
    found = stacks_of(serve(), PATIENCE)
    assert found.way == "interpreter"
    assert "Requests" not in found.text
    assert "Thread MainThread" in found.text


def test_threads_of_the_application_are_shown_by_name(serve: Callable[..., Server]) -> None:
    def with_thread(app: Any) -> None:
        build(app)

        @app.after_server_start
        async def begin(app: Any) -> None:
            threading.Thread(target=threading.Event().wait, name="mine", daemon=True).start()

    found = stacks_of(serve(with_thread), PATIENCE)
    assert found.text.index("Thread MainThread") < found.text.index("Thread mine (most recent")
    assert "Thread responder" not in found.text


def test_several_askers_get_an_answer_each(serve: Callable[..., Server]) -> None:
    server = serve()
    with closing(asked(server, "/hang/gil")):
        dump_of(server)
        found: list[Stacks] = []
        askers = [threading.Thread(target=lambda: found.append(dump_of(server))) for _ in range(4)]
        for asker in askers:
            asker.start()
        for asker in askers:
            asker.join()
    assert [one.text.count("in holds_the_gil") for one in found] == [1] * 4


def test_a_stuck_start_is_shown(start: Start) -> None:
    def stuck(app: Any) -> None:
        app.ctx.say("stuck")
        locks_itself_out()

    server = start(stuck)
    server.says("stuck")
    assert stacks_with(server, "in stuck\n").way == "interpreter"


class TestSignal:
    def test_a_handler_of_the_application_stays(self, start: Start) -> None:
        def with_handler(app: Any) -> None:
            build(app)
            signal.signal(signal.SIGRTMAX, lambda *_: app.ctx.say("mine"))

        server = start(with_handler)
        until(lambda: stack_signal(server), "it to serve")
        assert stack_signal(server) == signal.SIGRTMAX - 1
        server.signal(signal.SIGRTMAX)
        server.says("mine")

    def test_a_handler_of_c_code_stays(self, start: Start) -> None:
        def with_handler(app: Any) -> None:
            build(app)
            ctypes.CDLL(None).signal(
                int(signal.SIGRTMAX), ctypes.cast(ctypes.CDLL(None).pause, ctypes.c_void_p)
            )

        server = start(with_handler)
        until(lambda: stack_signal(server), "it to serve")
        assert stack_signal(server) == signal.SIGRTMAX - 1

    def test_a_handler_that_the_application_sets_later_is_not_called(
        self, serve: Callable[..., Server]
    ) -> None:
        def with_route(app: Any) -> None:
            build(app)

            @app.get("/take")
            async def take(request: Request) -> Any:
                signal.signal(signal.SIGRTMAX, lambda *_: app.ctx.say("called"))
                return text("taken")

        server = serve(with_route)
        assert server.answers("/take") == "taken"
        with closing(asked(server, "/hang/gil")):
            until(lambda: stacks_of(server).way == "kernel", "a held GIL")
        assert stack_signal(server) == 0
        assert not server.journal.poll(0)


class TestFork:
    def test_a_fork_of_the_application_answers_nothing_and_breaks_nothing(
        self, serve: Callable[..., Server]
    ) -> None:
        def forking(app: Any) -> None:
            build(app)

            @app.get("/fork")
            def fork(request: Request) -> Any:
                pid = os.fork()
                if pid == 0:
                    # Its finalizers run, too.
                    sys.exit(0)
                return text(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))

        server = serve(forking)
        assert server.answers("/fork") == "0"
        assert stacks_of(server, PATIENCE).way == "interpreter"
        assert stack_signal(server)

    def test_a_process_of_multiprocessing_ends_in_order(self, serve: Callable[..., Server]) -> None:
        def starting(app: Any) -> None:
            build(app)

            @app.get("/process/<method:str>")
            def process(request: Request, method: str) -> Any:
                # The servers of these tests are daemons, which may have no children.
                multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
                child = multiprocessing.get_context(method).Process(target=os.getpid)
                child.start()
                child.join()
                return text(str(child.exitcode))

        server = serve(starting)
        assert [server.answers(f"/process/{method}") for method in ("fork", "spawn")] == ["0", "0"]
        assert stacks_of(server, PATIENCE).way == "interpreter"

    def test_a_program_that_a_server_starts_has_the_default_action(
        self, serve: Callable[..., Server]
    ) -> None:
        def starting(app: Any) -> None:
            build(app)

            @app.get("/ignored")
            def ignored(request: Request) -> Any:
                ended = subprocess.run(
                    ["grep", "SigIgn", "/proc/self/status"], capture_output=True, text=True
                )
                return text(ended.stdout.split()[1])

        server = serve(starting)
        assert not int(server.answers("/ignored"), 16) >> (signal.SIGRTMAX - 1) & 1


def test_the_threads_have_ended_when_a_server_has_stopped(serve: Callable[..., Server]) -> None:
    server = serve()
    server.signal(signal.SIGTERM)
    assert server.ends() == 0
    pid = server.process.pid
    assert server.state.ask(pid) == 0
    assert stack_signal(server) == 0


def test_a_server_without_questions_wakes_up_no_more_often(serve: Callable[..., Server]) -> None:
    server = serve()
    # A thread of native code has its name once it runs.
    assert stacks_of(server, PATIENCE).way == "interpreter"
    threads = {
        task: Path(f"/proc/{server.process.pid}/task/{task}/comm").read_text().strip()
        for task in os.listdir(f"/proc/{server.process.pid}/task")
    }
    assert [*threads.values()].count("responder") == 1

    def switches() -> dict[str, str]:
        return {
            task: Path(f"/proc/{server.process.pid}/task/{task}/status").read_text().partition("voluntary")[2]
            for task in threads
            if task != str(server.process.pid)
        }

    def rests() -> bool:
        """Whether no thread wakes up for a second."""
        before = switches()
        with socket.socket() as nothing:
            nothing.bind(("127.0.0.1", 0))
            nothing.listen()
            nothing.settimeout(1.0)
            with pytest.raises(TimeoutError):
                nothing.accept()
        return switches() == before

    # The thread that watches for slow steps notices the rest within a second, unless the machine stalls.
    until(rests, "a second without a wakeup", 30)
