"""How a child begins: the process classes of the manager, and what they do before anything else.

A child of ours leads a session of its own, so that Ctrl-C and signals to main's group reach it only
through main; it ends when main is gone; and it has put this package in place of Sanic's manager
before the application is loaded.
"""

from __future__ import annotations

import atexit
import faulthandler
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from multiprocessing import context as contexts
from multiprocessing import resource_tracker
from multiprocessing.connection import wait as wait_for
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any, Protocol

from worker import warm
from worker._core import Lifeline
from worker.compat import label_log
from worker.forking import ForkPopen
from worker.settings import Settings, resolve

__all__ = [
    "NOT_BEGUN",
    "TELL_AGAIN",
    "Launched",
    "disown",
    "factory",
    "has_begun",
    "main_is_gone",
    "mark_failed",
    "own",
    "reap",
    "started_at",
    "warm_up",
]

# What only main may use, and what only main and the servers: a forked child, a copy of main, closes it.
_owned_by_main: list[Closable] = []
_owned_by_servers: list[Closable] = []
STOPS = (signal.SIGINT, signal.SIGTERM)
# What main is asked by signals, but for a stop.
RELOAD, MORE, FEWER = (getattr(signal, name, None) for name in ("SIGHUP", "SIGTTIN", "SIGTTOU"))
REQUESTS = tuple(signum for signum in (RELOAD, MORE, FEWER) if signum is not None)
# The finalizer of the lowest priority runs last.
LAST = -1_000_000
# How long main waits for the word of a fork server on the exit code of its child, seconds.
_EXITCODE_TIMEOUT = 1.0
# After how long a server that was told to leave is told again, seconds: while Sanic sets up its
# handlers there is a moment in which a signal is lost. Our handler in the server knows repeats.
TELL_AGAIN = 0.5

# What may be wrong where a child ends before it has come so far as to run anything of ours.
NOT_BEGUN = """\
It had not begun: it ended while it imported the script that was run.

That happens where an application is run in the global scope of the script and not inside of

    if __name__ == "__main__":

because a child imports that script (start method "spawn"). Put the call that runs the application
there, or set Sanic.start_method = "fork" before it.

"""

_failed = False
_lifeline: Lifeline | None = None
_watch: int | None = None


class Closable(Protocol):
    """Something with a ``close()``: a monitor, a connection."""

    def close(self) -> None:
        """Let go of the file descriptors."""


class Launched(BaseProcess):
    """A process of the manager; mixed into the process class of each start method.

    Attributes:
        main_pid: The process that made it, and whose end is its own.
        settings: Those of its manager.
        is_server: Whether it serves requests.
        state: The state of all processes, where its target goes by it: as a reloader does, which says so by
            its attribute ``brings_changes``.
        is_warm: Whether it comes from the fork server of :mod:`worker.warm`.
        environment: What it is to find in its environment, whatever the start method hands on: its names, or,
            if it is warm, all that main has.
        started_at: When it was started, seconds since 1970.
        stops_once: Whether its target sets handlers of its own, and obeys the first stop and ignores
            repeats. A function or a class says so of itself by an attribute of this name.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.main_pid = os.getpid()
        self.settings: Settings | None = None
        self.is_server = False
        self.state: MutableMapping[str, Any] | None = None
        self.is_warm = False
        self.environment: dict[str, str] = {}
        self.started_at = time.time()
        # Asked now: once a process is started, multiprocessing forgets its target.
        self.stops_once = getattr(kwargs.get("target"), "stops_once", False) is True

    def start(self) -> None:
        """Start the process with the signals held that must not end it half-way."""
        self.started_at = time.time()
        names = os.environ if self.is_warm else ("SANIC_WORKER_NAME", "SANIC_WORKER_IDENTIFIER")
        self.environment = {name: value for name in names if (value := os.environ.get(name)) is not None}
        with signals_held(self._start_method):  # type: ignore[attr-defined]
            super().start()

    def run(self) -> None:
        """Begin the child, then run its target."""
        global _failed
        _failed = False
        if self._start_method == "fork":  # type: ignore[attr-defined]
            # Any other child has done so as it was born.
            label_log()
            _undo_fork(self.is_server)
        lead_session()
        grace = self.settings.graceful_timeout if self.settings else 0.0
        hold_on_to(self.main_pid, grace, repeats=self.stops_once)
        if not faulthandler.is_enabled():
            with suppress(OSError, ValueError, AttributeError):
                faulthandler.enable()
        _open_to_signals(interruptible=not self.stops_once)
        super().run()
        if _failed:
            sys.exit(1)

    def __reduce__(self) -> tuple[Any, ...]:
        # The first call of the unpickling child: before the state, which may import the application.
        return _born, (type(self), _installed(), self.is_warm, self.environment), self.__dict__


class SpawnProcess(Launched, contexts.SpawnProcess):
    """A child of the start method ``spawn``."""

    def _bootstrap(self, *args: Any) -> int:
        code: int = super()._bootstrap(*args)  # type: ignore[misc]
        if main_is_gone():
            # All that is left to do is to take the interpreter apart. Where many children do that at once, it
            # takes longer than all before it, and nobody needs it.
            atexit._run_exitfuncs()
            for stream in filter(None, (sys.stdout, sys.stderr)):
                with suppress(OSError, ValueError):
                    stream.flush()
            os._exit(code)
        return code


if sys.platform != "win32":

    class ForkProcess(Launched, contexts.ForkProcess):
        """A child of the start method ``fork``."""

        @staticmethod
        def _Popen(process_obj: BaseProcess) -> ForkPopen:  # noqa: N802  # the name is multiprocessing's
            return ForkPopen(process_obj)

    class ForkServerProcess(Launched, contexts.ForkServerProcess):
        """A child of the start method ``forkserver``."""

    _CLASSES: dict[str, type[Launched]] = {
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
else:
    _CLASSES = {"spawn": SpawnProcess}
    _STOCK = (contexts.Process, contexts.SpawnProcess)


def factory(
    context: Any,
    settings: Settings | None = None,
    is_server: bool = False,
    state: MutableMapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """What makes the processes of a context.

    Args:
        context (BaseContext): What ``multiprocessing.get_context()`` gave. One that is not from the
            standard library makes its own processes.
        settings (Settings | None): What a child is to go by. Defaults to ``None``.
        is_server (bool): Whether they serve requests. Defaults to ``False``.
        state (MutableMapping[str, Any] | None): The state of all processes. Defaults to ``None``.

    Returns:
        Callable: Our process class for the context's start method, or ``context.Process``.
    """
    if isinstance(context, contexts.BaseContext) and context.Process in _STOCK:  # type: ignore[attr-defined]
        method = context.get_start_method()

        def make(**kwargs: Any) -> Launched:
            is_warm = method == "spawn" and warm.is_warm() and is_server
            process = _CLASSES["forkserver" if is_warm else method](**kwargs)
            process.settings, process.is_server = settings, is_server
            if getattr(kwargs.get("target"), "brings_changes", False) is True:
                process.state = state
            process.is_warm = is_warm
            return process

        return make
    return context.Process  # type: ignore[no-any-return]


def warm_up(context: Any) -> None:
    """Have servers of this context that are made from now on start quickly, if they are spawned."""
    is_ours = isinstance(context, contexts.BaseContext) and context.Process in _STOCK  # type: ignore[attr-defined]
    if is_ours and context.get_start_method() == "spawn" and "forkserver" in _CLASSES:
        # It is to outlive a signal to main's group.
        with signals_held("forkserver"):
            warm.start()


def own(owned: Closable, *, servers_too: bool = False) -> None:
    """Have forked children close what only main may use, or only servers besides, until :func:`disown`."""
    (_owned_by_servers if servers_too else _owned_by_main).append(owned)


def disown(owned: Closable) -> None:
    """Main has closed it, or gives it up."""
    (_owned_by_main if owned in _owned_by_main else _owned_by_servers).remove(owned)


def is_child() -> bool:
    """Whether the calling process is a child of a manager."""
    return isinstance(multiprocessing.current_process(), Launched)


def current_settings() -> Settings:
    """The settings of this child's manager; in any other process, those that a manager would have."""
    return getattr(multiprocessing.current_process(), "settings", None) or resolve({})


def current_state() -> MutableMapping[str, Any] | None:
    """The state of all processes, where this child was given it."""
    return getattr(multiprocessing.current_process(), "state", None)


def started_at() -> float:
    """When main started this child, seconds since 1970; in any other process, now."""
    return getattr(multiprocessing.current_process(), "started_at", None) or time.time()


def mark_failed() -> None:
    """Let the running child end with exit code 1 when its target returns."""
    global _failed
    _failed = True


def stop_obeyed() -> None:
    """This child has begun to stop: it need not be told again."""
    if _lifeline is not None:
        _lifeline.let_go()


def has_begun(process: Any) -> bool:
    """Whether a child of ours leads its own session by now (and its group with it)."""
    if not isinstance(process, Launched) or process.pid is None:
        return False
    try:
        return os.getsid(process.pid) == process.pid
    except OSError:
        return False


def reap(process: BaseProcess) -> int | None:
    """Collect a dead child.

    A fork server sends the exit code of its child a moment after the child's death.

    Returns:
        int | None: Its exit code, negative for a signal; ``None`` if nobody knows.
    """
    if process.exitcode is None:
        wait_for([process.sentinel], _EXITCODE_TIMEOUT)
    code = process.exitcode
    if code is not None:
        # So that multiprocessing forgets it now, and not at its next start.
        process.join(0)
    return code


@contextmanager
def signals_held(start_method: str) -> Iterator[None]:
    """Block signals that would reach a child before it can tell what they mean.

    The mask is inherited, over an exec too; :meth:`Launched.run` opens it again. A spawned child
    leaves SIGTERM open: its default action is right from the first instruction on. A forked one is a
    copy of main with main's handlers; a fork server must outlive a signal to main's group.
    """
    if sys.platform == "win32":
        yield
        return
    # The tracker is a child too, and its first start unblocks these very signals.
    resource_tracker.ensure_running()
    held = {signal.SIGINT, *REQUESTS} if start_method == "spawn" else {*STOPS, *REQUESTS}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _born(kind: type[Launched], installed: bool, is_warm: bool, environment: dict[str, str]) -> Launched:
    if is_warm:
        warm.follow(environment)
    else:
        os.environ.update(environment)
    label_log()
    if installed:
        from worker.integration import install

        install()
    return kind.__new__(kind)


def _installed() -> bool:
    from worker.integration import is_installed

    return is_installed()


def _undo_fork(is_server: bool) -> None:
    signal.set_wakeup_fd(-1)
    for signum in (*STOPS, *REQUESTS):
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, signal.SIG_DFL)
    # A listening socket that another process had open would outlive main and the servers.
    for owned in (_owned_by_main, *([] if is_server else [_owned_by_servers])):
        while owned:
            with suppress(OSError):
                owned.pop().close()


def lead_session() -> None:
    """Make the calling process the leader of a new session, out of reach of the terminal's signals."""
    # Not just a group: a background group is stopped when it touches the terminal.
    if hasattr(os, "setsid"):
        with suppress(PermissionError):
            os.setsid()


def _open_to_signals(interruptible: bool) -> None:
    """Meet the signals held so far: with SIGINT and SIGTERM at their default, they end the child.

    One that is pending came from main, or to main's group and so to main as well: either way the
    server is stopping and nothing has been begun that would want to be ended in order.
    """
    handler = signal.getsignal(signal.SIGINT)
    # A module that was imported on the way here may have set its own.
    settled = callable(handler) and handler is not signal.default_int_handler
    if not settled:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        # One that asks main for something, and came to its group, is none of the child's business.
        before = {signum: signal.signal(signum, signal.SIG_IGN) for signum in REQUESTS}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*STOPS, *REQUESTS})
        for signum, action in before.items():
            signal.signal(signum, action)
    if interruptible and not settled:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def hold_on_to(main: int, grace: float, *, repeats: bool = False) -> None:
    """End this process when main is gone: first in order, after ``grace`` seconds by force.

    Args:
        main (int): The pid of main.
        grace (float): How long this process may take to end in order, seconds.
        repeats (bool): Tell it more than once: it obeys the first one that it hears. Defaults to ``False``.
    """
    global _lifeline, _watch
    try:
        watch = os.pidfd_open(main)
    except ProcessLookupError:
        os._exit(1)
    except (AttributeError, OSError):
        parent = multiprocessing.parent_process()
        if parent is None:
            return
        watch = parent.sentinel
    method = getattr(multiprocessing.current_process(), "_start_method", None)
    if method in ("fork", "spawn") and os.getppid() != main:
        os._exit(1)

    # A signal that the main thread holds back, to wait for it, is not to find this one, and act.
    with _all_signals_blocked():
        _lifeline = Lifeline(watch, grace, TELL_AGAIN if repeats else None)
    _watch = watch
    # When this child has ended in order, nobody else is there to end its children.
    Finalize(None, _end_children, exitpriority=LAST)


def main_is_gone() -> bool:
    """Whether the main process of this child has ended; ``False`` in any other process."""
    return _watch is not None and bool(wait_for([_watch], 0))


def _end_children() -> None:
    """Kill all others of the group that this process leads, if main is gone."""
    if not main_is_gone() or not has_own_session():
        return
    me = os.getpid()
    for entry in os.listdir("/proc") if os.path.isdir("/proc") else ():
        with suppress(OSError, ValueError):
            if os.getpgid(int(entry)) == me != int(entry):
                os.kill(int(entry), signal.SIGKILL)


@contextmanager
def _all_signals_blocked() -> Iterator[None]:
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def has_own_session() -> bool:
    """Whether the calling process leads its own session."""
    return hasattr(os, "getsid") and os.getsid(0) == os.getpid()
