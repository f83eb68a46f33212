"""Installs this package under a Sanic application, in place of Sanic's own worker manager.

Only this module touches ``sanic.worker``, and only to replace it. In ``sys.modules``, our modules replace
Sanic's. In every loaded module, our objects replace Sanic's, under the same names. Imports from
``sanic.worker``, before and after the installation, therefore get our objects.

Modules that only the main process uses are imported on first use of one of their names, because a worker
would start later with them.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import wraps
from importlib import import_module
from typing import Any, NoReturn

from sanic.log import error_logger

from worker import settings
from worker._child import bootstrap
from worker._child.descriptors import fill_standard
from worker._spawn.processes import set_up_children
from worker._state import schema
from worker._state.shared import SharedState
from worker.integration import replacement
from worker.integration.replacement import BOUND, NAMES, STARTUP, swap, swap_attribute

__all__ = ["install", "is_installed", "uninstall"]

# The oldest and the newest release that the tests run on. In a newer one, the expected names must exist.
OLDEST = (23, 12)
NEWEST = (25, 12)

_ends_with_server = False


def is_installed() -> bool:
    """Return whether this package replaces Sanic's manager in this process."""
    return bool(replacement.undo)


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
    apply_umask()
    if is_installed():
        return
    # Every child has this variable by now.
    if "SANIC_WORKER_NAME" not in os.environ:
        # Imported on use: a worker takes nobody's place.
        from worker._system import handover

        handover.join()
    if os.getpid() == 1:
        # Imported on use: a worker never is PID 1.
        from worker._system import init

        init.obey_early_stop()
    _check_version()
    found = replacement.find()
    startup: Any = import_module(STARTUP)
    swap(vars(startup), "Manager", StateManager)
    swap(vars(startup), "configure_socket", _sharing(startup.configure_socket))
    swap(vars(startup), "remove_unix_socket", _remove_unix_socket)
    _wrap_serve(startup)
    _wrap_serve_single(startup.StartupMixin)
    _wrap_prepare(startup.StartupMixin)
    _swap_states(startup.StartupMixin)
    _leave_out_fields()
    replacement.apply(*found)
    set_up_children(install)
    if sys._getframe(1).f_globals.get("__name__") == "__main__":
        _preload()


def apply_umask() -> None:
    """Set the permissions that new files lack, if the setting is given.

    Raises:
        ValueError: The setting is wrong.
    """
    umask = settings.find("umask")
    if umask is not None:
        os.umask(umask)


def uninstall() -> None:
    """Restore Sanic's own manager in this process. Without an installation, do nothing."""
    global _ends_with_server
    while replacement.undo:
        replacement.undo.pop()()
    set_up_children(None)
    _end_preload()
    _ends_with_server = False
    settings.forget()


def _preload() -> None:
    """Start the preload process now, for a script that is likely to serve.

    Any other program that installs this package may never serve. There, the manager starts it.
    """
    if not bootstrap.is_child() and settings.find("preload") != "off":
        from worker._spawn.preload.preloads import preloads
        from worker._spawn.preload.process import PreloadError

        # The manager tries it again, and reports the reason.
        with suppress(PreloadError):
            preloads.start()


def _end_preload() -> None:
    """End the preload process, if one was started."""
    if started := sys.modules.get("worker._spawn.preload.preloads"):
        started.preloads.reset()


class StateManager:
    """Keeps the shared state for Sanic: in shared memory; without the native core, in a process."""

    def __init__(self) -> None:
        # The script may have closed standard descriptors since it imported this package.
        fill_standard()
        try:
            self._process = None if SharedState.IS_SUPPORTED else _state_process()
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

    # It starts before there is a manager with settings of its own.
    return StateProcess(schema.SHEETS, settings.resolve({}).process_titles)


def _sharing(configure_socket: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap Sanic's function: it takes a socket of the service manager, or binds one that the workers share.

    A unix socket gets its mode, and errors name the address.
    """

    @wraps(configure_socket)
    def call(server_settings: dict[str, Any]) -> Any:
        # Imported on use: a worker binds no address.
        from worker.integration.listening import bind

        return bind(server_settings, configure_socket)

    return call


def _remove_unix_socket(path: Any) -> None:
    from worker._system import unix

    unix.remove(path)


def _wrap_serve(startup: Any) -> None:
    """Wrap Sanic's ``serve``, so that it restores signal handlers and removes the files of sockets."""
    mixin = startup.StartupMixin
    stock = vars(mixin)["serve"].__func__

    @wraps(stock)
    def serve(*args: Any, **kwargs: Any) -> Any:
        from worker._supervisor import exit_code
        from worker._supervisor.loop import signals_given_back
        from worker._system import activation, systemd

        # Before the listeners of the application can start a process, which would inherit them.
        systemd.take_environment()
        activation.inherited()
        # Sanic's function takes these from its globals, where a name that is imported on use is missing.
        for name in BOUND[STARTUP]:
            vars(startup).setdefault(name, getattr(startup, name))
        try:
            with signals_given_back(are_ignored=_ends_with_server):
                result = stock(*args, **kwargs)
        finally:
            _clean_up()
        if code := exit_code.noted():
            # The server has ended in order, but had to kill processes.
            raise SystemExit(int(code))
        return result

    swap(vars(startup), "os", _System())
    swap_attribute(mixin, "serve", classmethod(serve))


def _wrap_serve_single(mixin: Any) -> None:
    """Wrap Sanic's ``serve_single``: a server of a single process forks no workers."""
    stock = vars(mixin)["serve_single"].__func__

    @wraps(stock)
    def serve_single(*args: Any, **kwargs: Any) -> Any:
        _end_preload()
        return stock(*args, **kwargs)

    swap_attribute(mixin, "serve_single", classmethod(serve_single))


def _wrap_prepare(mixin: Any) -> None:
    """Wrap Sanic's ``prepare``: the setting ``workers`` counts, and ``fast`` counts the quota of CPU time."""
    stock = vars(mixin)["prepare"]

    @wraps(stock)
    def prepare(
        app: Any,
        *args: Any,
        workers: int = 1,
        fast: bool = False,
        single_process: bool = False,
        **kwargs: Any,
    ) -> Any:
        # Sanic itself refuses a number beside `fast`. Its own `fast` does not know the quota.
        if not single_process and (workers == 1 or not fast):
            app.state.fast = fast
            workers, fast = settings.number_of_servers(workers, fast=fast), False
        return stock(app, *args, workers=workers, fast=fast, single_process=single_process, **kwargs)

    swap_attribute(mixin, "prepare", prepare)


def _clean_up() -> None:
    """Close the sockets of the main process, and remove its files."""
    from worker._system import activation, pid_file, unix

    activation.close_all()
    pid_file.remove()
    unix.remove_all()


class _System:
    """The module :mod:`os` for Sanic's ``serve``, which ends a server that failed with exit code 1."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _exit(self, code: int) -> NoReturn:
        from worker._supervisor import exit_code

        # The callers of `serve` do not get to clean up.
        _clean_up()
        os._exit(exit_code.noted() or code)


def _leave_out_fields() -> None:
    """Let Sanic's formatter for a terminal leave out the fields of our events, which their texts contain."""
    try:
        formatter = import_module("sanic.logging.formatter").AutoFormatter
    except ImportError:
        return
    log_extra = formatter._log_extra
    ours = os.path.join(os.path.dirname(os.path.dirname(__file__)), "_state", "event_log.py")

    @wraps(log_extra)
    def call(self: Any, record: Any, *args: Any, **kwargs: Any) -> Any:
        return "" if record.pathname == ours else log_extra(self, record, *args, **kwargs)

    swap_attribute(formatter, "_log_extra", call)


def end_with_server() -> None:
    """Declare that this process only serves: a signal after that does not change its exit code."""
    global _ends_with_server
    _ends_with_server = True


def _swap_states(mixin: Any) -> None:
    name = "_get_process_states"
    stock = vars(mixin).get(name)
    # A release without this method does not read the states in this way.
    if stock is not None:
        swap_attribute(mixin, name, staticmethod(_states(stock.__func__)))


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
