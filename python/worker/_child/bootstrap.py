"""How a child begins, before its target runs.

A child leads a session of its own, so that Ctrl-C and signals to the group of the main process reach it only
through the main process. It ends when the main process is gone. Before it unpickles anything of the
application, this package stands in place of Sanic's own worker manager.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, Protocol, TypeVar

from worker._child.descriptors import close_inherited, fill_standard
from worker._child.logs import label_log, on_reopen
from worker._child.parent_watch import lead_session, watch_parent
from worker._child.signals import HANDLED, REOPEN, REQUESTS, STOPS, may_take
from worker._state import identity
from worker.settings import Settings, resolve

__all__ = [
    "ChildSettings",
    "begin",
    "current_settings",
    "current_state",
    "has_failed",
    "is_child",
    "main_pid",
    "mark_failed",
    "started_at",
    "unpickle",
]

T = TypeVar("T")

_failed = False


class ChildSettings(Protocol):
    """The part of the settings that the code uses which starts a process."""

    @property
    def graceful_timeout(self) -> float:
        """How long a process may take to stop, seconds."""

    @property
    def process_titles(self) -> bool:
        """Whether a process gives itself a title."""


class Child(Protocol):
    """The part of :class:`worker._spawn.processes.ManagedProcess` that :func:`begin` uses."""

    main_pid: int
    settings: ChildSettings | None
    is_server: bool
    title: str
    held: frozenset[int]
    handles_stop_itself: bool
    begun_reader: Connection | None
    begun_writer: Connection | None


def unpickle(kind: type[T], set_up: Callable[[], object] | None, environment: Mapping[str, str]) -> T:
    """Make the process object of a child that was not forked from the main process.

    It is the first call of the unpickling child. Its state comes after it, and may import the application.

    Args:
        kind (type): The class of the process.
        set_up (Callable | None): A function to call before anything else is imported.
        environment (Mapping[str, str]): Additions to its environment.
    """
    os.environ.update(environment)
    label_log()
    if set_up is not None:
        set_up()
    return kind.__new__(kind)


def begin(process: Child, *, forked: bool) -> None:
    """Prepare the calling child for its target, and tell the main process that it has begun.

    Args:
        process (Child): The process object of the child.
        forked (bool): Whether the child is a copy of the main process.
    """
    global _failed
    _failed = False
    identity.become_worker()
    if process.title:
        # Imported on use: it is a matter of a setting.
        from worker._child.titles import set_title

        set_title(process.title)
    if forked:
        # Any other child has done this when it was unpickled.
        label_log()
        _undo_fork(process)
    fill_standard()
    lead_session()
    watch_parent(process.main_pid, process.settings.graceful_timeout if process.settings else 0.0)
    if not faulthandler.is_enabled():
        with suppress(OSError, ValueError, AttributeError):
            faulthandler.enable()
    if may_take(REOPEN):
        signal.signal(REOPEN, on_reopen)
    _open_to_signals(process.held, interruptible=not process.handles_stop_itself)
    assert process.begun_writer is not None
    with process.begun_writer, suppress(BrokenPipeError):
        process.begun_writer.send_bytes(b"begun")


def mark_failed() -> None:
    """Let the running child end with exit code 1 when its target returns."""
    global _failed
    _failed = True


def has_failed() -> bool:
    """Return whether :func:`mark_failed` was called in this child."""
    return _failed


def is_child() -> bool:
    """Return whether the calling process is a child of a manager."""
    return hasattr(multiprocessing.current_process(), "main_pid")


def current_settings() -> Settings:
    """Return the settings of this child's manager; in another process, those that a manager would have."""
    return getattr(multiprocessing.current_process(), "settings", None) or resolve({})


def current_state() -> MutableMapping[str, Any] | None:
    """Return the shared state, if this child was given it."""
    return getattr(multiprocessing.current_process(), "state", None)


def main_pid() -> int:
    """Return the pid of the main process of this child; in any other process, its own."""
    return getattr(multiprocessing.current_process(), "main_pid", None) or os.getpid()


def started_at() -> float:
    """Return when the main process started this child, seconds since 1970; in any other process, now."""
    return getattr(multiprocessing.current_process(), "started_at", None) or time.time()


def _undo_fork(process: Child) -> None:
    signal.set_wakeup_fd(-1)
    for signum in HANDLED:
        if signal.getsignal(signum) is not signal.SIG_IGN and may_take(signum):
            signal.signal(signum, signal.SIG_DFL)
    close_inherited(process.is_server)
    if process.begun_reader is not None:
        process.begun_reader.close()


def _open_to_signals(held: frozenset[int], interruptible: bool) -> None:
    """Unblock the signals held so far; a pending SIGINT or SIGTERM ends the child by its default action.

    The signal came from the main process, or to its group and therefore to the main process, too. Either way
    the server is stopping, and the child has started nothing that needs an orderly end.
    """
    handler = signal.getsignal(signal.SIGINT)
    # A module that was imported by now may have set a handler of its own.
    settled = callable(handler) and handler is not signal.default_int_handler
    if not settled:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # A request to the main process that came to its group is ignored.
    before = {signum: signal.signal(signum, signal.SIG_IGN) for signum in held.intersection(REQUESTS)}
    # The main process stops its children by SIGINT and SIGTERM, even if it was started with these blocked.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, held.union(STOPS))
    for signum, action in before.items():
        signal.signal(signum, action)
    if interruptible and not settled:
        signal.signal(signal.SIGINT, signal.default_int_handler)
