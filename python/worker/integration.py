"""Installs this package under a Sanic application, in place of Sanic's own worker manager.

Only this module touches ``sanic.worker``, and only to replace it. In ``sys.modules``, our modules replace
Sanic's. In every loaded module, our objects replace Sanic's, under the same names. Imports from
``sanic.worker``, before and after the installation, therefore get our objects.

Modules that only the main process uses are imported on first use of one of their names, because a worker
would start later with them.
"""

from __future__ import annotations

import gc
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from enum import Enum
from functools import wraps
from importlib import import_module
from importlib.machinery import ModuleSpec
from multiprocessing import parent_process
from types import ModuleType
from typing import Any, NamedTuple

from sanic.log import error_logger

from worker import settings
from worker._child.descriptors import fill_standard
from worker._core import IS_NATIVE
from worker._listen import unix
from worker._listen.address import naming_address
from worker._spawn.processes import set_up_children
from worker._state.shared import SharedState

__all__ = ["install", "is_installed", "uninstall"]

# The oldest and the newest release that the tests run on. In a newer one, the expected names must exist.
OLDEST = (23, 12)
NEWEST = (25, 12)

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

# The permissions that Sanic gives a unix socket.
UNIX_MODE = 0o666

_ends_with_server = False
# Functions that undo the installation, to be called in reverse order.
_undo: list[Callable[[], None]] = []


def is_installed() -> bool:
    """Return whether this package replaces Sanic's manager in this process."""
    return bool(_undo)


def install(**given: Any) -> None:
    """Replace ``sanic.worker`` by this package, in this process and in every process it starts.

    Call it before the application is run. A further call only takes the given settings.

    Args:
        **given: Settings of the manager, by name; see :mod:`worker.settings`.

    Raises:
        RuntimeError: This release of Sanic is too old, or lacks expected names; or a class to be replaced has
            a subclass or an object already.
        TypeError: There is no such setting.
        ValueError: The value of a setting is wrong.
    """
    settings.install(given)
    if _undo:
        return
    _check_version()
    replaced = _replacements()
    _check_subclasses(replaced)
    instances = _instances(replaced)
    startup: Any = import_module(STARTUP)
    _swap(vars(startup), "Manager", StateManager)
    _swap(vars(startup), "configure_socket", naming_address(_sharing(startup.configure_socket)))
    _swap(vars(startup), "remove_unix_socket", unix.remove)
    _wrap_serve(startup)
    _swap_states(startup.StartupMixin)
    modules: list[Any] = list(sys.modules.values())
    for module in modules:
        if isinstance(module, ModuleType) and _may_bind(module):
            _rebind(module, replaced)
    for one in replaced.values():
        if not one.name:
            _replace_module(one)
    sys.meta_path.insert(0, Finder)
    _undo.append(lambda: sys.meta_path.remove(Finder))
    for instance in instances:
        _swap_attribute(instance, "__class__", replaced[id(type(instance))].ours())
    for app in import_module("sanic.app").Sanic._app_registry.values():
        for attribute in ("certloader_class", "inspector_class"):
            stock = replaced.get(id(getattr(app, attribute, None)))
            if stock is not None:
                _swap_attribute(app, attribute, stock.ours())
    set_up_children(install)
    _undo.append(lambda: set_up_children(None))


def uninstall() -> None:
    """Restore Sanic's own manager in this process. Without an installation, do nothing."""
    global _ends_with_server
    while _undo:
        _undo.pop()()
    _ends_with_server = False
    settings.forget()


class StateManager:
    """Keeps the shared state for Sanic: in shared memory; without the native core, in a process."""

    def __init__(self) -> None:
        # The script may have closed standard descriptors since it imported this package.
        fill_standard()
        try:
            self._process = None if IS_NATIVE else _state_process()
        except EOFError as error:
            error_logger.error("%s", error)
            raise SystemExit(1) from None
        self._state: Any = SharedState() if self._process is None else self._process.dict()

    def dict(self) -> Any:
        """Return the shared state."""
        return self._state

    def shutdown(self) -> None:
        """Release the shared state."""
        self._state.close()
        if self._process is not None:
            self._process.shutdown()


def _state_process() -> Any:
    # Costly to import, and needed by the main process alone.
    from worker._spawn.state_process import StateProcess

    return StateProcess()


def _sharing(configure_socket: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap Sanic's function, so that a unix socket gets its mode and is passed to workers as a TCP one is."""

    @wraps(configure_socket)
    def call(server_settings: dict[str, Any]) -> Any:
        if not server_settings.get("unix"):
            return configure_socket(server_settings)
        # As text: at the end, Sanic 23.12 removes only a path that is text.
        path = server_settings["unix"] = os.path.abspath(server_settings["unix"])
        mode = settings.resolve({}).unix_mode
        backlog = server_settings["backlog"]
        sock = unix.bind(path, UNIX_MODE if mode is None else mode, backlog)
        server_settings["sock"] = sock
        return sock

    return call


def _wrap_serve(startup: Any) -> None:
    """Wrap Sanic's ``serve``, so that it restores signal handlers and removes the files of sockets."""
    mixin = startup.StartupMixin
    stock = vars(mixin)["serve"].__func__

    @wraps(stock)
    def serve(*args: Any, **kwargs: Any) -> Any:
        from worker._supervisor.loop import signals_given_back

        # Sanic's function takes these from its globals, where a name that is imported on use is missing.
        for name in BOUND[STARTUP]:
            getattr(startup, name)
        try:
            with signals_given_back(stops_ignored=_ends_with_server):
                return stock(*args, **kwargs)
        finally:
            unix.remove_all()

    _swap_attribute(mixin, "serve", classmethod(serve))


def end_with_server() -> None:
    """Declare that this process only serves: a stop signal after that does not change its exit code."""
    global _ends_with_server
    _ends_with_server = True


def _swap_states(mixin: Any) -> None:
    name = "_get_process_states"
    stock = vars(mixin).get(name)
    # A release without this method does not read the states in this way.
    if stock is not None:
        _swap_attribute(mixin, name, staticmethod(_states(stock.__func__)))


def _states(get_process_states: Callable[..., list[str]]) -> Callable[..., list[str]]:
    """Wrap Sanic's function that waits until all states are final, so that it reads no values of users."""

    @wraps(get_process_states)
    def call(worker_state: Any) -> list[str]:
        if not isinstance(worker_state, SharedState):
            # Without the process that keeps the state, there is nothing to wait for.
            with suppress(OSError, EOFError):
                return get_process_states(worker_state)
            return []
        found = {}
        # Do not wait for damaged entries.
        with suppress(RuntimeError):
            for name in worker_state:
                found[name] = worker_state.read_keys(name, ("state",))
        return get_process_states(found)

    return call


def _check_version() -> None:
    import sanic

    text = sanic.__version__
    supported = f"{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}"
    try:
        year, month = (int(part) for part in text.split(".")[:2])
    except ValueError:
        raise RuntimeError(
            f"Sanic {text!r} is of no known release; sanic-worker supports {supported}"
        ) from None
    if (year, month) < OLDEST:
        raise RuntimeError(f"Sanic {text} is too old; sanic-worker supports {supported}")
    for module, name in _expected():
        if not hasattr(import_module(module), name):
            raise RuntimeError(
                f"Sanic {text} has no {module}.{name}, which sanic-worker has to replace; "
                f"it supports Sanic {supported}"
            )
    if (year, month) > NEWEST:
        warnings.warn(
            f"Sanic {text} is newer than what sanic-worker was tested with ({supported})",
            RuntimeWarning,
            stacklevel=3,
        )


def _expected() -> Iterator[tuple[str, str]]:
    for stem, names in NAMES.items():
        for name in names:
            yield f"sanic.worker.{stem}", name
    for module, names in BOUND.items():
        if module in sys.modules or not module.startswith("sanic.cli"):
            for name in names:
                yield module, name


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


def _replacements() -> dict[int, Replacement]:
    """Return all modules and objects to be replaced, by the identity of Sanic's."""
    replaced = {}
    for stem, names in NAMES.items():
        theirs = import_module(f"sanic.worker.{stem}")
        for old, name in [(theirs, ""), *((getattr(theirs, name), name) for name in names)]:
            replaced[id(old)] = Replacement(old, stem, name)
    return replaced


def _check_subclasses(replaced: dict[int, Replacement]) -> None:
    for old, *_ in replaced.values():
        derived: type | None = next(iter(old.__subclasses__()), None) if isinstance(old, type) else None
        if derived is not None:
            raise RuntimeError(
                f"{derived.__module__}.{derived.__qualname__} is derived from Sanic's own "
                f"{old.__qualname__} and cannot be changed any more. Call worker.install() before "
                f"the module {derived.__module__} is imported (or before the class is defined)."
            )


def _instances(replaced: dict[int, Replacement]) -> list[Any]:
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


def _rebind(module: ModuleType, replaced: dict[int, Replacement]) -> None:
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
            _swap(namespace, name, one.ours())


def _replace_module(one: Replacement) -> None:
    package, theirs = sys.modules["sanic.worker"], one.old.__name__
    if one.stem in ON_USE:
        # The finder imports it.
        _remove(sys.modules, theirs)
        _replace_on_use(package, one.stem, lambda: import_module(theirs))
    else:
        _swap(sys.modules, theirs, one.ours())
        _swap(vars(package), one.stem, one.ours())


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
    """Remove a name from a module until it is used."""
    namespace = vars(module)
    earlier = namespace.get("__getattr__")

    def find(asked: str) -> Any:
        if asked == name:
            return namespace.setdefault(name, make())
        if earlier is not None:
            return earlier(asked)
        raise AttributeError(f"module {module.__name__!r} has no attribute {asked!r}", name=asked, obj=module)

    _remove(namespace, name)
    if earlier is None:
        _undo.append(lambda: namespace.pop("__getattr__"))
        namespace["__getattr__"] = find
    else:
        _swap(namespace, "__getattr__", find)


def _remove(namespace: dict[str, Any], name: str) -> None:
    before = namespace.pop(name)
    _undo.append(lambda: namespace.__setitem__(name, before))


def _swap(namespace: dict[str, Any], name: str, ours: Any) -> None:
    before = namespace[name]
    namespace[name] = ours
    _undo.append(lambda: namespace.__setitem__(name, before))


def _swap_attribute(owner: Any, name: str, ours: Any) -> None:
    # The raw attribute: in a class it may be a descriptor, in an instance a slot.
    before = vars(owner)[name] if isinstance(owner, type) else getattr(owner, name)
    setattr(owner, name, ours)
    _undo.append(lambda: setattr(owner, name, before))
