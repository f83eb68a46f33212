"""Explains wrong arguments of the command, above all a wrong name of the application."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from inspect import isfunction
from pathlib import Path
from types import ModuleType
from typing import Any

from sanic import Sanic

from worker.loader import AppLoader, takes

__all__ = ["describe", "is_missing", "names_file", "wrong_argument"]

# The largest number of names in a message.
MAX_NAMES = 10


def wrong_argument(args: Any) -> str:
    """Return the fault in the parsed arguments of Sanic's command; empty text if they are valid."""
    port = getattr(args, "port", None)
    if port is not None and not 0 <= port <= 65535:
        return f"--port cannot be {port}: it takes a whole number from 0 to 65535"
    reload_flags = {"auto_reload": "--reload", "path": "--reload-dir", "dev": "--dev"}
    given = [flag for name, flag in reload_flags.items() if getattr(args, name, False)]
    if getattr(args, "single", False) and given:
        return f"--single-process cannot be combined with {' and '.join(given)}: nothing would reload it"
    if getattr(args, "simple", False) and not Path(args.target).is_dir():
        return f"--simple serves a directory, and {args.target!r} is none"
    files = {"--cert": args.cert, "--key": args.key}
    paths = [*files.items(), *(("--tls", path) for path in args.tls or ())]
    for flag, path in paths:
        if path and not Path(path).exists():
            return f"{flag} cannot be {path!r}: there is no such file or directory"
    return ""


def is_missing(loader: AppLoader, error: Exception) -> bool:
    """Return whether the error is that the module named in the command cannot be found."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return False
    return f"{loader.module_name}.".startswith(f"{error.name}.")


def names_file(loader: AppLoader) -> bool:
    """Return whether the command names a file instead of a module."""
    return bool(_named_file(loader.module_input))


def describe(loader: AppLoader, error: Exception) -> str:
    """Return why the command names no application, and possible names, in one line."""
    target = loader.module_input
    if named := _named_file(target):
        return named
    if target and Path(target).is_dir() and not Path(target, "__init__.py").exists():
        return f"{target} is a directory. To serve the files in it, write {Path(target).resolve()}/. {_FORM}"
    module = sys.modules.get(loader.module_name)
    if isinstance(error, ImportError):
        return f"No module named {error.name} found, in {os.getcwd()} or elsewhere on sys.path"
    if "/" in target or "\\" in target:
        return f"{target} is neither a directory nor a Python file. {_FORM}"
    if module is None:
        return f"{target!r} names no module. {_FORM}"
    name = loader.app_name
    found = getattr(module, name, None) if name else None
    if found is None:
        problem = f"{module.__name__} has no {name}" if name else f"{target} names no application"
    elif loader.as_factory or isfunction(found):
        problem = f"{target} makes no Sanic application ({str(error).splitlines()[0]})"
    else:
        problem = f"{target} is no Sanic application, but of type {type(found).__name__}"
    return f"{problem}. {_choices(module)}"


_FORM = "Give a module and the application in it, as in package.module:app"


def _named_file(target: str) -> str:
    """Return the correct form if a command names the file of a module; else empty text."""
    path, _, name = target.partition(":")
    file = Path(path if path.endswith(".py") else f"{path}.py")
    if not file.is_file() or not (path.endswith(".py") or "/" in path):
        return ""
    module = file.parent if file.name == "__init__.py" else file.with_suffix("")
    parts = Path(os.path.relpath(module)).parts
    kind = "file" if path.endswith(".py") else "path"
    if all(part.isidentifier() for part in parts):
        return f"{target} is a {kind}. Give the module: {'.'.join(parts)}:{name or 'app'}"
    folder = module.parent.resolve()
    return f"{target} is a {kind}. Give the module, in its directory {folder}: {module.name}:{name or 'app'}"


def _choices(module: ModuleType) -> str:
    applications = [name for name, value in vars(module).items() if isinstance(value, Sanic)]
    factories = [*_factories(module)]
    if not applications + factories:
        return f"{module.__name__} has no Sanic application, and no function that makes one"
    listed = [f"the application {name}" for name in applications[:MAX_NAMES]]
    listed += [f"the function {name}" for name in factories[:MAX_NAMES]]
    return f"It has {', '.join(listed)}: use {module.__name__}:{(applications + factories)[0]}"


def _factories(module: ModuleType) -> Iterator[str]:
    """Yield the names of the functions in a module that seem to make an application."""
    for name, value in vars(module).items():
        if not isfunction(value) or value.__module__ != module.__name__ or name.startswith("_"):
            continue
        made = str(value.__annotations__.get("return", ""))
        if ("Sanic" in made or "app" in name.lower()) and (takes(value) or takes(value, None)):
            yield name
