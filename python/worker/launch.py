"""How a child begins: the process classes of the manager, and what they do before anything else.

A child of ours leads a session of its own, so that Ctrl-C and signals to main's group reach it only
through main; it ends when main is gone; and it has put this package in place of Sanic's manager
before the application is loaded.
"""

from __future__ import annotations

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
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any

from worker import directory, identity, signals, warm
from worker._core import Lifeline
from worker.compat import label_log
from worker.descriptors import close_owned, fill_standard
from worker.fork_server import ForkServerError, ForkServerPopen
from worker.popen import ForkPopen, SpawnPopen, held_by_spawn, leave
from worker.settings import Settings, resolve
from worker.signals import REQUESTS, STOPS

__all__ = [
    "NOT_BEGUN",
    "Launched",
    "factory",
    "main_is_gone",
    "mark_failed",
    "started_at",
    "warm_up",
]

# The finalizer of the lowest priority runs last.
LAST = -1_000_000

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
        held: The signals that it finds blocked, and unblocks when it begins.
        stops_once: Whether its target sets handlers of its own, so that SIGINT is not to become
            ``KeyboardInterrupt``. A function or a class says so of itself by an attribute of this name.
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
        self.held: frozenset[int] = frozenset()
        self._begun: Connection | None = None
        self._begins: Connection | None = None
        # Asked now: once a process is started, multiprocessing forgets its target.
        self.stops_once = getattr(kwargs.get("target"), "stops_once", False) is True

    def start(self) -> None:
        """Start the process."""
        directory.enter(needed=self._start_method != "fork")  # type: ignore[attr-defined]
        self.started_at = time.time()
        names = os.environ if self.is_warm else ("SANIC_WORKER_NAME", "SANIC_WORKER_IDENTIFIER")
        self.environment = {name: value for name in names if (value := os.environ.get(name)) is not None}
        fill_standard()
        self._begun, self._begins = multiprocessing.Pipe(duplex=False)
        try:
            self._start()
        except BaseException:
            self._begun.close()
            raise
        finally:
            self._begins.close()

    def close(self) -> None:
        """Let go of what the process object holds. The process must have ended."""
        super().close()
        if self._begun is not None:
            self._begun.close()

    @property
    def exitcode(self) -> int | None:
        """The exit code, negative for a signal; ``None`` while it runs, and where nobody knows it."""
        code = super().exitcode
        return None if getattr(self._popen, "status_is_lost", False) else code  # type: ignore[attr-defined]

    def run(self) -> None:
        """Begin the child, then run its target."""
        global _failed
        _failed = False
        identity.become_worker()
        if self._start_method == "fork":  # type: ignore[attr-defined]
            # Any other child has done so as it was born.
            label_log()
            self._undo_fork()
        fill_standard()
        lead_session()
        grace = self.settings.graceful_timeout if self.settings else 0.0
        hold_on_to(self.main_pid, grace)
        if not faulthandler.is_enabled():
            with suppress(OSError, ValueError, AttributeError):
                faulthandler.enable()
        _open_to_signals(self.held, interruptible=not self.stops_once)
        assert self._begins is not None
        with self._begins, suppress(BrokenPipeError):
            self._begins.send_bytes(b"begun")
        super().run()
        if _failed:
            sys.exit(1)

    def _start(self) -> None:
        super().start()

    def _undo_fork(self) -> None:
        signal.set_wakeup_fd(-1)
        for signum in (*STOPS, *REQUESTS):
            if signal.getsignal(signum) is not signal.SIG_IGN:
                signal.signal(signum, signal.SIG_DFL)
        close_owned(self.is_server)
        if self._begun is not None:
            self._begun.close()

    def __reduce__(self) -> tuple[Any, ...]:
        # The first call of the unpickling child: before the state, which may import the application.
        state = {**self.__dict__, "_begun": None}
        return _born, (type(self), _installed(), self.is_warm, self.environment), state


class SpawnProcess(Launched, contexts.SpawnProcess):
    """A child of the start method ``spawn``."""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802
        process_obj.held = held_by_spawn()
        return SpawnPopen(process_obj)

    def _bootstrap(self, *args: Any) -> int:
        code: int = super()._bootstrap(*args)  # type: ignore[misc]
        if main_is_gone():
            # All that is left to do is to take the interpreter apart. Where many children do that at once, it
            # takes longer than all before it, and nobody needs it.
            leave(code)
        return code


class ForkProcess(Launched, contexts.ForkProcess):
    """A child of the start method ``fork``."""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802
        return ForkPopen(process_obj)

    def _start(self) -> None:
        # The tracker is a child too, and its first start unblocks these very signals.
        resource_tracker.ensure_running()
        with signals.blocked() as self.held:
            super()._start()


class ForkServerProcess(Launched, contexts.ForkServerProcess):
    """A child of the start method ``forkserver``: spawned, where the fork server fails."""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802
        server = warm.server()
        if server is not None:
            try:
                return ForkServerPopen(process_obj, server, warm.fail)
            except ForkServerError as error:
                warm.lose(error)
        process_obj.__class__ = SpawnProcess
        return SpawnProcess._Popen(process_obj)


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
    if is_ours and context.get_start_method() == "spawn":
        warm.start()


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
    """This child has begun to stop: it need not be told."""
    if _lifeline is not None:
        _lifeline.let_go()


def stoppable() -> None:
    """The handlers of this child for a stop are in place: one that came before, and was lost, comes again."""
    if _lifeline is not None:
        _lifeline.stoppable()


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


def lead_session() -> None:
    """Make the calling process the leader of a new session, out of reach of the terminal's signals."""
    # Not just a group: a background group is stopped when it touches the terminal.
    with suppress(PermissionError):
        os.setsid()


def _open_to_signals(held: frozenset[int], interruptible: bool) -> None:
    """Meet the signals held so far: with SIGINT and SIGTERM at their default, they end the child.

    One that is pending came from main, or to main's group and so to main as well: either way the
    server is stopping and nothing has been begun that would want to be ended in order.
    """
    handler = signal.getsignal(signal.SIGINT)
    # A module that was imported on the way here may have set its own.
    settled = callable(handler) and handler is not signal.default_int_handler
    if not settled:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # One that asks main for something, and came to its group, is none of the child's business.
    before = {signum: signal.signal(signum, signal.SIG_IGN) for signum in held.intersection(REQUESTS)}
    # Main stops its children by these, with any mask that it was started with itself.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, held.union(STOPS))
    for signum, action in before.items():
        signal.signal(signum, action)
    if interruptible and not settled:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def hold_on_to(main: int, grace: float) -> None:
    """End this process when main is gone: first in order, after ``grace`` seconds by force.

    Args:
        main (int): The pid of main.
        grace (float): How long this process may take to end in order, seconds.
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
        _lifeline = Lifeline(watch, grace)
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
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def has_own_session() -> bool:
    """Whether the calling process leads its own session."""
    return os.getsid(0) == os.getpid()
