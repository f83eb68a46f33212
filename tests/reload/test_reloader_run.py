"""The running reloader: the files that it watches, its debounce, its log lines."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from sanic import Sanic
from support.fakes import FakePublisher

from worker import reloader
from worker._child import bootstrap
from worker._reload.file_events import FileEvents
from worker.loader import AppLoader

from .test_reloader import Stepped, nothing


@pytest.fixture
def publisher() -> FakePublisher:
    return FakePublisher()


@pytest.fixture
def stepped(publisher: FakePublisher, watched: Path) -> Stepped:
    return Stepped(publisher, watched, Sanic("Watched"))


def write(path: Path, content: str = "x") -> None:
    path.write_text(content)


class TestDebounce:
    def test_changes_in_quick_succession_are_one(
        self, stepped: Stepped, publisher: FakePublisher, watched: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        paths = [str(watched / name) for name in ("a.txt", "b.txt", "below/c.txt", "new.txt")]
        left, found = [*paths], set[str]()
        look, wait = stepped._look, FileEvents.wait

        def save_one() -> None:
            # All changes are one succession until each file is found.
            stepped.DEBOUNCE, stepped.MAX_DEBOUNCE = 10.0, 40.0  # type: ignore[misc]
            write(Path(left.pop(0)))

        def noting(given: Any) -> set[str]:
            changed = look(given)
            found.update(changed)
            if found >= {*paths}:
                stepped.DEBOUNCE = 0.0  # type: ignore[misc]
            return changed

        def saving(events: FileEvents, timeout: float) -> set[str] | None:
            if left:
                write(Path(left.pop(0)))
            return wait(events, timeout)

        monkeypatch.setattr(stepped, "_look", noting)
        monkeypatch.setattr(FileEvents, "wait", saving)
        stepped.steps = [save_one, nothing]
        stepped()
        assert publisher.sent == [f"__ALL_PROCESSES__:{','.join(sorted(paths))}"]

    def test_a_change_after_the_scan_is_included(
        self, stepped: Stepped, publisher: FakePublisher, watched: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The limit holds on a slow machine, too."""
        look = stepped._look

        def busy(paths: Any) -> set[str]:
            monkeypatch.setattr(stepped, "_look", look)
            write(watched / "a.txt")
            changed = look(paths)
            write(watched / "b.txt")
            threading.Event().wait(2 * stepped.DEBOUNCE)
            return changed

        stepped.steps = [partial(monkeypatch.setattr, stepped, "_look", busy)]
        stepped()
        assert publisher.sent == [f"__ALL_PROCESSES__:{watched / 'a.txt'},{watched / 'b.txt'}"]

    @pytest.mark.slow
    def test_is_limited(self, stepped: Stepped, publisher: FakePublisher, watched: Path) -> None:
        stepped.DEBOUNCE, stepped.MAX_DEBOUNCE = 0.2, 0.3  # type: ignore[misc]
        begun, told = threading.Event(), threading.Event()
        publisher.on_send = lambda _: told.set()

        def go_on() -> None:
            number = 0
            while not told.wait(0.01):
                number += 1
                # Without opening it: a file that this process has open for writing counts as its output.
                os.utime(watched / "a.txt", (number, number))
                begun.set()

        thread = threading.Thread(target=go_on, daemon=True)

        def start() -> None:
            thread.start()
            assert begun.wait(10)

        stepped.steps = [start, thread.join]
        stepped()
        assert publisher.sent[0] == f"__ALL_PROCESSES__:{watched / 'a.txt'}"


class TestEarlyEdits:
    def test_an_edit_of_a_module_since_the_process_start_is_reported(
        self, stepped: Stepped, publisher: FakePublisher, watched: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Workers may have imported the earlier content."""
        module = ModuleType("imported_while_it_was_edited")
        module.__file__ = str(watched / "a.txt")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(bootstrap, "started_at", lambda: os.stat(watched / "a.txt").st_ctime - 0.001)
        threading.Event().wait(2 * reloader.CLOCK_TICK)
        stepped.steps = [nothing]
        stepped()
        assert publisher.sent == [f"__ALL_PROCESSES__:{watched / 'a.txt'}"]

    def test_an_edit_during_the_start_listeners_is_reported(
        self, stepped: Stepped, publisher: FakePublisher, watched: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(bootstrap, "started_at", lambda: os.stat(watched / "b.txt").st_ctime - 0.001)
        look = stepped._look

        def late(paths: Any) -> set[str]:
            if paths is None and not publisher.sent:
                write(watched / "b.txt")
            return look(paths)

        threading.Event().wait(2 * reloader.CLOCK_TICK)
        monkeypatch.setattr(stepped, "_look", late)
        stepped.steps = [nothing]
        stepped()
        assert publisher.sent == [f"__ALL_PROCESSES__:{watched / 'b.txt'}"]


def test_files_written_by_the_reloader_are_no_change(
    stepped: Stepped, publisher: FakePublisher, watched: Path
) -> None:
    """The log of a server whose output is directed to a file is such a file."""
    with (watched / "server log").open("w") as log:
        stepped.steps = [partial(print, "a line", file=log, flush=True), partial(write, watched / "b.txt")]
        stepped()
    assert publisher.sent == [f"__ALL_PROCESSES__:{watched / 'b.txt'}"]


def test_patterns_of_the_setting_apply(
    stepped: Stepped, publisher: FakePublisher, watched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANIC_WORKER_RELOAD_IGNORE", "b.*,!*.log")
    stepped.steps = [lambda: [write(watched / name) for name in ("b.txt", "c.log", "d.log.1")], nothing]
    stepped()
    assert publisher.sent == [f"__ALL_PROCESSES__:{watched / 'c.log'}"]


class TestReports:
    @pytest.mark.parametrize(
        ("names", "text"),
        [
            (["a"], "a"),
            (["c", "a", "b"], "a, b, c"),
            (["a", "b", "c", "d", "e"], "a, b, c and 2 more"),
            (["ü\n\udcff\x1b[0m:%,"], r"ü\n\udcff\x1b[0m:%,"),
        ],
    )
    def test_name_the_changed_files(
        self,
        stepped: Stepped,
        watched: Path,
        names: list[str],
        text: str,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(watched)
        stepped.steps = [lambda: [write(watched / name) for name in names], nothing]
        with caplog.at_level(logging.INFO, "sanic.root"):
            stepped()
        count = "1 file" if len(names) == 1 else f"{len(names)} files"
        line = f"Reloader: {count} changed ({text}). Restarting the workers."
        assert [text for _, _, text in caplog.record_tuples if "changed" in text] == [line]

    def test_a_file_outside_the_working_directory_has_its_full_path(
        self,
        stepped: Stepped,
        watched: Path,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(watched / "below")
        stepped.steps = [partial(write, watched / "a.txt"), nothing]
        with caplog.at_level(logging.INFO, "sanic.root"):
            stepped()
        assert f"Reloader: 1 file changed ({watched / 'a.txt'})." in caplog.text

    def test_many_files_are_one_short_line(self, stepped: Stepped, caplog: pytest.LogCaptureFixture) -> None:
        names = {f"/{'#' * 4_000}\n/{number:05}" for number in range(10_000)}
        with caplog.at_level(logging.INFO, "sanic.root"):
            stepped._announce(SimpleNamespace(listeners={}), None, names)  # type: ignore[arg-type]
        (line,) = [text for text in caplog.messages if "changed" in text]
        assert line.startswith("Reloader: 10000 files changed (/####")
        assert line.endswith(" and 9997 more). Restarting the workers.")
        assert len(line) <= 300
        assert "\n" not in line


class TestPackage:
    """The application's directory is watched without a setting."""

    @pytest.fixture(autouse=True)
    def _modules(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        files: dict[str, str | None] = {
            "shop": "shop/__init__.py",
            "shop.web": "shop/web/__init__.py",
            "shop.web.app": "shop/web/app.py",
            "space": None,
            "space.app": "space/app.py",
            "single": "single/single.py",
            "__main__": "scripts/run.py",
        }
        for name, file in files.items():
            module = ModuleType(name)
            module.__file__ = file and str(tmp_path / file)
            monkeypatch.setitem(sys.modules, name, module)

    @pytest.mark.parametrize(
        ("target", "folder"),
        [
            ("shop.web.app:app", "shop"),
            ("shop:app", "shop"),
            ("space.app:app", "space"),
            ("single:app", "single"),
            ("shop.web.app:create()", "shop"),
        ],
    )
    def test_of_a_module(self, tmp_path: Path, target: str, folder: str) -> None:
        assert reloader._package(AppLoader(target)) == [str(tmp_path / folder)]

    @pytest.mark.parametrize(
        ("module", "folder"), [("shop.web", "shop"), ("__main__", "scripts"), ("sanic.app", "scripts")]
    )
    @pytest.mark.parametrize("wrap", [lambda made: made, partial])
    def test_of_a_factory(self, tmp_path: Path, module: str, folder: str, wrap: Callable[..., Any]) -> None:
        def factory() -> Any: ...

        factory.__module__ = module
        assert reloader._package(AppLoader(factory=wrap(factory))) == [str(tmp_path / folder)]

    @pytest.mark.parametrize(
        "folder", ["/", "~", os.path.dirname(os.__file__), os.path.dirname(sys.executable)]
    )
    def test_none_for_a_shared_directory(self, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            sys.modules["single"], "__file__", os.path.join(os.path.expanduser(folder), "a.py")
        )
        assert reloader._package(AppLoader("single:app")) == []

    def test_none_for_a_module_without_a_file(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys.modules["single"], "__file__", None)
        assert reloader._package(AppLoader("single:app")) == []
        assert reloader._package(AppLoader("missing:app")) == []
