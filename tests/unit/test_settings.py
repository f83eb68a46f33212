from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from multiprocessing import Pipe, get_context
from pathlib import Path
from typing import Any

import pytest
from sanic import Sanic

from worker import settings
from worker.manager import WorkerManager
from worker.settings import CEILING, Settings

from .running import python

NAMES = [setting.name for setting in settings.SETTINGS]


@pytest.fixture(autouse=True)
def _unset(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in NAMES:
        monkeypatch.delenv(f"SANIC_WORKER_{name.upper()}", raising=False)
    yield
    settings.forget()


def test_the_fields_of_the_settings_are_the_table() -> None:
    assert list(settings.Settings.__dataclass_fields__) == NAMES


class TestDefaults:
    @pytest.mark.parametrize(("cores", "expected"), [(1, 64), (8, 64), (9, 72), (100, 800), (None, 64)])
    def test_max_workers(self, cores: int | None, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "cpu_count", lambda: cores)
        assert settings.resolve({}).max_workers == expected

    def test_graceful_timeout_without_an_application(self) -> None:
        assert settings.resolve({}).graceful_timeout == 20.0

    def test_graceful_timeout_is_that_of_the_most_patient_application(self) -> None:
        for name, seconds in (("one", 3), ("two", 40.5), ("three", 1)):
            Sanic(name).config.GRACEFUL_SHUTDOWN_TIMEOUT = seconds
        assert settings.resolve({}).graceful_timeout == 45.5

    def test_graceful_timeout_of_an_application_that_has_none(self) -> None:
        del Sanic("one").config["GRACEFUL_SHUTDOWN_TIMEOUT"]
        assert settings.resolve({}).graceful_timeout == 20.0


class TestSources:
    @pytest.mark.parametrize("name", NAMES)
    def test_the_later_one_wins(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def resolved() -> Any:
            return getattr(settings.resolve({name: 10_000_003}), name)

        assert resolved() == 10_000_003
        settings.install({name: 10_000_004})
        assert resolved() == 10_000_004
        monkeypatch.setenv(f"SANIC_WORKER_{name.upper()}", "10000005")
        assert resolved() == 10_000_005

    def test_what_is_not_given_is_none(self) -> None:
        assert settings.resolve({"max_workers": None}) == settings.resolve({})

    def test_one_source_does_not_hide_another_setting(self) -> None:
        settings.install({"max_workers": 7})
        assert settings.resolve({"graceful_timeout": 0}) == Settings(7, 0.0, CEILING)

    def test_install_adds_to_what_was_installed(self) -> None:
        settings.install({"max_workers": 7})
        settings.install({"graceful_timeout": 2})
        settings.install({})
        assert settings.resolve({"max_workers": 3}) == Settings(7, 2.0, CEILING)
        settings.forget()
        assert settings.resolve({"max_workers": 3, "graceful_timeout": 1}) == Settings(3, 1.0, CEILING)

    def test_text_becomes_a_value(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SANIC_WORKER_MAX_WORKERS", " 12 ")
        monkeypatch.setenv("SANIC_WORKER_GRACEFUL_TIMEOUT", "1.5")
        monkeypatch.setenv("SANIC_WORKER_STATE_CEILING", "16777216")
        assert settings.resolve({}) == Settings(12, 1.5, 1 << 24)

    def test_the_constructor_of_the_manager(self) -> None:
        ends = Pipe(True)
        context = get_context("spawn")
        try:
            # Without a server, it refuses before it touches the signals; the settings stand by then.
            for bad, match in (({"max_workers": 0}, "max_workers"), ({"graceful_timeout": "x"}, "graceful")):
                with pytest.raises(ValueError, match=match):
                    WorkerManager(0, print, {}, context, ends, {}, **bad)
        finally:
            for end in ends:
                end.close()


class TestRefused:
    @pytest.mark.parametrize(
        "value", [0, -1, 1.5, 2.0, True, False, "", "x", "1.0", "0", "-3", "1e3", [], b""]
    )
    def test_max_workers(self, value: Any) -> None:
        expected = f"max_workers of WorkerManager() cannot be {value!r}: it takes a whole number from 1 on"
        with pytest.raises(ValueError) as caught:
            settings.resolve({"max_workers": value})
        assert str(caught.value) == expected

    @pytest.mark.parametrize("value", [0, (8 << 20) - 1, 1e9, "1G", True, None.__class__])
    def test_state_ceiling(self, value: Any) -> None:
        expected = (
            f"state_ceiling of WorkerManager() cannot be {value!r}: "
            "it takes a whole number of bytes from 8388608 to 17179869184"
        )
        with pytest.raises(ValueError) as caught:
            settings.resolve({"state_ceiling": value})
        assert str(caught.value) == expected

    @pytest.mark.parametrize(
        "value", [-0.1, "-1", True, False, "", "x", "nan", "inf", "-inf", float("nan"), [], {}]
    )
    def test_graceful_timeout(self, value: Any) -> None:
        expected = (
            f"graceful_timeout of WorkerManager() cannot be {value!r}: it takes a number of seconds from 0 on"
        )
        with pytest.raises(ValueError) as caught:
            settings.resolve({"graceful_timeout": value})
        assert str(caught.value) == expected

    @pytest.mark.parametrize("name", NAMES)
    def test_the_message_names_the_environment(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(f"SANIC_WORKER_{name.upper()}", "many")
        with pytest.raises(ValueError, match=f"^{name} of SANIC_WORKER_{name.upper()} cannot be 'many': "):
            settings.resolve({})

    def test_a_wrong_one_is_refused_even_where_a_later_one_would_win(self) -> None:
        with pytest.raises(ValueError, match=r"^max_workers of worker.install\(\) cannot be 0: "):
            settings.install({"max_workers": 0})

    def test_what_is_refused_changes_nothing(self) -> None:
        settings.install({"max_workers": 7})
        for error, given in ((ValueError, {"max_workers": 0}), (TypeError, {"max_workers": 8, "nope": 1})):
            with pytest.raises(error):
                settings.install(given)
        assert settings.resolve({}).max_workers == 7

    def test_no_such_setting(self) -> None:
        with pytest.raises(TypeError) as caught:
            settings.install({"max_worker": 1})
        assert str(caught.value) == f"There is no setting 'max_worker'; there are: {', '.join(NAMES)}"


def test_install_gives_them_to_every_manager_and_uninstall_takes_them_back(tmp_path: Path) -> None:
    ended: subprocess.CompletedProcess[str] = python(
        """
        import worker
        from worker import settings

        worker.install(max_workers=3)
        print(settings.resolve({}).max_workers)
        worker.install()
        print(settings.resolve({}).max_workers == 3)
        worker.install(max_workers=4)
        print(settings.resolve({}).max_workers)
        worker.uninstall()
        print(settings.resolve({}).max_workers == 4)
        """,
        cwd=tmp_path,
    )
    assert (ended.stdout.split(), ended.stderr) == (["3", "True", "4", "False"], "")
