"""The process classes of the manager, one for each start method, as the main process uses them.

A child imports this module for its class. Imports that only the start of a process needs are in functions.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, MutableMapping
from multiprocessing import context as contexts
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from worker._child import bootstrap, signals
from worker._child.bootstrap import ChildSettings
from worker._child.descriptors import fill_standard
from worker._child.exits import exit_child
from worker._child.parent_watch import main_is_gone

__all__ = ["NOT_BEGUN", "ManagedProcess", "factory", "preloaded_method", "set_up_children", "set_up_function"]

# The likely reason if a child exits before it has begun.
NOT_BEGUN = """\
It exited while it imported the script that was run.

This happens where an application is run in the global scope of the script and not inside of

    if __name__ == "__main__":

because a child imports that script (start method "spawn"). Put the call that runs the application
there, or set Sanic.start_method = "fork" before it.

"""

# The variables that name a process.
NAMES = ("SANIC_WORKER_NAME", "SANIC_WORKER_IDENTIFIER")

_set_up_child: Callable[[], object] | None = None


def set_up_children(function: Callable[[], object] | None) -> None:
    """Let children that are not forked call a function before they import anything else.

    Args:
        function (Callable | None): A function of a module, so that it can be pickled. ``None`` for none.
    """
    global _set_up_child
    _set_up_child = function


def set_up_function() -> Callable[[], object] | None:
    """Return the function of :func:`set_up_children`."""
    return _set_up_child


class ManagedProcess(BaseProcess):
    """A process of the manager; mixed into the process class of each start method.

    Attributes:
        main_pid: The pid of the main process. When that ends, this process does.
        settings: The settings of its manager.
        is_server: Whether it serves requests.
        title: The title that it gives itself; empty for none.
        state: The shared state, if its target is the reloader (attribute ``is_reloader``).
        is_preloaded: Whether it is forked from a preload process.
        environment: Variables for its environment, for each start method the same: its names.
        started_at: When it was started, seconds since 1970.
        held: The signals that are blocked when it begins. It unblocks them.
        handles_stop_itself: Whether its target sets handlers for a stop, so that SIGINT raises no
            ``KeyboardInterrupt``. A function or class declares it by an attribute of this name.
        begun_reader: The main process's end of a pipe that shows that the child has begun; ``None`` before.
        begun_writer: The child's end of it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.main_pid = os.getpid()
        self.settings: ChildSettings | None = None
        self.is_server = False
        self.title = ""
        self.state: MutableMapping[str, Any] | None = None
        self.is_preloaded = False
        self.environment: dict[str, str] = {}
        self.started_at = time.time()
        self.held: frozenset[int] = frozenset()
        self.begun_reader: Connection | None = None
        self.begun_writer: Connection | None = None
        # Read now: multiprocessing forgets the target when the process is started.
        self.handles_stop_itself = getattr(kwargs.get("target"), "handles_stop_itself", False) is True

    def start(self) -> None:
        """Start the process."""
        from worker._spawn import directory

        directory.enter(needed=self._start_method != "fork")  # type: ignore[attr-defined]
        self.started_at = time.time()
        self.environment = {name: value for name in NAMES if (value := os.environ.get(name)) is not None}
        fill_standard()
        self.begun_reader, self.begun_writer = multiprocessing.Pipe(duplex=False)
        try:
            self._start()
        except BaseException:
            self.begun_reader.close()
            raise
        finally:
            self.begun_writer.close()

    def close(self) -> None:
        """Close the descriptors of the process object. The process must have ended."""
        super().close()
        if self.begun_reader is not None:
            self.begun_reader.close()

    @property
    def exitcode(self) -> int | None:
        """The exit code, negative for a signal; ``None`` while it runs, and if it is unknown."""
        code = super().exitcode
        return None if getattr(self._popen, "status_is_lost", False) else code  # type: ignore[attr-defined]

    def run(self) -> None:
        """Begin the child, then run its target; called in the child."""
        bootstrap.begin(self, forked=self._start_method == "fork")  # type: ignore[attr-defined]
        # The application registers its functions there, when it is preloaded.
        if hooks := sys.modules.get("worker._child.preload.hooks"):
            hooks.run_after_fork()
        super().run()
        if bootstrap.has_failed():
            sys.exit(1)

    def _start(self) -> None:
        super().start()

    def __reduce__(self) -> tuple[Any, ...]:
        # The call comes before the state, which may import the application.
        state = {**self.__dict__, "begun_reader": None}
        return bootstrap.unpickle, (type(self), _set_up_child, self.environment), state


class SpawnProcess(ManagedProcess, contexts.SpawnProcess):
    """A child of the start method ``spawn``, forked from a preload process if that is ready."""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802
        from worker._spawn.popen import SpawnPopen
        from worker._spawn.preload.popen import fork
        from worker._spawn.program import held_by_spawn

        if (forked := fork(process_obj)) is not None:
            return forked
        process_obj.is_preloaded = False
        process_obj.held = held_by_spawn()
        return SpawnPopen(process_obj)

    def _bootstrap(self, *args: Any) -> int:
        code: int = super()._bootstrap(*args)  # type: ignore[misc]
        if main_is_gone():
            # Many orphans that finalise their interpreters at once need longer for it than for their stop.
            exit_child(code)
        return code


class ForkProcess(ManagedProcess, contexts.ForkProcess):
    """A child of the start method ``fork``."""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802
        from worker._spawn.popen import ForkPopen

        return ForkPopen(process_obj)

    def _start(self) -> None:
        from multiprocessing import resource_tracker

        # The first start of the resource tracker unblocks these signals, so it has to come before.
        resource_tracker.ensure_running()
        with signals.blocked() as self.held:
            super()._start()


class ForkServerProcess(ManagedProcess, contexts.ForkServerProcess):
    """A child of the start method ``forkserver``: the same, but the start waits for the preload process."""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802
        from worker._spawn.preload.popen import READY_TIMEOUT, fork

        if (forked := fork(process_obj, wait=READY_TIMEOUT)) is not None:
            return forked
        process_obj.__class__ = SpawnProcess
        return SpawnProcess._Popen(process_obj)


_CLASSES: dict[str, type[ManagedProcess]] = {
    "spawn": SpawnProcess,
    "fork": ForkProcess,
    "forkserver": ForkServerProcess,
}
_STOCK: tuple[type[BaseProcess], ...] = (
    contexts.Process,
    contexts.SpawnProcess,
    contexts.ForkProcess,
    contexts.ForkServerProcess,
)


def factory(
    context: Any,
    settings: ChildSettings | None = None,
    is_server: bool = False,
    state: MutableMapping[str, Any] | None = None,
    application: str = "",
) -> Callable[..., Any]:
    """Return a function that makes the processes of a context.

    Args:
        context (BaseContext): From ``multiprocessing.get_context()``. A context that is not from the standard
            library makes processes of its own class.
        settings (ChildSettings | None): The settings for the child. Defaults to ``None``.
        is_server (bool): Whether the processes serve requests. Defaults to ``False``.
        state (MutableMapping[str, Any] | None): The shared state. Defaults to ``None``.
        application (str): The application, for the titles of the processes. Defaults to none.

    Returns:
        Callable: Our process class for the context's start method, or ``context.Process``.
    """
    if isinstance(context, contexts.BaseContext) and context.Process in _STOCK:  # type: ignore[attr-defined]
        from worker._child.titles import title_of

        method = context.get_start_method()

        def make(**kwargs: Any) -> ManagedProcess:
            process = _CLASSES[method](**kwargs)
            process.settings, process.is_server = settings, is_server
            if settings is not None and settings.process_titles:
                process.title = title_of(process.name, application)
            if getattr(kwargs.get("target"), "is_reloader", False) is True:
                process.state = state
            return process

        return make
    return context.Process  # type: ignore[no-any-return]


def preloaded_method(context: Any) -> str:
    """Return the start method of a context, if a preload process can fork its processes; else empty."""
    if getattr(sys, "frozen", False):
        # A frozen program has no interpreter to start the preload process with.
        return ""
    is_ours = isinstance(context, contexts.BaseContext) and context.Process in _STOCK  # type: ignore[attr-defined]
    method = context.get_start_method() if is_ours else ""
    return method if method in ("spawn", "forkserver") else ""
