"""Replaces the modules of Sanic's manager, and names that are bound to their objects, until :data:`undo`."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from enum import Enum
from importlib import import_module
from importlib.machinery import ModuleSpec
from multiprocessing import parent_process
from types import ModuleType
from typing import Any, NamedTuple

__all__ = ["BOUND", "NAMES", "STARTUP", "apply", "find", "swap", "swap_attribute", "undo"]

# The modules of Sanic's manager, each with the names that users and Sanic take from it.
NAMES = {
    "constants": ("ProcessState", "RestartOrder"),
    "inspector": ("Inspector",),
    "loader": ("AppLoader", "CertLoader"),
    "manager": ("MonitorCycle", "WorkerManager"),
    "multiplexer": ("WorkerMultiplexer",),
    "process": ("Worker", "WorkerProcess", "get_now"),
    "reloader": ("Reloader",),
    "restarter": ("Restarter",),
    "serve": ("worker_serve",),
    "state": ("WorkerState",),
}
# Those of these modules that are imported on first use.
ON_USE = ("manager", "process", "reloader", "restarter")
STARTUP = "sanic.mixins.startup"
# The modules of Sanic that bind these names. Its command line counts only if it is loaded: scripts need none.
BOUND = {
    "sanic.app": ("CertLoader", "Inspector", "WorkerManager"),
    STARTUP: (
        "AppLoader",
        "Manager",
        "Reloader",
        "WorkerManager",
        "WorkerMultiplexer",
        "configure_socket",
        "remove_unix_socket",
        "worker_serve",
    ),
    "sanic.cli.app": ("AppLoader",),
}

# Functions that undo the installation, to be called in reverse order.
undo: list[Callable[[], None]] = []


class Replacement(NamedTuple):
    """A module of Sanic's manager, or an object in one, that ours of the same name replaces.

    Attributes:
        old: Sanic's own.
        stem: The name of the module in both packages.
        name: The name of the object in its module; empty for the module itself.
    """

    old: Any
    stem: str
    name: str

    def ours(self) -> Any:
        """Return ours, and import it first if needed."""
        module = import_module(f"worker.{self.stem}")
        return getattr(module, self.name) if self.name else module


Replacements = dict[int, Replacement]
"""By the identity of Sanic's object."""


def find() -> tuple[Replacements, list[Any]]:
    """Return all modules and objects to be replaced, and the objects whose class is to be replaced.

    Raises:
        RuntimeError: A class to be replaced has a subclass already, or an object that cannot be changed.
    """
    replaced = _replacements()
    _check_subclasses(replaced)
    return replaced, _instances(replaced)


def apply(replaced: Replacements, instances: list[Any]) -> None:
    """Replace modules and objects, wherever a loaded module binds them."""
    modules: list[Any] = list(sys.modules.values())
    for module in modules:
        if isinstance(module, ModuleType) and _may_bind(module):
            _rebind(module, replaced)
    for one in replaced.values():
        if not one.name:
            _replace_module(one)
    sys.meta_path.insert(0, Finder)
    undo.append(lambda: sys.meta_path.remove(Finder))
    for instance in instances:
        swap_attribute(instance, "__class__", replaced[id(type(instance))].ours())
    for app in import_module("sanic.app").Sanic._app_registry.values():
        for attribute in ("certloader_class", "inspector_class"):
            stock = replaced.get(id(getattr(app, attribute, None)))
            if stock is not None:
                swap_attribute(app, attribute, stock.ours())


def _replacements() -> Replacements:
    """Return all modules and objects to be replaced, by the identity of Sanic's."""
    replaced = {}
    for stem, names in NAMES.items():
        theirs = import_module(f"sanic.worker.{stem}")
        for old, name in [(theirs, ""), *((getattr(theirs, name), name) for name in names)]:
            replaced[id(old)] = Replacement(old, stem, name)
    return replaced


def _check_subclasses(replaced: Replacements) -> None:
    for old, *_ in replaced.values():
        derived: type | None = next(iter(old.__subclasses__()), None) if isinstance(old, type) else None
        if derived is not None:
            raise RuntimeError(
                f"{derived.__module__}.{derived.__qualname__} is derived from Sanic's own "
                f"{old.__qualname__} and cannot be changed any more. Call worker.install() before "
                f"the module {derived.__module__} is imported (or before the class is defined)."
            )


def _instances(replaced: Replacements) -> list[Any]:
    """Return the objects whose class is to be replaced: Sanic's command makes loaders before all imports.

    A child has none, because it installs this package first.
    """
    if parent_process() is not None:
        return []
    classes = {old for old, *_ in replaced.values() if isinstance(old, type) and not issubclass(old, Enum)}
    found = _objects_of(classes)
    if any(type(one).__name__ not in NAMES["loader"] for one in found):
        # The object may be garbage.
        gc.collect()
        found = _objects_of(classes)
    for one in found:
        name = type(one).__name__
        if name not in NAMES["loader"]:
            raise RuntimeError(
                f"An object of Sanic's own {name} exists already and cannot be changed any more. "
                "Call worker.install() before it is made."
            )
    return found


def _objects_of(classes: set[type]) -> list[Any]:
    return [one for one in gc.get_referrers(*classes) if type(one) in classes]


def _may_bind(module: ModuleType) -> bool:
    """Return whether a module may hold objects of Sanic's manager that are to be replaced."""
    package = module.__name__.partition(".")[0]
    return not (
        package == "worker"
        or package in sys.stdlib_module_names
        or module.__name__.startswith("sanic.worker")
    )


def _rebind(module: ModuleType, replaced: Replacements) -> None:
    namespace = vars(module)
    if replaced.keys().isdisjoint(map(id, namespace.values())):
        return
    for name, value in list(namespace.items()):
        one = replaced.get(id(value))
        if one is None:
            continue
        if one.stem in ON_USE and module.__name__ in BOUND:
            _replace_on_use(module, name, one.ours)
        else:
            swap(namespace, name, one.ours())


def _replace_module(one: Replacement) -> None:
    package, theirs = sys.modules["sanic.worker"], one.old.__name__
    if one.stem in ON_USE:
        # The finder imports it.
        _remove(sys.modules, theirs)
        _replace_on_use(package, one.stem, lambda: import_module(theirs))
    else:
        swap(sys.modules, theirs, one.ours())
        swap(vars(package), one.stem, one.ours())


class Finder:
    """Comes first in ``sys.meta_path``: imports ours under the name of a module of Sanic's manager.

    It is the loader as well. Both names are of one module.
    """

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Find a module of Sanic's manager."""
        package, _, stem = name.rpartition(".")
        loader: Any = Finder
        return ModuleSpec(name, loader) if package == "sanic.worker" and stem in ON_USE else None

    @staticmethod
    def create_module(spec: ModuleSpec) -> None:
        """Let the machinery of imports make a module, which :meth:`exec_module` replaces."""

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        """Import ours instead."""
        name = module.__name__
        sys.modules[name] = import_module(name.removeprefix("sanic."))


def _replace_on_use(module: ModuleType, name: str, make: Callable[[], Any]) -> None:
    """Remove a name from a module, and look it up whenever it is used.

    The object is not kept: it may be a test's, which replaces it for a while.
    """
    namespace = vars(module)
    earlier = namespace.get("__getattr__")

    def find(asked: str) -> Any:
        if asked == name:
            return make()
        if earlier is not None:
            return earlier(asked)
        raise AttributeError(f"module {module.__name__!r} has no attribute {asked!r}", name=asked, obj=module)

    _remove(namespace, name)
    if earlier is None:
        undo.append(lambda: namespace.pop("__getattr__"))
        namespace["__getattr__"] = find
    else:
        swap(namespace, "__getattr__", find)


def _remove(namespace: dict[str, Any], name: str) -> None:
    before = namespace.pop(name)
    undo.append(lambda: namespace.__setitem__(name, before))


def swap(namespace: dict[str, Any], name: str, ours: Any) -> None:
    """Bind a name of a module to our object."""
    before = namespace[name]
    namespace[name] = ours
    undo.append(lambda: namespace.__setitem__(name, before))


def swap_attribute(owner: Any, name: str, ours: Any) -> None:
    """Set an attribute of a class or an instance to our object."""
    # The raw attribute: in a class it may be a descriptor, in an instance a slot.
    before = vars(owner)[name] if isinstance(owner, type) else getattr(owner, name)
    setattr(owner, name, ours)
    undo.append(lambda: setattr(owner, name, before))
