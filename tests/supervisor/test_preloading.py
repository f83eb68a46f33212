"""The preload process follows the code: at a restart, after a failure of it, and at a stop."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from support.preloading import Preload, Scene

from worker._spawn import processes
from worker._spawn.preload import preloads as module
from worker._spawn.preload.preloads import preloads
from worker._spawn.preload.process import (
    ImportFailedError,
    PreloadError,
    StopAskedError,
    UnsafeError,
)
from worker._supervisor.duties import preloading
from worker._supervisor.model import ServerPhase

KILLED = PreloadError("it was killed by SIGKILL")
BROKEN = ImportFailedError("the application cannot be imported: SyntaxError: no")
UNSAFE = UnsafeError("a thread runs (module shop.jobs, line 12)")


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Scene]]:
    monkeypatch.delenv("SANIC_WORKER_PRELOAD")
    monkeypatch.setattr(module, "make", Preload)
    monkeypatch.setattr(preloading, "described", lambda loader: b"")
    monkeypatch.setattr(processes, "preloaded_method", lambda context: "spawn")
    scenes: list[Scene] = []

    def make(*args: Any, **settings: Any) -> Scene:
        scenes.append(one := Scene(*args, **settings))
        monkeypatch.setattr(preloading, "time", SimpleNamespace(monotonic=lambda: one.now))
        return one

    yield make
    for one in scenes:
        one.duty.close()


def lines(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= level]


class TestRestartWithTheApplicationPreloaded:
    def test_waits_until_the_new_code_is_imported(self, scene: Callable[..., Scene]) -> None:
        it = scene("app")
        old = it.begin()
        operation = it.restart()
        assert it.next.has_application and it.current is old
        assert it.lifecycle.requested == ()
        new = it.answer()
        assert it.current is new and preloads.next is None
        assert it.lifecycle.requested == (operation,)
        assert it.looks == 1

    def test_ends_the_old_preload_process_once_a_worker_of_the_new_one_is_ready(
        self, scene: Callable[..., Scene]
    ) -> None:
        it = scene("app")
        old = it.begin()
        operation = it.restart()
        it.answer()
        assert not old.is_killed
        it.end(operation)
        assert old.is_killed and [*preloads] == [it.current]

    def test_touches_nothing_if_the_import_fails(
        self, scene: Callable[..., Scene], caplog: pytest.LogCaptureFixture
    ) -> None:
        it = scene("app")
        old = it.begin()
        operation = it.restart()
        failed = it.answer(BROKEN)
        assert it.current is old and failed.is_killed and not old.is_killed
        assert it.lifecycle.requested == () and operation.failure == str(BROKEN)
        (line,) = lines(caplog)
        assert line == f"{failed}: {BROKEN}. Rollout aborted, 1 worker not restarted."

    def test_tells_the_error_of_the_import_in_one_short_line(
        self, scene: Callable[..., Scene], caplog: pytest.LogCaptureFixture
    ) -> None:
        it = scene("app")
        it.begin()
        operation = it.restart()
        it.answer(ImportFailedError("line\n" * 1000))
        (line,) = lines(caplog)
        assert len(line) < 450 and "\n" not in line + operation.failure

    def test_goes_back_to_the_old_code_if_the_new_one_does_not_start(
        self, scene: Callable[..., Scene]
    ) -> None:
        it = scene("app")
        old = it.begin()
        operation = it.restart()
        new = it.answer()
        it.end(operation, failure="the canary has failed")
        assert it.current is old and new.is_killed and preloads.previous is None

    def test_goes_on_with_the_new_code_if_a_later_worker_fails(self, scene: Callable[..., Scene]) -> None:
        it = scene("app")
        it.begin()
        operation = it.restart()
        new = it.answer()
        operation.mark_ready(it.slot)
        it.end(operation, failure="another worker has failed")
        assert it.current is new and [*preloads] == [new]


class TestSecondRestart:
    def test_while_the_code_is_imported_begins_the_import_anew(self, scene: Callable[..., Scene]) -> None:
        it = scene("app")
        it.begin()
        first = it.restart()
        stale = it.next
        second = it.restart()
        assert stale.is_killed and it.next is not stale
        it.answer()
        assert it.lifecycle.requested == (first, second)

    def test_does_not_extend_the_limit_of_the_import(self, scene: Callable[..., Scene]) -> None:
        """A restart that is requested more often than the import takes would never come about."""
        it = scene("app")
        it.begin()
        it.limit = 10
        for it.now in (0, 4, 8):
            it.restart()
        it.now = 9
        it.perform()
        assert it.lifecycle.requested == ()
        it.now = 10
        it.perform()
        assert len(it.lifecycle.requested) == 3

    def test_while_the_canary_starts_keeps_the_proven_code(self, scene: Callable[..., Scene]) -> None:
        it = scene("app")
        proven = it.begin()
        first = it.restart()
        unproven = it.answer()
        second = it.restart()
        newest = it.answer()
        assert unproven.is_killed and it.current is newest
        it.end(first, second, failure="the canary has failed")
        assert it.current is proven

    def test_after_a_failed_canary_imports_on(self, scene: Callable[..., Scene]) -> None:
        it = scene("app")
        proven = it.begin()
        first = it.restart()
        it.answer()
        second = it.restart()
        it.end(first, failure="the canary has failed")
        assert it.current is proven
        newest = it.answer()
        assert it.current is newest and preloads.previous is proven
        assert it.lifecycle.requested == (second,)


class TestFailureOfTheNextOne:
    @pytest.mark.parametrize("error", [KILLED, PreloadError("it was stopped by a signal"), None])
    def test_spawns_the_workers(
        self, error: PreloadError | None, scene: Callable[..., Scene], caplog: pytest.LogCaptureFixture
    ) -> None:
        it = scene("app")
        it.limit = 30
        it.begin()
        operation = it.restart()
        failed = it.next
        if error is None:
            it.wait()
        else:
            it.answer(error)
        assert failed.is_killed and preloads.current is None
        assert it.lifecycle.requested == (operation,)
        (line,) = lines(caplog)
        assert "Workers are spawned until another one is ready; it is started in 1.0 s." in line
        it.wait()
        assert it.current.has_application

    def test_keeps_the_old_code_until_the_new_one_starts(self, scene: Callable[..., Scene]) -> None:
        it = scene("app")
        old = it.begin()
        operation = it.restart()
        it.answer(KILLED)
        it.end(operation, failure="the canary has failed")
        assert it.current is old
        # That of the backoff is not started any more.
        it.wait()
        assert [*preloads] == [old]

    def test_of_its_start_spawns_the_workers(
        self, scene: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def refuse(installs: bool) -> Any:
            raise PreloadError("Too many open files")

        it = scene("app")
        it.begin()
        monkeypatch.setattr(module, "make", refuse)
        operation = it.restart()
        assert it.lifecycle.requested == (operation,)
        (line,) = lines(caplog)
        assert line.startswith("No preload process can be started: Too many open files. Workers are spawned ")


def test_an_import_that_fails_beside_that_of_the_main_process_is_done_again(
    scene: Callable[..., Scene], caplog: pytest.LogCaptureFixture
) -> None:
    it = scene("app")
    it.duty.begin(None)
    first = it.current
    first.loaded_in, first.error = "the conditions of the main process", BROKEN
    it.perform()
    second = it.current
    assert first.is_killed and second.has_application and lines(caplog) == []
    second.error = BROKEN
    it.perform()
    assert second.is_killed and not it.current.has_application
    assert len(lines(caplog)) == 1


class TestUnsafeApplication:
    def test_is_not_preloaded_until_the_next_restart(
        self, scene: Callable[..., Scene], caplog: pytest.LogCaptureFixture
    ) -> None:
        it = scene("app")
        it.begin()
        it.restart()
        it.answer(UNSAFE)
        (line,) = lines(caplog)
        assert line.endswith(
            "a thread runs (module shop.jobs, line 12). "
            "The application is not preloaded until the next restart."
        )
        framework = it.current
        assert not framework.has_application
        framework.is_ready = True
        it.perform()
        it.restart()
        assert it.next.has_application
        it.answer(UNSAFE)
        # It has no code of the application that could be stale.
        assert it.current is framework and it.lifecycle.held == 0

    @pytest.mark.parametrize("error", [UNSAFE, BROKEN])
    def test_at_the_first_start_is_replaced_by_the_framework(
        self, error: PreloadError, scene: Callable[..., Scene], caplog: pytest.LogCaptureFixture
    ) -> None:
        it = scene("app")
        it.duty.begin(None)
        first = it.current
        first.error = error
        it.perform()
        assert first.is_killed and not it.current.has_application
        assert len(lines(caplog)) == 1
        it.current.is_ready = True
        it.perform()
        assert it.duty.due_at == math.inf


class TestRestartWithTheFrameworkPreloaded:
    def test_keeps_a_preload_process_whose_modules_are_unchanged(self, scene: Callable[..., Scene]) -> None:
        it = scene("framework")
        old = it.begin()
        operation = it.restart()
        assert it.lifecycle.requested == (operation,) and [*preloads] == [old]

    def test_starts_another_one_if_a_module_has_changed(
        self, scene: Callable[..., Scene], caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "sanic.root")
        it = scene("framework")
        old = it.begin()
        old.changed = "/lib/sanic/app.py"
        operation = it.restart()
        # The workers do not wait for it.
        assert it.lifecycle.requested == (operation,) and it.current is not old
        assert any("/lib/sanic/app.py has changed since its import" in line for line in caplog.messages)
        it.end(operation)
        assert old.is_killed and [*preloads] == [it.current]

    def test_drops_one_that_does_not_answer(
        self, scene: Callable[..., Scene], caplog: pytest.LogCaptureFixture
    ) -> None:
        it = scene("framework")
        old = it.begin()
        old.error = PreloadError("it gave no answer within 1 s")
        it.restart()
        assert old.is_killed and preloads.current is None
        assert "it gave no answer within 1 s" in lines(caplog)[0]


class TestBackoff:
    def test_grows_until_the_workers_are_spawned(
        self, scene: Callable[..., Scene], caplog: pytest.LogCaptureFixture
    ) -> None:
        it = scene("framework", max_consecutive_failures=2, backoff_max=2)
        it.duty.begin(None)
        for _ in range(3):
            it.current.error = KILLED
            it.perform()
            it.wait()
        assert [line.rpartition(". ")[2] if "until the" in line else line[-6:] for line in lines(caplog)] == [
            "1.0 s.",
            "2.0 s.",
            "Workers are spawned until the next restart.",
        ]
        assert preloads.current is None and it.duty.due_at == math.inf
        it.restart()
        assert it.current.error is None

    def test_is_that_of_the_restart_policy(
        self, scene: Callable[..., Scene], caplog: pytest.LogCaptureFixture
    ) -> None:
        """The first delay is never cut, and the number of failures never overflows."""
        it = scene("framework", backoff_initial=60, max_consecutive_failures=2000)
        it.duty.begin(None)
        for _ in range(1100):
            it.current.error = KILLED
            it.perform()
            it.wait()
        assert {line[-7:] for line in lines(caplog)} == {"60.0 s."}

    def test_begins_anew_after_one_that_has_run_for_long(
        self, scene: Callable[..., Scene], caplog: pytest.LogCaptureFixture
    ) -> None:
        it = scene("framework")
        it.begin()
        for _ in range(3):
            it.now += it.settings.min_uptime
            it.current.error = KILLED
            assert it.duty.on_exit(it.current.key)
            it.wait()
        assert all(line.endswith("1.0 s.") for line in lines(caplog)) and len(lines(caplog)) == 3

    def test_follows_if_it_does_not_get_ready(
        self, scene: Callable[..., Scene], caplog: pytest.LogCaptureFixture
    ) -> None:
        it = scene("framework")
        it.limit = 30
        it.duty.begin(None)
        it.now = 29
        it.perform()
        assert not lines(caplog)
        it.now = 30
        it.perform()
        assert "it was not ready within 30 s" in lines(caplog)[0]


class TestStop:
    def test_kills_the_next_one_and_keeps_those_with_children(self, scene: Callable[..., Scene]) -> None:
        it = scene("app")
        current = it.begin()
        current.children = 1
        it.restart()
        following = it.next
        it.lifecycle.halt(ServerPhase.STOPPING)
        it.perform()
        assert following.is_killed and not current.is_killed
        assert it.duty.due_at == math.inf
        it.duty.close()
        assert current.is_killed

    def test_starts_no_other_one(self, scene: Callable[..., Scene]) -> None:
        it = scene("framework")
        it.begin().error = KILLED
        it.duty.on_exit(it.current.key)
        it.lifecycle.halt(ServerPhase.STOPPING)
        it.wait()
        assert preloads.current is None and it.duty.due_at == math.inf

    def test_during_the_first_wait_is_no_failure(
        self, scene: Callable[..., Scene], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(self: Preload, timeout: float = 0.0) -> bool:
            raise StopAskedError("a stop was asked for before it was ready")

        monkeypatch.setattr(Preload, "update", interrupted)
        scene("framework").duty.begin(None)
        assert lines(caplog) == []


def test_the_status_shows_the_current_one(scene: Callable[..., Scene]) -> None:
    it = scene("app")
    it.duty.begin(None)
    it.perform()
    assert it.shown == {"pid": it.current.pid, "depth": "app", "ready": False}
    process = it.current
    process.is_ready = True
    it.perform()
    assert it.shown == {"pid": process.pid, "depth": "app", "ready": True}
    process.error = KILLED
    it.duty.on_exit(process.key)
    it.perform()
    assert it.shown is None


def test_a_retired_one_ends_with_its_last_child(scene: Callable[..., Scene]) -> None:
    it = scene("app")
    old = it.begin()
    old.children = 2
    operation = it.restart()
    it.answer()
    it.end(operation)
    for old.children in (1, 0):
        assert not old.is_killed and it.duty.due_at == (math.inf if old.children else -math.inf)
        it.perform()
    assert old.is_killed and [*preloads] == [it.current]
