"""The command's messages about a target that is no application, and about other wrong arguments."""

from __future__ import annotations

import itertools
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from worker.cli.target import describe, is_missing, names_file, wrong_argument
from worker.loader import AppLoader, TargetError

SOURCE = """
from sanic import Sanic

app = Sanic("{0}-app")
other = Sanic("{0}-other")
VALUE = 3

def create_app(args):
    return Sanic("{0}-made")

def build() -> Sanic:
    return Sanic("{0}-built")

def _private_app():
    return None

def an_app_of(one, two):
    return None

def nothing():
    return None

class Kind:
    pass
"""
HAS = (
    "It has the application app, the application other, the function create_app, the function build: "
    "use {0}:app"
)
FORM = "Give a module and the application in it, as in package.module:app"
_numbers = itertools.count()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a module in the working directory, new to each test."""
    name = f"target_{next(_numbers)}"
    (tmp_path / f"{name}.py").write_text(SOURCE.format(name))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def described(target: str, factory: bool = False) -> str:
    loader = AppLoader(target, factory, args=Namespace(target=target))
    with pytest.raises((ImportError, TargetError)) as raised:
        loader.load()
    assert isinstance(raised.value, TargetError) or is_missing(loader, raised.value) or names_file(loader)
    text = describe(loader, raised.value)
    assert "\n" not in text
    return text


class TestTargets:
    @pytest.mark.parametrize(
        ("target", "problem"),
        [
            ("{0}:wrong", "{0} has no wrong"),
            ("{0}.wrong", "{0} has no wrong"),
            ("{0}:app.thing", "{0} has no app.thing"),
            ("{0}:wrong()", "{0} has no wrong"),
            ("{0}:", "{0}: names no application"),
            ("{0}:VALUE", "{0}:VALUE is no Sanic application, but of type int"),
            ("{0}:Kind", "{0}:Kind is no Sanic application, but of type type"),
            (
                "{0}:nothing",
                "{0}:nothing makes no Sanic application (Module is not a Sanic app, it is a NoneType)",
            ),
            (
                "{0}:an_app_of",
                "{0}:an_app_of makes no Sanic application (It takes (one, two), but gets at most one)",
            ),
        ],
    )
    def test_a_target_that_is_no_application(self, module: str, target: str, problem: str) -> None:
        assert described(target.format(module)) == f"{problem}. {HAS}".format(module)

    def test_an_application_as_a_factory(self, module: str) -> None:
        assert described(f"{module}:app", factory=True).startswith(f"{module}:app makes no Sanic application")

    @pytest.mark.parametrize(("source", "name"), [("", "app"), ("from sanic import Sanic", "wrong")])
    def test_a_module_without_an_application(
        self, module: str, source: str, name: str, tmp_path: Path
    ) -> None:
        (tmp_path / f"{module}_b.py").write_text(source)
        assert described(f"{module}_b:{name}") == (
            f"{module}_b has no {name}. {module}_b has no Sanic application, and no function that makes one"
        )

    @pytest.mark.parametrize("target", ["./{0}.py", "{0}.py", "{0}.py:app", "./{0}.py:app", "{1}/{0}.py"])
    def test_a_file(self, module: str, target: str, tmp_path: Path) -> None:
        text = described(given := target.format(module, tmp_path))
        assert text == f"{given} is a file. Give the module: {module}:app"

    def test_a_file_in_a_subdirectory(self, module: str, tmp_path: Path) -> None:
        (tmp_path / "sub" / "package").mkdir(parents=True)
        for name in ("mine.py", "package/__init__.py"):
            (tmp_path / "sub" / name).touch()
        assert described("sub/mine.py:other").endswith(" is a file. Give the module: sub.mine:other")
        assert described("./sub/mine").endswith(" is a path. Give the module: sub.mine:app")
        assert described("sub/package/__init__.py").endswith("Give the module: sub.package:app")

    def test_a_file_outside_the_working_directory(
        self, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "in").mkdir()
        monkeypatch.chdir(tmp_path / "in")
        assert described(f"../{module}.py") == (
            f"../{module}.py is a file. Give the module, in its directory {tmp_path}: {module}:app"
        )

    def test_a_directory(self, module: str, tmp_path: Path) -> None:
        (tmp_path / f"{module}_files").mkdir()
        text = described(f"{module}_files")
        assert f"To serve the files in it, write {tmp_path}/{module}_files/." in text

    @pytest.mark.parametrize("target", ["./nowhere", "no/where:app", "/nowhere.py"])
    def test_a_path_that_does_not_exist(self, module: str, target: str) -> None:
        assert described(target) == f"{target} is neither a directory nor a Python file. {FORM}"

    @pytest.mark.parametrize("target", ["", ":app", ".{0}:app", "..:app"])
    def test_a_target_without_a_module(self, module: str, target: str) -> None:
        given = target.format(module)
        assert described(given) == f"{given!r} names no module. {FORM}"

    @pytest.mark.parametrize("target", ["nowhere_{0}", "nowhere_{0}:app", "nowhere_{0}.sub:app"])
    def test_a_module_that_is_missing(self, module: str, target: str, tmp_path: Path) -> None:
        assert described(target.format(module)) == (
            f"No module named nowhere_{module} found, in {tmp_path} or elsewhere on sys.path"
        )

    def test_a_missing_import_of_the_application_is_not_explained(self, module: str, tmp_path: Path) -> None:
        (tmp_path / f"{module}_c.py").write_text("import nowhere_to_be_found")
        loader = AppLoader(f"{module}_c:app")
        with pytest.raises(ModuleNotFoundError) as raised:
            loader.load()
        assert not is_missing(loader, raised.value)
        assert not is_missing(loader, ImportError("without a name"))
        sys.modules.pop(f"{module}_c", None)


class TestArguments:
    @pytest.mark.parametrize(
        ("given", "text"),
        [
            ({"port": 80000}, "--port cannot be 80000: it takes a whole number from 0 to 65535"),
            ({"port": -1}, "--port cannot be -1: it takes a whole number from 0 to 65535"),
            (
                {"single": True, "auto_reload": True, "dev": True},
                "--single-process cannot be combined with --reload and --dev: nothing would reload it",
            ),
            ({"simple": True, "target": "ok:app"}, "--simple serves a directory, and 'ok:app' is none"),
            ({"cert": "nowhere"}, "--cert cannot be 'nowhere': there is no such file or directory"),
            ({"key": "nowhere"}, "--key cannot be 'nowhere': there is no such file or directory"),
            ({"tls": [".", "nowhere"]}, "--tls cannot be 'nowhere': there is no such file or directory"),
            ({}, ""),
            ({"workers": 1, "port": 0, "auto_reload": True, "tls": ["."]}, ""),
            ({"single": True, "workers": 1, "port": 65535, "auto_reload": False, "dev": False}, ""),
            ({"simple": True, "target": "."}, ""),
        ],
    )
    def test_an_invalid_argument_is_explained(self, given: dict[str, object], text: str) -> None:
        plain = {"target": "hello:app", "workers": 1, "port": None, "cert": None, "key": None, "tls": None}
        assert wrong_argument(Namespace(**{**plain, **given})) == text
