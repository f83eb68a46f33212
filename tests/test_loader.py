from __future__ import annotations

import os
import pickle
import ssl
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from sanic import Sanic

from worker.loader import AppLoader, CertLoader

Write = Callable[[str, str], None]

APP = "from sanic import Sanic\napp = Sanic('Loaded')\n"
FACTORY = "from sanic import Sanic\ndef create(args):\n    create.args = args\n    return Sanic('Made')\n"
PLAIN_FACTORY = "from sanic import Sanic\ndef create():\n    return Sanic('Made')\n"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write modules (``loaded_…``) into the working directory; forget them after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    yield write
    for name in [name for name in sys.modules if name.startswith("loaded_")]:
        del sys.modules[name]


def refused(loader: AppLoader) -> str:
    with pytest.raises(ValueError, match=r".") as refusal:
        loader.load()
    return str(refusal.value)


class TestTargets:
    @pytest.mark.parametrize("name", ["loaded_a:app", "loaded_a.app", "loaded_a"])
    def test_module(self, write: Write, name: str) -> None:
        write("loaded_a.py", APP)
        loader = AppLoader(name)
        app = loader.load()
        assert app.name == "Loaded"
        assert loader.load() is app
        assert (loader.module_name, loader.app_name) == ("loaded_a", "app")

    @pytest.mark.parametrize("name", ["loaded_p.inner:app", "loaded_p.inner.app", "loaded_p.inner"])
    @pytest.mark.parametrize("args", [None, Namespace(target="loaded_p.inner")])
    def test_module_of_a_package(self, write: Write, name: str, args: Namespace | None) -> None:
        write("loaded_p/__init__.py", "")
        write("loaded_p/inner.py", APP)
        assert AppLoader(name, args=args).load().name == "Loaded"

    @pytest.mark.parametrize("options", [{}, {"as_simple": True}])
    def test_directory_is_served(self, tmp_path: Path, options: dict[str, Any]) -> None:
        assert isinstance(AppLoader(str(tmp_path), **options).load(), Sanic)

    def test_directory_without_a_slash_is_taken_for_a_module(self, write: Write) -> None:
        write("loaded_d/__init__.py", APP)
        assert AppLoader("loaded_d").load().name == "Loaded"
        assert isinstance(AppLoader("loaded_d", as_simple=True).load(), Sanic)

    def test_the_initial_directory_is_last_on_the_path(self, write: Write, tmp_path: Path) -> None:
        loader = AppLoader(factory=lambda: Sanic("Made"))
        os.chdir("/")
        loader.load()
        loader.load()
        assert sys.path.count(str(tmp_path)) == 1
        assert sys.path[-1] == str(tmp_path)

    def test_a_loader_can_be_pickled(self, write: Write) -> None:
        write("loaded_a.py", APP)
        assert pickle.loads(pickle.dumps(AppLoader("loaded_a:app"))).load().name == "Loaded"


class TestFactory:
    def test_a_given_factory_is_called(self) -> None:
        app = Sanic("Made")
        assert AppLoader("nonsense", args=1, factory=lambda: app).load() is app

    @pytest.mark.parametrize("name", ["loaded_f:create", "loaded_f:create()", "loaded_f.create"])
    @pytest.mark.parametrize("as_factory", [False, True])
    def test_a_factory_in_a_module_is_called(self, write: Write, name: str, as_factory: bool) -> None:
        write("loaded_f.py", FACTORY)
        args = Namespace(target="x")
        assert AppLoader(name, as_factory, args=args).load().name == "Made"
        assert sys.modules["loaded_f"].create.args is args

    def test_a_factory_without_parameters_is_called(self, write: Write) -> None:
        write("loaded_f.py", PLAIN_FACTORY)
        assert AppLoader("loaded_f:create", args=Namespace(target="x")).load().name == "Made"

    def test_a_partial_is_called(self, write: Write) -> None:
        write(
            "loaded_f.py",
            "from functools import partial\n" + FACTORY + "made = partial(create)\n",
        )
        assert AppLoader("loaded_f:made()", args=5).load().name == "Made"

    @pytest.mark.parametrize("parameter", ["", "args"])
    def test_a_type_error_of_the_factory_is_raised_after_one_call(self, write: Write, parameter: str) -> None:
        write(
            "loaded_f.py",
            f"calls = []\ndef create({parameter}):\n    calls.append(1)\n    raise TypeError('mine')\n",
        )
        with pytest.raises(TypeError, match=r"^mine$"):
            AppLoader("loaded_f:create").load()
        assert sys.modules["loaded_f"].calls == [1]

    def test_a_factory_without_a_signature_is_called(self, write: Write) -> None:
        write(
            "loaded_f.py",
            PLAIN_FACTORY + "class Odd:\n"
            "    __signature__ = 'none'\n"
            "    def __call__(self):\n"
            "        return create()\n"
            "odd = Odd()\n",
        )
        assert AppLoader("loaded_f:odd", as_factory=True, args=5).load().name == "Made"


class TestRefusals:
    def test_a_module_without_an_application(self, write: Write) -> None:
        write("loaded_n.py", "")
        loader = AppLoader("loaded_n")
        expected = (
            "Looks like you only supplied a module name. Sanic tried to locate an application instance "
            "named loaded_n:app, but was unable to locate an application instance. Please provide a path to "
            "a global instance of Sanic(), or a callable that will return a Sanic() application instance."
        )
        assert refused(loader) == expected
        assert refused(loader) == expected

    @pytest.mark.parametrize(
        ("text", "kind"),
        [("thing = 5", "int"), ("thing = {}", "dict"), ("", "NoneType"), ("def thing(): return 5", "int")],
    )
    def test_a_target_that_is_no_application(self, write: Write, text: str, kind: str) -> None:
        write("loaded_n.py", text)
        message = f"Module is not a Sanic app, it is a {kind}"
        assert refused(AppLoader("loaded_n:thing")) == message
        args = Namespace(target="loaded_n.thing")
        expected = f"{message}\n  Perhaps you meant loaded_n.thing:app?"
        assert refused(AppLoader("loaded_n:thing", args=args)) == expected

    @pytest.mark.parametrize(("text", "kind"), [("thing = 5", "int"), ("", "NoneType")])
    @pytest.mark.parametrize("name", ["loaded_n:thing()", "loaded_n.thing()"])
    def test_a_factory_that_is_not_callable(self, write: Write, name: str, text: str, kind: str) -> None:
        write("loaded_n.py", text)
        assert refused(AppLoader(name)) == f"Expected a callable, but got {kind}."

    def test_a_missing_module(self, write: Write) -> None:
        loader = AppLoader("loaded_nowhere:app")
        with pytest.raises(ModuleNotFoundError) as refusal:
            loader.load()
        assert loader.module_name.startswith(str(refusal.value.name))

    def test_a_missing_import_of_a_module_is_raised(self, write: Write) -> None:
        write("loaded_p/__init__.py", "")
        write("loaded_p/inner.py", "import loaded_missing\n")
        with pytest.raises(ModuleNotFoundError, match="loaded_missing"):
            AppLoader("loaded_p.inner", args=Namespace(target="x")).load()


class Creator:
    """A certificate creator that records its arguments."""

    def __init__(self, *args: Any) -> None:
        self.args = args

    def generate_cert(self, localhost: str) -> Any:
        return (*self.args, localhost)


class TestCertLoader:
    def test_none_gives_no_context(self) -> None:
        assert CertLoader(None).load(Sanic("Test")) is None

    def test_a_context_is_kept(self) -> None:
        context = ssl.create_default_context()
        assert CertLoader(context).load(Sanic("Test")) is context

    def test_paths_give_a_context(self, tmp_path: Path) -> None:
        certificate = trustme.CA().issue_cert("localhost")
        key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
        certificate.private_key_pem.write_to_path(str(key))
        certificate.cert_chain_pems[0].write_to_path(str(cert))
        assert isinstance(CertLoader({"key": key, "cert": cert}).load(Sanic("Test")), ssl.SSLContext)

    @pytest.mark.parametrize("name", ["mkcert", "trustme"])
    def test_creators_are_called(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        assert set(CertLoader._creators) == {"mkcert", "trustme"}
        monkeypatch.setattr(CertLoader, "_creators", {name: Creator})
        app = Sanic("Test")
        data: Any = {"creator": name, "key": "k", "cert": "c", "localhost": "host"}
        loader: Any = CertLoader(data)
        assert loader.load(app) == (app, "k", "c", "host")

    def test_an_unknown_creator_is_refused(self) -> None:
        with pytest.raises(RuntimeError, match=r"^Unknown certificate creator: nobody$"):
            CertLoader({"creator": "nobody"})
