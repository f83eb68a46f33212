from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from sanic import Sanic
from support.application import edit
from support.fakes import FakePublisher

from worker._reload.outputs import Outputs
from worker.loader import AppLoader
from worker.reloader import Reloader

EVENTS = ("reload_process_start", "reload_process_stop", "before_reload_trigger", "after_reload_trigger")
FOREVER = 3600.0


def edit_all(paths: Iterable[Path]) -> None:
    for path in paths:
        edit(path, 2000)


class Stepped(Reloader):
    """A reloader that takes one of ``steps`` before each scan but the first, and stops after the last."""

    def __init__(self, publisher: FakePublisher, directory: Path, app: Sanic[Any, Any]) -> None:
        super().__init__(publisher, 1e-6, {directory}, AppLoader(factory=lambda: app))
        self.steps: list[Callable[[], Any]] = []

    def _wait(self) -> None:
        if self.steps:
            self.steps.pop(0)()
        else:
            self.stop()


class Replaced(Stepped):
    """A reloader with files of its own, so that it is asked for each of them: only the directories."""

    def python_files(self) -> Iterator[str]:
        return iter(())


@pytest.fixture
def publisher() -> FakePublisher:
    return FakePublisher()


@pytest.fixture
def app() -> Sanic[Any, Any]:
    return Sanic("Watched")


@pytest.fixture(params=[Stepped, Replaced])
def reloader(
    request: pytest.FixtureRequest, publisher: FakePublisher, watched: Path, app: Sanic[Any, Any]
) -> Stepped:
    made: Stepped = request.param(publisher, watched, app)
    return made


def nothing() -> None:
    """A step that changes nothing."""


def changed(*paths: Path) -> str:
    return "__ALL_PROCESSES__:" + ",".join(str(path) for path in paths)


class TestWatching:
    def test_no_change_sends_no_message(self, reloader: Stepped, publisher: FakePublisher) -> None:
        reloader.steps = [nothing, nothing, nothing]
        reloader()
        assert publisher.sent == []

    def test_an_edit_is_reported_once(
        self, reloader: Stepped, publisher: FakePublisher, watched: Path
    ) -> None:
        reloader.steps = [nothing, lambda: edit(watched / "below/c.txt", 2000), nothing, nothing]
        reloader()
        assert publisher.sent == [changed(watched / "below/c.txt")]

    def test_edits_are_reported_together_and_sorted(
        self, reloader: Stepped, publisher: FakePublisher, watched: Path
    ) -> None:
        paths = [watched / name for name in ("a.txt", "b.txt", "below/c.txt")]
        reloader.steps = [nothing, lambda: edit_all(reversed(paths)), nothing]
        reloader()
        assert publisher.sent == [changed(*paths)]

    def test_a_path_is_reported_resolved(
        self, reloader: Stepped, publisher: FakePublisher, watched: Path
    ) -> None:
        (watched / "link").symlink_to(watched / "a.txt")
        reloader.steps = [nothing, lambda: edit(watched / "a.txt", 2000), nothing]
        reloader()
        assert publisher.sent == [changed(watched / "a.txt")]

    def test_compiled_files_are_no_change(
        self, reloader: Stepped, publisher: FakePublisher, watched: Path
    ) -> None:
        cache = watched / "below" / "__pycache__"
        cache.mkdir()
        os.utime(watched / "below", (1000, 1000))

        def compile_again() -> None:
            edit(cache / "c.cpython-311.pyc", 2000)
            os.utime(cache, (2000, 2000))

        edit(cache / "c.cpython-311.pyc", 1000)
        reloader.steps = [nothing, compile_again, nothing]
        reloader()
        assert publisher.sent == []

    def test_all_files_are_known_after_the_first_scan(self, app: Sanic[Any, Any]) -> None:
        told: set[str] = set()
        reloader = Reloader(FakePublisher(), 1e-6, set(), AppLoader(factory=lambda: app))

        async def after(*_: Any, changed: Any = None) -> None:
            told.update(changed)
            reloader.stop()

        app.register_listener(after, "after_reload_trigger")
        reloader.check_file = lambda filename, mtimes: True  # type: ignore[method-assign]
        reloader()
        assert told
        assert told == set(reloader.files())

    def test_a_directory_deleted_during_a_scan(self, watched: Path) -> None:
        for number in range(20):
            (watched / "below" / f"{number}").mkdir()
            edit(watched / "below" / f"{number}" / "file", 1000)
        reloader = Reloader(
            FakePublisher(), 0.1, [watched / "nowhere", watched, watched / "below"], AppLoader()
        )
        reloader.python_files = lambda: iter(())  # type: ignore[method-assign]
        files = reloader.files()
        first = next(files)
        shutil.rmtree(watched / "below")
        assert {first, *files} >= {watched / "a.txt", watched / "b.txt"}

    def test_files_that_are_deleted_and_created_again(
        self, reloader: Stepped, publisher: FakePublisher, watched: Path
    ) -> None:
        reloader.steps = [
            nothing,
            lambda: shutil.rmtree(watched),
            lambda: (watched / "below").mkdir(parents=True),
            lambda: edit(watched / "a.txt", 3000),
            nothing,
        ]
        reloader()
        assert changed(watched / "a.txt") in publisher.sent

    def test_a_file_deleted_while_it_is_checked(
        self, reloader: Stepped, publisher: FakePublisher, watched: Path
    ) -> None:
        def check_file(filename: Any, mtimes: Any) -> bool:
            (watched / "a.txt").unlink(missing_ok=True)
            return Reloader.check_file(filename, mtimes)

        reloader.check_file = check_file  # type: ignore[method-assign]
        reloader.steps = [nothing, lambda: edit(watched / "b.txt", 2000), nothing]
        reloader()
        assert publisher.sent == [changed(watched / "b.txt")]


class TestEveryKindOfChange:
    """More than a newer file counts as a change; this reloader has no replaced method."""

    @pytest.fixture
    def reloader(self, publisher: FakePublisher, watched: Path, app: Sanic[Any, Any]) -> Stepped:
        return Stepped(publisher, watched, app)

    def test_files_that_are_older_new_gone_or_replaced(
        self, reloader: Stepped, publisher: FakePublisher, watched: Path
    ) -> None:
        names = ("a.txt", "b.txt", "below/c.txt", "new")
        older, gone, replaced, new = (watched / name for name in names)

        def change() -> None:
            os.utime(older, (1, 1))
            gone.unlink()
            edit(watched / "below/aside", 1000)
            (watched / "below/aside").replace(replaced)
            new.mkdir()

        reloader.steps = [nothing, change, nothing, nothing]
        reloader()
        assert publisher.sent == [changed(older, gone, replaced, new)]

    def test_modules(self, reloader: Stepped, publisher: FakePublisher, tmp_path: Path) -> None:
        """An edit of a module counts from its import on; the import itself does not."""
        modules = {name: tmp_path.parent / f"{tmp_path.name}-{name}.py" for name in ("early", "late")}
        for path in modules.values():
            edit(path, 1000)

        def load(name: str) -> None:
            loaded = sys.modules[f"reloaded_{name}"] = ModuleType(name)
            loaded.__file__ = str(modules[name])

        load("early")
        reloader.steps = [
            nothing,
            lambda: load("late"),
            lambda: edit(modules["late"], 2000),
            modules["early"].unlink,
            nothing,
        ]
        try:
            reloader()
        finally:
            for name, path in modules.items():
                sys.modules.pop(f"reloaded_{name}", None)
                path.unlink(missing_ok=True)
        assert publisher.sent == [changed(modules["late"]), changed(modules["early"])]

    def test_a_check_file_replaced_at_run_time_is_called(
        self, reloader: Stepped, publisher: FakePublisher, watched: Path
    ) -> None:
        asked: list[Any] = []

        def check_file(filename: Any, mtimes: Any) -> bool:
            asked.append(filename)
            return False

        def replace() -> None:
            reloader.check_file = check_file  # type: ignore[method-assign]
            edit(watched / "a.txt", 2000)

        reloader.steps = [nothing, replace]
        reloader()
        assert publisher.sent == []
        assert set(asked) >= {watched / "a.txt", watched / "b.txt", watched / "below"}

    def test_a_files_method_replaced_in_the_class_is_called(
        self,
        reloader: Stepped,
        publisher: FakePublisher,
        watched: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(Reloader, "files", lambda _: iter([watched / "b.txt"]))
        reloader.steps = [nothing, lambda: edit_all([watched / "a.txt", watched / "b.txt"])]
        reloader()
        assert publisher.sent == [changed(watched / "b.txt")]

    @pytest.mark.slow
    def test_at_most_1000_paths_are_sent(
        self, reloader: Stepped, publisher: FakePublisher, app: Sanic[Any, Any], watched: Path
    ) -> None:
        seen: list[int] = []
        app.register_listener(lambda *_, changed: seen.append(len(changed)), "after_reload_trigger")
        paths = [watched / f"{number:04}" for number in range(1500)]
        reloader.steps = [nothing, lambda: edit_all(paths), nothing]
        reloader()
        assert publisher.sent == [changed(*paths[:1000])]
        assert seen == [1500]


class TestListeners:
    def test_order_and_arguments(self, reloader: Stepped, app: Sanic[Any, Any], watched: Path) -> None:
        told: list[Any] = []

        @app.reload_process_start
        def start(given: Any) -> None:
            told.append(("start", given))

        @app.reload_process_stop
        async def stop(given: Any, loop: Any) -> None:
            told.append(("stop", given))

        @app.before_reload_trigger
        async def before(given: Any) -> None:
            told.append(("before", given))

        @app.after_reload_trigger
        def after(given: Any, changed: Any) -> None:
            told.append(("after", given, changed))

        publisher = FakePublisher(lambda message: told.append("sent"))
        reloader._publisher = publisher
        paths = [watched / "a.txt", watched / "b.txt"]
        reloader.steps = [
            nothing,
            lambda: edit(paths[0], 2000),
            nothing,
            lambda: edit(paths[1], 2000),
            nothing,
        ]
        reloader()
        triggers = [[("before", app), "sent", ("after", app, {str(path)})] for path in paths]
        assert told == [("start", app), *triggers[0], *triggers[1], ("stop", app)]

    def test_a_listener_that_raises_is_logged(
        self,
        reloader: Stepped,
        publisher: FakePublisher,
        app: Sanic[Any, Any],
        watched: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        told: list[str] = []
        for event in EVENTS:

            def fail(*_: Any, event: str = event, **__: Any) -> None:
                raise ValueError(f"broken {event}")

            def note(*_: Any, event: str = event, **__: Any) -> None:
                told.append(event)

            app.register_listener(fail, event)
            app.register_listener(note, event)
        reloader.steps = [nothing, lambda: edit(watched / "a.txt", 2000), nothing]
        with caplog.at_level(logging.ERROR, "sanic.error"):
            reloader()
        assert publisher.sent == [changed(watched / "a.txt")]
        order = (EVENTS[0], EVENTS[2], EVENTS[3], EVENTS[1])
        assert told == list(order)
        logged = [record for record in caplog.records if record.name == "sanic.error"]
        assert [str(record.exc_info[1]) for record in logged if record.exc_info] == [
            f"broken {e}" for e in order
        ]
        assert all(event in record.getMessage() for event, record in zip(order, logged, strict=True))


class TestStopping:
    def test_a_signal_ends_the_wait_at_once(self, app: Sanic[Any, Any]) -> None:
        reloader = Reloader(FakePublisher(), FOREVER, set(), AppLoader(factory=lambda: app))
        signal.signal(signal.SIGUSR1, reloader.stop)
        sender = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGUSR1))
        sender.start()
        reloader()
        sender.join()
        assert reloader.run is False

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_stops_on_sigint_and_sigterm(self, app: Sanic[Any, Any], number: int) -> None:
        reloader = Reloader(FakePublisher(), FOREVER, set(), AppLoader(factory=lambda: app))
        app.register_listener(lambda *_: os.kill(os.getpid(), number), "reload_process_start")
        reloader()
        assert signal.getsignal(number) == reloader.stop

    def test_a_stop_aborts_a_scan(self, reloader: Stepped, publisher: FakePublisher) -> None:
        looked: list[Any] = []

        def check_file(filename: Any, mtimes: Any) -> bool:
            looked.append(filename)
            reloader.stop()
            reloader.stop()
            return True

        reloader.check_file = check_file  # type: ignore[method-assign]
        reloader.steps = [nothing, nothing]
        reloader()
        assert len(looked) == 1
        assert publisher.sent == []

    def test_stops_when_the_main_process_has_ended(self, app: Sanic[Any, Any], watched: Path) -> None:
        def gone(_: Any) -> None:
            raise BrokenPipeError

        stopped: list[str] = []
        reloader = Reloader(FakePublisher(gone), FOREVER, {watched}, AppLoader(factory=lambda: app))
        reloader.check_file = lambda filename, mtimes: True  # type: ignore[method-assign]
        app.register_listener(lambda *_: stopped.append("stop"), "reload_process_stop")
        app.register_listener(lambda *_, **__: stopped.append("after"), "after_reload_trigger")
        reloader()
        assert stopped == ["stop"]


def watched_app(pipe: Connection) -> Sanic[Any, Any]:
    app = Sanic("Watched")
    app.register_listener(lambda *_: pipe.send("start"), "reload_process_start")
    app.register_listener(lambda *_: pipe.send("stop"), "reload_process_stop")
    return app


class Factory:
    """Make the application in the process that the reloader runs in."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe

    def __call__(self) -> Sanic[Any, Any]:
        return watched_app(self.pipe)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_runs_in_a_child_process(method: str, watched: Path) -> None:
    context: Any = multiprocessing.get_context(method)
    receiver, sender = context.Pipe(duplex=False)
    reloader = Reloader(sender, FOREVER, {watched}, AppLoader(factory=Factory(sender)))
    process = context.Process(target=reloader)
    with receiver, sender:
        process.start()
        try:
            assert receiver.poll(30)
            assert receiver.recv() == "start"
            process.terminate()
            process.join(30)
        finally:
            process.kill()
            process.join()
        assert process.exitcode == 0
        assert receiver.recv() == "stop"
    process.close()


def test_a_change_found_to_be_output_later_is_not_reported(
    publisher: FakePublisher, watched: Path, app: Sanic[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is opened for each request is seen open only by luck: at the second look, for example."""
    asked: list[set[str]] = []

    def among(outputs: Outputs, paths: set[str], modules: Collection[str]) -> set[str]:
        asked.extend([paths] if paths else [])
        return paths if len(asked) > 1 else set()

    monkeypatch.setattr(Outputs, "among", among)
    reloader = Stepped(publisher, watched, app)
    reloader.steps = [nothing, lambda: edit(watched / "a.txt", 2000), nothing]
    reloader()
    assert asked[0] == {str(watched / "a.txt")}
    assert publisher.sent == []
