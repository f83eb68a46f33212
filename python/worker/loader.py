"""Loads the application and the certificate of a process."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from inspect import isfunction, signature
from pathlib import Path
from ssl import SSLContext
from traceback import walk_tb
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

from sanic import Sanic
from sanic.http.tls.context import process_to_context
from sanic.http.tls.creators import MkcertCreator, TrustmeCreator
from sanic.simple import create_simple_server

if TYPE_CHECKING:
    from sanic.http.tls.creators import CertCreator

__all__ = ["AppLoader", "CertLoader"]

DEFAULT_APP_NAME = "app"
# The modules whose frames stand above those of an application that is being loaded.
LOADING = ("worker.", "importlib")


class TargetError(ValueError):
    """The target of an :class:`AppLoader` is no application, and does not make one."""


class AppLoader:
    """Describes the application, and loads it in any process.

    It is pickled for the workers, so ``factory`` must be importable unless processes are forked.

    Args:
        module_input (str): The target: ``module:name`` or ``module.name`` of a :class:`~sanic.Sanic` or of a
            function that returns one, ``module:name()``, ``module`` alone (then the name is ``app``), or the
            path of a directory to serve. Defaults to ``""``.
        as_factory (bool): Call the target, even if it is no plain function. Defaults to ``False``.
        as_simple (bool): ``module_input`` is a directory to serve. Defaults to ``False``.
        args (Any): The argument for a function in the module, if it takes one. The command passes its parsed
            arguments here. Defaults to ``None``.
        factory (Callable[[], Sanic] | None): Returns the application, without arguments. It overrides all
            other arguments. Defaults to ``None``.
    """

    def __init__(
        self,
        module_input: str = "",
        as_factory: bool = False,
        as_simple: bool = False,
        args: Any = None,
        factory: Callable[[], Sanic[Any, Any]] | None = None,
    ) -> None:
        self.module_input = module_input
        self.module_name = ""
        self.app_name = ""
        self.as_factory = as_factory
        self.as_simple = as_simple
        self.args = args
        self.factory = factory
        self.cwd = os.getcwd()

        delimiter = ":" if ":" in module_input else "."
        if delimiter in module_input and not self._looks_like_path:
            self.module_name, self.app_name = module_input.rsplit(delimiter, 1)
            if self.app_name.endswith("()"):
                self.as_factory = True
                self.app_name = self.app_name[:-2]

    def load(self) -> Sanic[Any, Any]:
        """Return the application, importing its module with the start directory on ``sys.path``.

        Raises:
            TargetError: The target is no application, and does not make one. It is a ``ValueError``.
            ImportError: The module, or a module that it imports, cannot be imported.
        """
        self.find_modules()
        if self.factory:
            return self.factory()
        directory = Path(self.module_input)
        if self.as_simple or (self._looks_like_path and directory.is_dir()):
            return cast(Sanic[Any, Any], create_simple_server(directory))
        return self._load_from_module()

    def preload(self) -> None:
        """Import the module of the application, and make no application.

        Raises:
            ImportError: The module, or a module that it imports, cannot be imported.
        """
        self.find_modules()
        if not self.factory and not self._looks_like_path:
            import_module(self.module_name or self.module_input)

    def find_modules(self) -> None:
        """Let modules be found in the start directory, too."""
        module_path = os.path.abspath(self.cwd)
        if module_path not in sys.path:
            sys.path.append(module_path)

    @property
    def _looks_like_path(self) -> bool:
        return "/" in self.module_input or "\\" in self.module_input

    def _load_from_module(self) -> Sanic[Any, Any]:
        if not self.module_name and not self.app_name:
            self.module_name, self.app_name = self.module_input, DEFAULT_APP_NAME
        if self._looks_like_path or self.module_name[:1] in ("", "."):
            raise TargetError(f"{self.module_input!r} is neither a directory nor the name of a module")
        found = getattr(import_module(self.module_name), self.app_name, None)
        if not found and self.module_name == self.module_input:
            raise TargetError(
                "Looks like you only supplied a module name. Sanic tried to locate an application instance "
                f"named {self.module_name}:app, but was unable to locate an application instance. Please "
                "provide a path to a global instance of Sanic(), or a callable that will return a Sanic() "
                "application instance."
            )
        if self.as_factory or isfunction(found):
            if not callable(found):
                raise TargetError(f"Expected a callable, but got {type(found).__name__}.")
            found = _call_factory(found, self.args)
        if isinstance(found, Sanic):
            return found

        # In "package.module", the part after the dot may be a module, and not the name of an application.
        app = getattr(_import_if_there(self.module_input), DEFAULT_APP_NAME, None)
        if isinstance(app, Sanic):
            return app
        message = f"Module is not a Sanic app, it is a {type(found).__name__}"
        if hasattr(self.args, "target"):
            message += f"\n  Perhaps you meant {self.args.target}:app?"
        raise TargetError(message)


def _call_factory(factory: Callable[..., Any], args: Any) -> Any:
    try:
        signature(factory)
    except (TypeError, ValueError):
        # It has no signature, so only a call tells which arguments it takes.
        try:
            return factory(args)
        except TypeError:
            return factory()
    if takes(factory, args):
        return factory(args)
    if takes(factory):
        return factory()
    raise TargetError(f"It takes {signature(factory)}, but gets at most one")


def takes(function: Callable[..., Any], *args: Any) -> bool:
    """Return whether the signature of a function allows a call with these arguments."""
    try:
        signature(function).bind(*args)
    except TypeError:
        return False
    return True


def _import_if_there(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        # The missing module may be one that this module imports. The user has to see that error.
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            return None
        raise


def without_our_frames(error: BaseException) -> BaseException:
    """Return the error without the frames of this package and the import system above the application."""
    frames = [*walk_tb(error.__traceback__)]
    theirs = [not frame.f_globals.get("__name__", "").startswith(LOADING) for frame, _ in frames]
    traceback = None
    # Frames of ours below those of the application are part of its error.
    for number, (frame, line) in reversed([*enumerate(frames)]):
        if not any(theirs[: number + 1]) or (not theirs[number] and any(theirs[number:])):
            continue
        traceback = TracebackType(traceback, frame, frame.f_lasti, line)
    return error.with_traceback(traceback)


class CertLoader:
    """Makes a worker's TLS context.

    Args:
        ssl_data (SSLContext | dict | None): A context, ready to use; or the paths of ``key`` and ``cert``
            (or any other value that ``app.run(ssl=…)`` accepts); or, for a certificate to be created, a
            ``dict`` of ``creator`` (``"mkcert"`` or ``"trustme"``), ``key``, ``cert`` and ``localhost``
            (the host name).

    Raises:
        RuntimeError: There is no such creator.
    """

    _creators: Mapping[str, type[CertCreator]] = {
        "mkcert": MkcertCreator,
        "trustme": TrustmeCreator,
    }

    def __init__(self, ssl_data: SSLContext | dict[str, str | os.PathLike[str]] | None) -> None:
        self._ssl_data = ssl_data
        self._creator_class: type[CertCreator] | None = None
        if not isinstance(ssl_data, dict):
            return
        creator_name = cast(str, ssl_data.get("creator"))
        if not creator_name:
            return

        self._creator_class = self._creators.get(creator_name)
        if not self._creator_class:
            raise RuntimeError(f"Unknown certificate creator: {creator_name}")
        self._key = cast(Path, ssl_data["key"])
        self._cert = cast(Path, ssl_data["cert"])
        self._localhost = cast(str, ssl_data["localhost"])

    def load(self, app: Sanic[Any, Any]) -> SSLContext | None:
        """Return the context for ``app``; ``None`` if it serves without TLS."""
        if not self._creator_class:
            return process_to_context(self._ssl_data)
        return self._creator_class(app, self._key, self._cert).generate_cert(self._localhost)
