"""The enumerations (states, the order of a restart, phases of a slot), fixed names, and names in the log."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum, IntEnum, auto
from functools import wraps
from reprlib import Repr
from typing import Any, ParamSpec, TypeVar, cast

from sanic import __version__ as release
from sanic.compat import UpperStrEnum

__all__ = [
    "ALWAYS",
    "MAIN_NAME",
    "NAME_LIMIT",
    "NEVER",
    "ON_FAILURE",
    "POLICIES",
    "PRELOADS",
    "PRELOAD_APP",
    "PRELOAD_FRAMEWORK",
    "PRELOAD_OFF",
    "SERVER_LABEL",
    "WORKER_PREFIX",
    "ExitCode",
    "Phase",
    "ProcessState",
    "RestartOrder",
    "accept_newer_keywords",
    "excerpt",
    "listed",
    "prefixed",
]

P = ParamSpec("P")
R = TypeVar("R")

MAIN_NAME = "Sanic-Main"
"""The name of the main process, and of its entry in ``worker_state``."""

ALWAYS, ON_FAILURE, NEVER = POLICIES = ("always", "on-failure", "never")
"""The restart policies: whether a process that exits by itself is replaced."""

PRELOAD_OFF, PRELOAD_FRAMEWORK, PRELOAD_APP = PRELOADS = ("off", "framework", "app")
"""How much the preload process imports; ``off``: there is none."""

SERVER_LABEL = "Server"
"""The part of a name that marks a process that serves requests."""

WORKER_PREFIX = "Sanic-" if release.startswith("23.") else "Sanic"
"""The prefix of the names of processes, as in the installed release: with its dash until 23.12."""

NAME_LIMIT = 80
"""The largest number of characters of a name in a log line."""

TEXT_LIMIT = 200
"""The same of another text from outside: with a name, less than 300 characters."""

# The largest number of names in a log line.
MAX_LISTED = 20

_repr = Repr()
_repr.maxstring = _repr.maxother = TEXT_LIMIT


def excerpt(value: object, limit: int = TEXT_LIMIT, *, quoted: bool = False) -> str:
    """Return a value from outside as text for a log line: on one line, and cut in its middle above a limit.

    A ``str`` and the message of an exception stand as they are, any other object as its ``repr``. Characters
    that are not printable are escaped: a line break would make two lines of one event.

    Args:
        value (object): The value. Its own methods may fail.
        limit (int): The largest number of characters to return.
        quoted (bool): Show a ``str`` as its ``repr`` too. Defaults to ``False``.
    """
    try:
        is_text = isinstance(value, (str, BaseException)) and not quoted
        # An exact str: a method of a subclass may fail too.
        text = str.__str__(str(value) if is_text else _repr.repr(value))
    except BaseException:
        text = f"<{type(value).__name__} whose repr fails>"
    if len(text) > limit:
        # Escapes only lengthen it.
        text = f"{text[:limit]}{text[-limit:]}"
    shown = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    if len(shown) <= limit:
        return shown
    tail = limit // 3
    return f"{shown[: limit - tail - 3]}...{shown[-tail:]}"


def listed(names: Sequence[str]) -> str:
    """Return names from outside as a list for a log line: ``a, b and 980 more``."""
    shown = ", ".join(excerpt(name, NAME_LIMIT) for name in names[:MAX_LISTED])
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return excerpt(shown, NAME_LIMIT + TEXT_LIMIT) + more


def prefixed(prefix: str, name: str) -> str:
    """Return a prefix and a name, joined by one dash: ``Sanic-Server-0``."""
    return f"{prefix.removesuffix('-')}-{name}"


class RestartOrder(UpperStrEnum):
    """The order of a restart.

    ``SHUTDOWN_FIRST``
        The old process is stopped, then the new one is started.
    ``STARTUP_FIRST``
        The new process is started. The old one is stopped when the new one has acknowledged its start
        ("zero downtime").
    """

    SHUTDOWN_FIRST = auto()
    STARTUP_FIRST = auto()


class ProcessState(IntEnum):
    """The states of a process, in their usual order.

    The order matters: :meth:`~worker.process.WorkerProcess.set_state` refuses to go back unless it is forced
    to. ``worker_state`` holds the *name* of a member.
    """

    NONE = auto()
    IDLE = auto()
    RESTARTING = auto()
    STARTING = auto()
    STARTED = auto()
    ACKED = auto()
    JOINED = auto()
    TERMINATED = auto()
    FAILED = auto()
    COMPLETED = auto()


class ExitCode(IntEnum):
    """The exit codes of the main process."""

    STOPPED = 0
    """The server was stopped, and all processes ended in order."""
    NOT_STARTED = 1
    """A worker could not start, or the main process failed."""
    WRONG_USAGE = 2
    """The command, a setting or the application it names is wrong."""
    CRASH_LOOP = 3
    """No worker was left that could run."""
    KILLED = 4
    """The server was stopped, and processes had to be killed."""


class Phase(Enum):
    """The phase of a slot in its lifecycle."""

    STOPPED = "no process runs, and none is started by itself"
    STARTING = "its process is not ready yet, and no other one serves"
    READY = "its process is ready"
    REPLACING = "its process is not ready yet; the previous one serves"
    DRAINING = "a process is stopping; the next one is started when it has exited"
    BACKOFF = "its process exited; the next one is started when the backoff is over"
    FAILED = "its processes exited too often; none is started unless a restart or a scaling asks for it"
    STOPPING = "its processes were stopped, and none is started after them"


def accept_newer_keywords(method: Callable[P, R]) -> Callable[P, R]:
    """Let a method that names a worker ``ident`` accept the keywords of releases from 24.12 on.

    In these, ``name`` is the worker's name, and ``ident`` is the short label before its log lines. The method
    itself receives the name as ``ident`` and the label, if there is one, as ``label``.
    """

    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        named = "name" in kwargs
        if "ident" in kwargs and (named or len(args) > 1):
            kwargs["label"] = kwargs.pop("ident")
        if named:
            kwargs["ident"] = kwargs.pop("name")
        return cast(Callable[..., Any], method)(*args, **kwargs)

    return cast(Callable[P, R], call)
