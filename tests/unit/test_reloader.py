from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from sanic import Sanic

from worker.loader import AppLoader
from worker.reloader import Reloader

from .fakes import FakePublisher

EVENTS = ("reload_process_start", "reload_process_stop", "before_reload_trigger", "after_reload_trigger")
FOREVER = 3600.0


@pytest.fixture(autouse=True)
def _signals_as_before() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def watched(tmp_path: Path) -> Path:
    """A directory with two files and one below."""
    (tmp_path / "below").mkdir()
    for name in ("a.txt", "b.txt", "below/c.txt"):
        edit(tmp_path / name, 1000)
    return tmp_path


def edit(path: Path, mtime: float) -> None:
    path.touch()
    os.utime(path, (mtime, mtime))


def edit_all(paths: Iterable[Path]) -> None:
    for path in paths:
        edit(path, 2000)


class Stepped(Reloader):
    """Takes one of ``steps`` before each look, without waiting, and stops when all are taken.

    Looks only at the directories: what the test's own modules do is no business of it.
    """

    def __init__(self, publisher: FakePublisher, directory: Path, app: Sanic[Any, Any]) -> None:
        super().__init__(publisher, 1e-6, {directory}, AppLoader(factory=lambda: app))
        self.steps: list[Callable[[], Any]] = []

    def python_files(self) -> Iterator[str]:
        if not self.steps:
            self.stop()
            return
        self.steps.pop(0)()
        yield from ()


@pytest.fixture
def publisher() -> FakePublisher:
    return FakePublisher()


@pytest.fixture
def app() -> Sanic[Any, Any]:
    return Sanic("Watched")


@pytest.fixture
def reloader(publisher: FakePublisher, watched: Path, app: Sanic[Any, Any]) -> Stepped:
    return Stepped(publisher, watched, app)


def nothing() -> None:
    """A step that changes nothing."""


def changed(*paths: Path) -> str:
    return "__ALL_PROCESSES__:" + ",".join(str(path) for path in paths)


class TestContract:
    def test_attributes(self) -> None:
        publisher, loader = FakePublisher(), AppLoader()
        reloader = Reloader(publisher, 0, {Path("x")}, loader)
        assert Reloader.INTERVAL == reloader.interval == 1.0
        assert Reloader(publisher, 0.1, set(), loader).interval == 0.1
        assert reloader._publisher is publisher
        assert reloader.reload_dirs == {Path("x")}
        assert reloader.app_loader is loader
        assert reloader.run is True

    def test_reload(self) -> None:
        publisher = FakePublisher()
        Reloader(publisher, 0.1, set(), AppLoader()).reload("foobar")
        assert publisher.sent == ["__ALL_PROCESSES__:foobar"]

    def test_check_file(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        edit(path, 1000)
        mtimes: dict[Path, float] = {}
        assert Reloader.check_file(path, mtimes) is False
        assert mtimes == {path: 1000}
        assert Reloader.check_file(path, mtimes) is False
        mtimes[path] -= 1
        assert Reloader.check_file(path, mtimes) is True
        assert mtimes == {path: 1000}
        edit(path, 999)
        assert Reloader.check_file(path, mtimes) is False
        with pytest.raises(FileNotFoundError):
            Reloader.check_file(tmp_path / "nowhere", mtimes)
        assert set(mtimes) == {path}

    def test_files(self, watched: Path) -> None:
        alone = list(Reloader(FakePublisher(), 0.1, set(), AppLoader()).files())
        assert __file__ in alone
        reloader = Reloader(FakePublisher(), 0.1, {watched, watched / "below"}, AppLoader())
        assert list(reloader.python_files()) == alone
        expected = [*alone, *watched.glob("**/*"), *(watched / "below").glob("**/*")]
        assert sorted(map(str, reloader.files())) == sorted(map(str, expected))

    def test_python_files(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        class Hostile(ModuleType):
            @property
            def __file__(self) -> str:  # type: ignore[override]
                raise ImportError("not installed")

        archive = tmp_path / "archive.zip"
        source = tmp_path / "compiled.py"
        for path in (archive, source, Path(f"{source}c")):
            path.touch()
        modules: dict[str, Any] = {"hostile": Hostile("hostile"), "nothing": None}
        files = {
            "zipped": f"{archive}/inner.py",
            "compiled": f"{source}c",
            "gone": f"{tmp_path}/x.py",
            "odd": tmp_path,
        }
        for name, file in {**files, "builtin": None}.items():
            modules[name] = ModuleType(name)
            modules[name].__file__ = file
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, f"reloaded_{name}", module)
        found = list(Reloader(FakePublisher(), 0.1, set(), AppLoader()).python_files())
        assert [path for path in found if path.startswith(str(tmp_path))] == [str(archive), str(source)]

    def test_it_travels(self) -> None:
        reloader = pickle.loads(pickle.dumps(Reloader(FakePublisher(), 2, {Path("x")}, AppLoader("m:app"))))
        assert (reloader.interval, reloader.reload_dirs) == (2, {Path("x")})


class TestWatching:
    def test_no_change(self, reloader: Stepped, publisher: FakePublisher) -> None:
        reloader.steps = [nothing, nothing, nothing]
        reloader()
        assert publisher.sent == []

    def test_an_edit_is_told_once(self, reloader: Stepped, publisher: FakePublisher, watched: Path) -> None:
        reloader.steps = [nothing, lambda: edit(watched / "below/c.txt", 2000), nothing, nothing]
        reloader()
        assert publisher.sent == [changed(watched / "below/c.txt")]

    def test_edits_are_told_together_and_sorted(
        self, reloader: Stepped, publisher: FakePublisher, watched: Path
    ) -> None:
        paths = [watched / name for name in ("a.txt", "b.txt", "below/c.txt")]
        reloader.steps = [nothing, lambda: edit_all(reversed(paths)), nothing]
        reloader()
        assert publisher.sent == [changed(*paths)]

    def test_a_path_is_told_as_what_it_resolves_to(
        self, reloader: Stepped, publisher: FakePublisher, watched: Path
    ) -> None:
        (watched / "link").symlink_to(watched / "a.txt")
        reloader.steps = [nothing, lambda: edit(watched / "a.txt", 2000), nothing]
        reloader()
        assert publisher.sent == [changed(watched / "a.txt")]

    def test_what_python_compiles_is_no_edit(
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

    def test_everything_that_it_looks_at_is_known_at_the_first_look(self, app: Sanic[Any, Any]) -> None:
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

    def test_a_directory_that_goes_in_the_middle_of_a_look(self, watched: Path) -> None:
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

    def test_files_that_come_and_go(self, reloader: Stepped, publisher: FakePublisher, watched: Path) -> None:
        reloader.steps = [
            nothing,
            lambda: shutil.rmtree(watched),
            lambda: (watched / "below").mkdir(parents=True),
            lambda: edit(watched / "a.txt", 3000),
            nothing,
        ]
        reloader()
        assert changed(watched / "a.txt") in publisher.sent

    def test_a_file_that_goes_while_it_is_looked_at(
        self, reloader: Stepped, publisher: FakePublisher, watched: Path
    ) -> None:
        def check_file(filename: Any, mtimes: Any) -> bool:
            (watched / "a.txt").unlink(missing_ok=True)
            return Reloader.check_file(filename, mtimes)

        reloader.check_file = check_file  # type: ignore[method-assign]
        reloader.steps = [nothing, lambda: edit(watched / "b.txt", 2000), nothing]
        reloader()
        assert publisher.sent == [changed(watched / "b.txt")]


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

    def test_one_that_raises_ends_nothing(
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
    def test_its_signals(self, app: Sanic[Any, Any], number: int) -> None:
        reloader = Reloader(FakePublisher(), FOREVER, set(), AppLoader(factory=lambda: app))
        app.register_listener(lambda *_: os.kill(os.getpid(), number), "reload_process_start")
        reloader()
        assert signal.getsignal(number) == reloader.stop

    def test_a_look_is_not_finished(self, reloader: Stepped, publisher: FakePublisher) -> None:
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

    def test_when_main_is_gone(self, app: Sanic[Any, Any], watched: Path) -> None:
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
    """Makes the application in the process that the reloader runs in."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe

    def __call__(self) -> Sanic[Any, Any]:
        return watched_app(self.pipe)


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_in_a_process_of_its_own(method: str, watched: Path) -> None:
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
