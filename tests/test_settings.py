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
from worker._core import IS_NATIVE
from worker._system import cgroup
from worker.constants import RestartOrder
from worker.manager import WorkerManager
from worker.settings.values import workers as read_workers

NAMES = [setting.name for setting in settings.SETTINGS]
NATIVE = {one.name for one in settings.SETTINGS if one.native}
GIVEN = [pytest.param(name, marks=[pytest.mark.native] if name in NATIVE else []) for name in NAMES]
# Without the variable by which managers in the process of the tests have no preload process.
PLAIN = settings.resolve({})._replace(preload="framework")
CPUS = cgroup.available_cpus()
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
    "hang_timeout": (("2", "off", "7.5", "0"), (2.0, 0.0, 7.5, 0.0)),
    "slow_loop_warning": (("0.5", "OFF", "2", "0"), (0.5, 0.0, 2.0, 0.0)),
    "max_requests": WHOLE,
    "max_lifetime": (("1.5", "2", "0.5", "1e1"), (1.5, 2.0, 0.5, 10.0)),
    "max_rss": (("1024", "200M", "1.5G", "1 kB"), (1024, 200 << 20, 3 << 29, 1024)),
    "max_memory_percent": (("80", "12.5", "100", "70%"), (80.0, 12.5, 100.0, 70.0)),
    "recycle_jitter": (("0", "0.5", "1", "0.25"), (0.0, 0.5, 1.0, 0.25)),
    "workers": (("4", "auto", "2..8", " 2 .. AUTO "), ((4, 4), (CPUS, CPUS), (2, 8), (2, max(2, CPUS)))),
    "drain_delay": SECONDS,
    "pid_file": (("/a", "/b/../c", "/d", "/e"), ("/a", "/c", "/d", "/e")),
    **dict.fromkeys(("user", "group"), (("www", "33", " x ", "y"), ("www", "33", "x", "y"))),
    "preload": (("off", "framework", "app", "off"), ("off", "framework", "app", "off")),
    "umask": (("022", "0o77", "7", "000"), (0o22, 0o77, 7, 0)),
}
if not IS_NATIVE:
    # A range needs the native core.
    RIGHT["workers"] = (("4", "auto", "7", " AUTO "), ((4, 4), (CPUS, CPUS), (7, 7), (CPUS, CPUS)))
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
    "hang_timeout": (-1, 1.9, "x", "on", True, []),
    "slow_loop_warning": (-1, "x", "on", "inf", True, []),
    "max_requests": (0, -1, 1.5, True, "", "x", "1.0", []),
    "max_lifetime": (0, -1, "x", "inf", True, []),
    "max_rss": (0, -1, 1.5, "-1", "1X", "M", "", True, []),
    "max_memory_percent": (0, -1, 101, "x", "", True, []),
    "recycle_jitter": (-0.1, 1.1, "x", True, []),
    "workers": (0, -1, 1.5, True, "", "x", "8..2", "2..", "..2", "0..2", "2...4", []),
    "drain_delay": (-1, "x", "inf", True, []),
    "pid_file": ("/a/", "", " ", "a\0b", b"/a", 1, True, []),
    **dict.fromkeys(("user", "group"), ("a b", "a:b", "", " ", 1.5, True)),
    "preload": ("", "App", "on", 1, True, []),
    "umask": ("", "888", "rw", "1777", -1, 0o1000, 6.0, True, []),
    "unix_mode": ("", "888", "rw", "1777", -1, 0o1000, 6.0, True, []),
}


@pytest.fixture(autouse=True)
def _unset(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in NAMES:
        monkeypatch.delenv(f"SANIC_WORKER_{name.upper()}", raising=False)
    yield
    settings.forget()


@pytest.mark.parametrize(
    ("text", "cpus", "expected"),
    [
        ("auto", 5, (5, 5)),
        ("2..auto", 5, (2, 5)),
        ("2..auto", 1, (2, 2)),
        ("auto..8", 5, (5, 8)),
        ("auto..8", 16, (8, 8)),
        ("AUTO .. auto", 5, (5, 5)),
    ],
)
def test_auto_is_the_number_of_cpus_within_the_other_end(
    text: str, cpus: int, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroup, "available_cpus", lambda: cpus)
    assert read_workers(text) == expected


def test_the_number_of_servers_is_that_of_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "available_cpus", lambda: 7)
    assert (settings.number_of_servers(2), settings.number_of_servers(1, fast=True)) == (2, 7)
    settings.install({"workers": 3})
    assert (settings.number_of_servers(2), settings.number_of_servers(1, fast=True)) == (3, 3)


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
        ("name", "value"),
        [
            pytest.param(name, one, marks=[pytest.mark.native] if name in NATIVE else [])
            for name, values in WRONG.items()
            for one in values
        ],
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

    @pytest.mark.native
    def test_a_range_of_workers_above_max_workers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ValueError) as caught:
            settings.resolve({"workers": "2..9", "max_workers": 8})
        assert str(caught.value) == (
            "workers of WorkerManager() cannot be 2..9: max_workers is 8, which a range must not exceed. "
            "Set SANIC_WORKER_MAX_WORKERS to allow more."
        )
        assert settings.resolve({"workers": "2..8", "max_workers": 8}).workers == (2, 8)
        # A number of workers is no scaling.
        assert settings.resolve({"workers": 9, "max_workers": 8}).workers == (9, 9)

    def test_a_range_of_workers_without_the_native_core(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(settings, "IS_NATIVE", False)
        settings.take_flags({"workers": "2..8"})
        with pytest.raises(ValueError, match=r"^workers of --workers cannot be 2..8: a range needs the nat"):
            settings.resolve({})
        settings.forget()
        assert settings.resolve({"workers": 3}).workers == (3, 3)

    @pytest.mark.parametrize("name", GIVEN)
    def test_the_message_names_the_environment(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        wrong = {
            "reload_ignore": "!",
            "health_host": "a b",
            "inspector_unix": "/many" * 20,
            "pid_file": "/many/",
            "user": "a b",
            "group": "a b",
        }.get(name, "many")
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
