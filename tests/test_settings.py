from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing import Pipe, get_context
from pathlib import Path
from typing import Any

import pytest
from sanic import Sanic
from support.running import python

from worker import settings
from worker.constants import RestartOrder
from worker.manager import WorkerManager

NAMES = [setting.name for setting in settings.SETTINGS]
GIVEN = [
    pytest.param(one.name, marks=[pytest.mark.native] if one.native else []) for one in settings.SETTINGS
]
PLAIN = settings.resolve({})
WHOLE = (("11", "12", "13", "14"), (11, 12, 13, 14))
SECONDS = (("1.5", "2", "0", "1e1"), (1.5, 2.0, 0.0, 10.0))
UP, DOWN = RestartOrder.STARTUP_FIRST, RestartOrder.SHUTDOWN_FIRST
# Four right texts, and their values.
RIGHT: dict[str, tuple[tuple[str, ...], tuple[Any, ...]]] = {
    **dict.fromkeys(("max_workers", "max_consecutive_failures", "max_surge", "max_unavailable"), WHOLE),
    **dict.fromkeys(("graceful_timeout", "backoff_max", "min_uptime", "idle_drain_timeout"), SECONDS),
    "backoff_initial": SECONDS,
    "state_max_bytes": (("10000001", "10000002", "10000003", "10000004"), (*range(10_000_001, 10_000_005),)),
    "restart_policy": (
        ("always", "on-failure", "never", "always"),
        ("always", "on-failure", "never", "always"),
    ),
    "canary": (("off", "on", "OFF", "on"), (False, True, False, True)),
    "reload_order": (("STARTUP_FIRST", "shutdown_first", "startup_first", "SHUTDOWN_FIRST"), (UP, DOWN) * 2),
    "reload_ignore": (("a", "*.css,/b/", "a\n!b,c\n", ""), (("a",), ("*.css", "/b/"), ("a", "!b,c"), ())),
    "unix_mode": (("600", "0660", "0o777", "000"), (0o600, 0o660, 0o777, 0)),
    **dict.fromkeys(
        ("inspector_open", "health_open"), (("true", "No", " on ", "0"), (True, False, True, False))
    ),
    "health_port": (("1", "8080", "65535", "9000"), (1, 8080, 65535, 9000)),
    "health_host": (("::1", "0.0.0.0", " localhost ", "h"), ("::1", "0.0.0.0", "localhost", "h")),
    "inspector_unix": (("/a", "/b/../c", "/d/", "/e"), ("/a", "/c", "/d", "/e")),
    "process_titles": (("off", "on", "no", "yes"), (False, True, False, True)),
}
WRONG: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(
        ("max_consecutive_failures", "max_surge", "max_unavailable"), (0, -1, 1.5, True, "", "x", "1.0", [])
    ),
    **dict.fromkeys(
        ("backoff_initial", "backoff_max", "min_uptime", "idle_drain_timeout"), (-1, "x", "inf", True, [])
    ),
    "restart_policy": ("", "Always", "on_failure", 1, True, []),
    "canary": ("half", 2, []),
    "reload_order": ("", "BOTH", 1, []),
    "reload_ignore": ("!", "a\\", "[z-a]", 1, True, [1], {"a": 1}.items()),
    **dict.fromkeys(("inspector_open", "health_open"), ("", "2", 2, 1.0, "maybe", [])),
    "health_port": (0, -1, 65536, 80.0, True, "", "http", []),
    "health_host": ("", " ", "a b", "a/b", 1, True, []),
    "inspector_unix": ("", "a\0b", b"/a", "/" + "a" * 63, 1, True, []),
    "process_titles": ("", "titles", 2, []),
    "unix_mode": ("", "888", "rw", "1777", -1, 0o1000, 6.0, True, []),
}


@pytest.fixture(autouse=True)
def _unset(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in NAMES:
        monkeypatch.delenv(f"SANIC_WORKER_{name.upper()}", raising=False)
    yield
    settings.forget()


@pytest.mark.parametrize("name", [one.name for one in settings.SETTINGS if one.native])
def test_settings_of_the_native_core_are_refused_without_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "IS_NATIVE", False)
    # The check applies only to values that were given.
    assert settings.resolve({}) == PLAIN
    monkeypatch.setenv(f"SANIC_WORKER_{name.upper()}", RIGHT[name][0][0])
    for source, act in (
        (f"SANIC_WORKER_{name.upper()}", lambda: settings.resolve({})),
        (f"--{name.replace('_', '-')}", lambda: settings.take_flags({name: RIGHT[name][0][0]})),
        ("worker.install()", lambda: settings.install({name: RIGHT[name][1][0]})),
    ):
        with pytest.raises(ValueError, match=rf"^{name} of {re.escape(source)} needs the native core, "):
            act()


def test_the_fields_of_settings_match_the_table() -> None:
    assert list(settings.Settings._fields) == NAMES


class TestDefaults:
    def test_a_library_that_must_not_be_imported_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert settings.resolve({}).process_titles
        monkeypatch.setitem(sys.modules, "setproctitle", None)
        assert not settings.resolve({}).process_titles
        assert not settings.resolve({"process_titles": False}).process_titles
        with pytest.raises(ValueError, match="needs the library setproctitle, which is not installed"):
            settings.resolve({"process_titles": True})

    @pytest.mark.parametrize(("cores", "expected"), [(1, 64), (8, 64), (9, 72), (100, 800), (None, 64)])
    def test_max_workers(self, cores: int | None, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "cpu_count", lambda: cores)
        assert settings.resolve({}).max_workers == expected

    def test_graceful_timeout_without_an_application(self) -> None:
        assert settings.resolve({}).graceful_timeout == 20.0

    def test_graceful_timeout_follows_the_longest_of_all_applications(self) -> None:
        for name, seconds in (("one", 3), ("two", 40.5), ("three", 1)):
            Sanic(name).config.GRACEFUL_SHUTDOWN_TIMEOUT = seconds
        assert settings.resolve({}).graceful_timeout == 45.5

    def test_graceful_timeout_of_an_application_without_a_timeout(self) -> None:
        del Sanic("one").config["GRACEFUL_SHUTDOWN_TIMEOUT"]
        assert settings.resolve({}).graceful_timeout == 20.0


class TestSources:
    @pytest.mark.parametrize("name", GIVEN)
    def test_later_sources_take_precedence(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """The constructor, install(), the environment, the flag."""

        def resolved() -> Any:
            return getattr(settings.resolve({name: texts[0]}), name)

        texts, values = RIGHT[name]
        setting = settings.SETTINGS[NAMES.index(name)]
        assert resolved() == values[0]
        settings.install({name: texts[1]})
        assert resolved() == values[1]
        monkeypatch.setenv(setting.variable, texts[2])
        assert resolved() == values[2]
        settings.take_flags({name: texts[3]})
        assert resolved() == values[3]

    def test_none_counts_as_not_given(self) -> None:
        assert settings.resolve({"max_workers": None}) == settings.resolve({})

    def test_one_source_does_not_hide_another_setting(self) -> None:
        settings.install({"max_workers": 7})
        resolved = settings.resolve({"graceful_timeout": 0})
        assert (resolved.max_workers, resolved.graceful_timeout, resolved.max_surge) == (7, 0.0, 1)

    def test_install_adds_to_earlier_calls(self) -> None:
        settings.install({"max_workers": 7})
        settings.install({"graceful_timeout": 2})
        settings.install({})
        assert settings.resolve({"max_workers": 3}) == PLAIN._replace(max_workers=7, graceful_timeout=2.0)
        settings.forget()
        assert settings.resolve({"max_workers": 3}) == PLAIN._replace(max_workers=3)

    @pytest.mark.parametrize("text", ["", " ", "\t\n"])
    @pytest.mark.parametrize("name", GIVEN)
    def test_an_empty_variable_counts_as_unset(
        self, name: str, text: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        texts, values = RIGHT[name]
        settings.install({name: texts[1]})
        monkeypatch.setenv(settings.SETTINGS[NAMES.index(name)].variable, text)
        monkeypatch.setenv("SANIC_WORKER_NO_SUCH_SETTING", text)
        assert getattr(settings.resolve({}), name) == values[1]
        settings.warn_of_unknown_names()
        assert caplog.messages == []

    def test_space_around_a_number_is_ignored(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SANIC_WORKER_MAX_WORKERS", " 12 ")
        assert settings.resolve({}).max_workers == 12

    def test_the_manager_resolves_its_arguments(self) -> None:
        ends = Pipe(True)
        context = get_context("spawn")
        try:
            # Without a server, it refuses before it touches the signals; the settings are resolved by then.
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

    @pytest.mark.native
    @pytest.mark.parametrize("value", [0, (8 << 20) - 1, 1e9, "1G", True, None.__class__])
    def test_state_max_bytes(self, value: Any) -> None:
        expected = (
            f"state_max_bytes of WorkerManager() cannot be {value!r}: "
            "it takes a whole number of bytes from 8388608 to 17179869184"
        )
        with pytest.raises(ValueError) as caught:
            settings.resolve({"state_max_bytes": value})
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

    @pytest.mark.parametrize(
        ("name", "value"), [(name, one) for name, values in WRONG.items() for one in values]
    )
    def test_other_settings(self, name: str, value: Any) -> None:
        allowed = settings.SETTINGS[NAMES.index(name)].allowed
        with pytest.raises(ValueError) as caught:
            settings.resolve({name: value})
        assert str(caught.value) == f"{name} of WorkerManager() cannot be {value!r}: it takes {allowed}"

    def test_backoff_initial_above_backoff_max(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SANIC_WORKER_BACKOFF_MAX", "2")
        with pytest.raises(ValueError) as caught:
            settings.resolve({"backoff_initial": 3})
        assert str(caught.value) == (
            "backoff_initial of WorkerManager(), 3, is more than backoff_max of SANIC_WORKER_BACKOFF_MAX, 2: "
            "it takes at most that"
        )
        # A long first delay given alone is allowed.
        monkeypatch.delenv("SANIC_WORKER_BACKOFF_MAX")
        assert settings.resolve({"backoff_initial": 300}).backoff_initial == 300

    @pytest.mark.parametrize("name", GIVEN)
    def test_the_message_names_the_environment(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        wrong = {"reload_ignore": "!", "health_host": "a b", "inspector_unix": "/many" * 20}.get(name, "many")
        monkeypatch.setenv(f"SANIC_WORKER_{name.upper()}", wrong)
        with pytest.raises(ValueError, match=f"^{name} of SANIC_WORKER_{name.upper()} cannot be '{wrong}': "):
            settings.resolve({})

    def test_an_invalid_value_is_refused_even_if_overridden(self) -> None:
        with pytest.raises(ValueError, match=r"^max_workers of worker.install\(\) cannot be 0: "):
            settings.install({"max_workers": 0})

    def test_a_refused_value_changes_nothing(self) -> None:
        settings.install({"max_workers": 7})
        for error, given in ((ValueError, {"max_workers": 0}), (TypeError, {"max_workers": 8, "nope": 1})):
            with pytest.raises(error):
                settings.install(given)
        assert settings.resolve({}).max_workers == 7

    def test_an_unknown_setting(self) -> None:
        with pytest.raises(TypeError) as caught:
            settings.install({"max_worker": 1})
        assert str(caught.value) == f"There is no setting 'max_worker'; there are: {', '.join(NAMES)}"


def test_unknown_variables_are_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(settings, "_warned", set())
    for name in ("NAME", "IDENTIFIER", "PROCESS", "MAX_WORKERS", "MAX_WORKER", "ZZZ"):
        monkeypatch.setenv(f"SANIC_WORKER_{name}", "1")
    settings.warn_of_unknown_names()
    settings.warn_of_unknown_names()
    one, other = caplog.messages
    what = "in the environment is not a setting of sanic-worker"
    assert one == f"SANIC_WORKER_MAX_WORKER {what}; did you mean SANIC_WORKER_MAX_WORKERS?"
    assert other == f"SANIC_WORKER_ZZZ {what}; there are: {', '.join(NAMES)}"


def test_the_generated_pages_are_current(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, root / "scripts" / "pages.py", tmp_path], check=True)
    written = {page.name: page.read_text() for page in tmp_path.iterdir()}
    assert written == {name: (root / "docs" / name).read_text() for name in ("settings.md", "lifecycle.md")}


def test_install_applies_to_every_manager_until_uninstall(tmp_path: Path) -> None:
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
