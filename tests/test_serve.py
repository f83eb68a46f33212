"""A server process: its start, its failures, its stop."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trustme
from sanic import Sanic, text
from sanic.http.constants import HTTP
from support import serving
from support.running import until
from support.serving import NAME, STARTED, STOPPED, Server, says_its_life

from worker import serve
from worker.loader import without_our_frames

pytestmark = pytest.mark.slow


class TestStop:
    @pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
    def test_one_signal_stops_the_server(self, start: Callable[..., Server], signum: signal.Signals) -> None:
        server = start(says_its_life)
        server.says(*STARTED)
        server.tell(signum)
        server.says(*STOPPED)
        assert server.ends() == 0
        assert server.told() == []

    def test_a_second_signal_is_ignored(self, start: Callable[..., Server]) -> None:
        def build(app: Any) -> None:
            says_its_life(app)

            @app.before_server_stop
            async def stopping(app: Any) -> None:
                app.ctx.say("stopping")
                for _ in range(20):
                    await asyncio.wait([asyncio.ensure_future(asyncio.Event().wait())], timeout=0.01)
                app.ctx.say("stopped")

        server = start(build)
        server.says(*STARTED)
        server.tell(signal.SIGTERM)
        server.says("stopping")
        server.signal(signal.SIGTERM, signal.SIGINT, signal.SIGINT)
        server.says("stopped", *STOPPED)
        assert server.ends() == 0

    def test_a_signal_during_an_asynchronous_start_is_obeyed_after_it(
        self, start: Callable[..., Server]
    ) -> None:
        reader, writer = os.pipe()

        def build(app: Any) -> None:
            says_its_life(app)

            @app.after_server_start
            async def starting(app: Any) -> None:
                app.ctx.say("starting")
                gate = asyncio.Event()
                asyncio.get_running_loop().add_reader(reader, gate.set)
                await gate.wait()
                asyncio.get_running_loop().remove_reader(reader)
                app.ctx.say("started")

        server = start(build)
        server.says(*STARTED, "starting")
        server.signal(signal.SIGTERM, signal.SIGTERM)
        os.write(writer, b"x")
        server.says("started", *STOPPED)
        assert server.ends() == 0
        os.close(reader)
        os.close(writer)

    def test_the_application_stops_itself(self, start: Callable[..., Server]) -> None:
        def build(app: Any) -> None:
            says_its_life(app)

            @app.get("/stop")
            async def stop(request: Any) -> Any:
                app.stop()
                return text("stopping")

        server = start(build)
        server.says(*STARTED)
        connection = HTTPConnection("127.0.0.1", server.port, timeout=15)
        connection.request("GET", "/stop")
        with suppress(OSError):
            connection.getresponse().read()
        connection.close()
        server.says(*STOPPED)
        assert server.ends() == 0
        assert server.told() == ["__TERMINATE__"]

    def test_a_signal_handler_of_the_application_is_kept(self, start: Callable[..., Server]) -> None:
        def build(app: Any) -> None:
            says_its_life(app)

            @app.after_server_start
            async def handle(app: Any) -> None:
                loop = asyncio.get_running_loop()
                loop.add_signal_handler(signal.SIGTERM, app.ctx.say, "mine")
                loop.add_signal_handler(signal.SIGUSR1, app.ctx.say, "usr1")
                app.ctx.say("set")

            @app.before_server_stop
            async def unset(app: Any) -> None:
                app.ctx.say(asyncio.get_running_loop().remove_signal_handler(signal.SIGUSR1))

        server = start(build)
        server.says(*STARTED, "set")
        server.tell(signal.SIGTERM)
        server.says("mine")
        server.signal(signal.SIGUSR1)
        server.says("usr1")
        server.tell(signal.SIGINT)
        server.says(True, *STOPPED)
        assert server.ends() == 0

    @pytest.mark.native
    @pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
    @pytest.mark.parametrize("in_the_loop", [True, False])
    def test_a_server_with_an_own_handler_is_not_stoppable(
        self, start: Callable[..., Server], signum: signal.Signals, in_the_loop: bool
    ) -> None:
        def build(app: Any) -> None:
            says_its_life(app)

            @app.after_server_start
            async def handle(app: Any) -> None:
                app.ctx.say(says_of_itself(app))
                if in_the_loop:
                    asyncio.get_running_loop().add_signal_handler(signum, app.ctx.say, "mine")
                else:
                    signal.signal(signum, lambda *_: app.ctx.say("mine"))

        server = start(build)
        server.says(*STARTED, False)
        serves_as(server, stoppable=False)
        server.signal(signum)
        server.says("mine")
        # The loop learns of every signal, so a handler of its own is called as well.
        if in_the_loop:
            assert server.answers() == "hello"

    @pytest.mark.native
    def test_a_server_without_an_own_handler_is_stoppable(self, start: Callable[..., Server]) -> None:
        server = start(lambda app: app.before_server_start(lambda app: app.ctx.say(says_of_itself(app))))
        server.says(False)
        serves_as(server, stoppable=True)
        server.signal(signal.SIGTERM)
        assert server.ends() == 0

    @pytest.mark.native
    def test_a_handler_added_later_resets_stoppable(self, start: Callable[..., Server]) -> None:
        def build(app: Any) -> None:
            @app.get("/handle")
            async def handle(request: Any) -> Any:
                asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, app.ctx.say, "mine")
                return text("set")

        server = start(build)
        serves_as(server, stoppable=True)
        assert server.answers("/handle") == "set"
        serves_as(server, stoppable=False)

    def test_a_signal_before_the_handlers_ends_the_process(self, start: Callable[..., Server]) -> None:
        reader, writer = os.pipe()

        def build(app: Any) -> None:
            app.ctx.say("loading")
            os.read(reader, 1)

        server = start(build)
        server.says("loading")
        server.signal(signal.SIGINT)
        assert server.ends() == -signal.SIGINT
        os.close(reader)
        os.close(writer)


def says_of_itself(app: Any) -> Any:
    """Whether this server says that it is stoppable."""
    return app.m._state._state.numbers(os.getpid())["stoppable"]


def serves_as(server: Server, *, stoppable: bool) -> None:
    """Wait until the server serves, and check its ``stoppable``."""
    until(lambda: server.state[NAME].get("serving"), "it to serve")
    # When it answers, its loop runs for good.
    assert server.answers() == "hello"
    assert server.state.numbers(server.process.pid)["stoppable"] is stoppable


class TestHttp3:
    def test_it_serves_after_all_listeners_and_no_signal_is_lost_then(
        self, start: Callable[..., Server], tmp_path: Path
    ) -> None:
        pytest.importorskip("aioquic")
        certificate = trustme.CA().issue_cert("localhost")
        cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
        certificate.cert_chain_pems[0].write_to_path(cert)
        certificate.private_key_pem.write_to_path(key)

        def build(app: Any) -> None:
            says_its_life(app)

            @app.listener("after_server_start", priority=-1)
            async def is_last(app: Any) -> None:
                # A turn of the loop: callbacks of the listeners before run first.
                turn = app.loop.create_future()
                app.loop.call_soon(turn.set_result, None)
                await turn
                app.ctx.say(app.state.is_running)

        tls = {"cert": str(cert), "key": str(key)}
        server = start(build, version=HTTP.VERSION_3, host="127.0.0.1", port=0, sock=None, ssl=tls)
        server.says(*STARTED, False)
        until(lambda: server.state[NAME].get("serving"), "it to serve")
        server.signal(signal.SIGTERM)
        server.says(*STOPPED)
        assert server.ends() == 0


class TestFailure:
    @pytest.fixture
    def errors(self, tmp_path: Path) -> Iterator[Callable[[], str]]:
        """Return the log of the server process."""
        handler = logging.FileHandler(tmp_path / "log")
        logging.root.addHandler(handler)
        yield (tmp_path / "log").read_text
        logging.root.removeHandler(handler)
        handler.close()

    def test_of_the_application(self, start: Callable[..., Server], errors: Callable[[], str]) -> None:
        def build(app: Any) -> None:
            raise RuntimeError("broken on purpose")

        server = start(build)
        assert server.ends() == 1
        assert server.told() == ["__TERMINATE_EARLY__"]
        files = [line.split('"')[1] for line in errors().splitlines() if line.strip().startswith("File ")]
        assert {Path(file) for file in files} == {Path(__file__), Path(serving.__file__)}, errors()
        assert "RuntimeError: broken on purpose" in errors()

    def test_with_a_long_message_is_shortened(
        self, start: Callable[..., Server], errors: Callable[[], str]
    ) -> None:
        """The line and the entry have an excerpt of it; the application's traceback has it whole."""

        def build(app: Any) -> None:
            raise RuntimeError(f"\n{'#' * 100_000}")

        server = start(build)
        assert server.ends() == 1
        line, traceback, *_ = errors().splitlines()
        assert line.startswith("\\n####") and len(line) == 200
        assert traceback.startswith("Traceback")
        error = server.state[serving.NAME]["start_error"]
        assert error.startswith("RuntimeError: \\n####") and len(error) <= 220

    def test_of_a_listener(self, start: Callable[..., Server]) -> None:
        def build(app: Any) -> None:
            @app.before_server_start
            async def fails(app: Any) -> None:
                raise RuntimeError("broken on purpose")

        server = start(build)
        assert server.ends() == 1
        assert server.told() == ["__TERMINATE_EARLY__"]

    def test_of_the_socket(self, start: Callable[..., Server]) -> None:
        """Sanic itself only logs it, and ends as if all were well."""
        taken = socket.create_server(("127.0.0.1", 0))
        server = start(sock=None, host="127.0.0.1", port=taken.getsockname()[1])
        assert server.ends() == 1
        taken.close()

    def test_without_a_state(self, start: Callable[..., Server], errors: Callable[[], str]) -> None:
        server = start(worker_state=None)
        assert server.ends() == 1
        assert server.told() == ["__TERMINATE_EARLY__"]
        assert "No worker state found in worker process" in errors()

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            (NAME, "RuntimeError: No restart publisher found in worker process"),
            ("", "KeyError: 'broken on purpose'"),
        ],
    )
    def test_without_a_publisher_is_raised(
        self,
        start: Callable[..., Server],
        name: str,
        message: str,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setenv("SANIC_WORKER_NAME", name)

        def build(app: Any) -> None:
            if not name:
                raise KeyError("broken on purpose")

        server = start(build, monitor_publisher=None)
        assert server.ends() == 1
        assert server.told() == []
        assert capfd.readouterr().err.rstrip().endswith(message)


class TestArguments:
    def test_the_configuration_reaches_the_application(self, start: Callable[..., Server]) -> None:
        def build(app: Any) -> None:
            app.after_server_start(lambda app: app.ctx.say((app.config.RELOADED_FILES, app.debug)))

        server = start(build, config={"RELOADED_FILES": "a.py"})
        server.says(("a.py", False))
        server.tell(signal.SIGTERM)
        assert server.ends() == 0

    def test_a_debugged_application_has_a_debugged_loop(self, start: Callable[..., Server]) -> None:
        def build(app: Any) -> None:
            app.config.DEBUG = True
            app.state.mode = type(app.state.mode).DEBUG
            app.after_server_start(lambda app: app.ctx.say(app.loop.get_debug()))

        server = start(build)
        server.says(True)
        server.tell(signal.SIGTERM)
        assert server.ends() == 0

    def test_a_process_that_is_no_managed_server(
        self, start: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It has no multiplexer, and sends no message to the main process."""
        monkeypatch.setenv("SANIC_WORKER_NAME", "Sanic-Other-0")

        def build(app: Any) -> None:
            says_its_life(app)
            app.after_server_start(lambda app: app.ctx.say(hasattr(app, "multiplexer")))
            app.after_server_start(serves)

        def serves(app: Any) -> None:
            # A stop signal before that may be lost.
            if app.state.is_running:
                app.ctx.say("serves")
            else:
                app.loop.call_later(0.02, serves, app)

        server = start(build)
        server.says(*STARTED, False, "serves")
        server.signal(signal.SIGTERM)
        server.says(*STOPPED)
        assert server.ends() == 0


class TestHydration:
    def info(self, **settings: Any) -> Any:
        return SimpleNamespace(settings=settings)

    def test_no_server_info_is_accepted(self) -> None:
        for nothing in (None, {}):
            serve._hydrate(nothing)

    def test_each_application_has_its_servers(self) -> None:
        one, two = Sanic("one"), Sanic("two")
        there = self.info()
        two.state.server_info = [there]  # type: ignore[list-item]
        named = self.info(app=two)
        serve._hydrate({"one": [(bare := self.info()), named], "two": [self.info()]})
        assert one.state.server_info == [bare, named]
        assert (bare.settings["app"], named.settings["app"]) == (one, two)
        assert two.state.server_info == [there]


class TestTracebacks:
    def raised(self, raises: Callable[[], Any]) -> Exception:
        try:
            raises()
        except Exception as error:
            return error
        raise AssertionError

    def names(self, error: Exception) -> list[str]:
        place, names = error.__traceback__, []
        while place is not None:
            names.append(place.tb_frame.f_globals.get("__name__", ""))
            place = place.tb_next
        return names

    def test_begin_at_the_application(self) -> None:
        ours = {"__name__": "worker.loader"}
        theirs = {"__name__": "app"}
        exec("def load(make): make()", ours)
        exec("def make(): again()\ndef again(): 1 / 0", theirs)
        error = self.raised(lambda: ours["load"](theirs["make"]))  # type: ignore[operator]
        error.__traceback__ = (
            error.__traceback__ and error.__traceback__.tb_next and error.__traceback__.tb_next.tb_next
        )
        assert self.names(error) == ["worker.loader", "app", "app"]
        assert self.names(without_our_frames(error)) == ["app", "app"]

    def test_keep_frames_of_the_package_below_the_application(self) -> None:
        theirs = {"__name__": "app"}
        exec("def call(back): back()", theirs)
        ours = {"__name__": "worker.multiplexer"}
        exec("def back(): 1 / 0", ours)
        error = self.raised(lambda: theirs["call"](ours["back"]))  # type: ignore[operator]
        assert self.names(without_our_frames(error))[-2:] == ["app", "worker.multiplexer"]

    def test_are_empty_without_frames_of_the_application(self) -> None:
        ours: dict[str, Any] = {"__name__": "worker.loader"}
        exec("def load(): 1 / 0", ours)
        error = self.raised(ours["load"])
        error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next
        assert self.names(error) == ["worker.loader"]
        assert without_our_frames(error).__traceback__ is None
