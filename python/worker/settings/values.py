"""Reads the values of settings, each from text or from an object of the right type.

Each function raises ``TypeError`` or ``ValueError`` for any other value.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, NamedTuple

from worker._core import IS_NATIVE
from worker.constants import POLICIES, PRELOADS, RestartOrder

# Sanic's default, and the time that the main process adds to an application's timeout, seconds.
GRACEFUL_SHUTDOWN_TIMEOUT = 15.0
GRACE = 5.0

# An empty state fits into the minimum, with some room. Memory is taken as it is used.
MIN_STATE_BYTES = 8 << 20
DEFAULT_STATE_BYTES = 1 << 30
MAX_STATE_BYTES = 16 << 30

MAX_PORT = 65535
# The address of a unix socket has room for 107 bytes. Sanic first binds a name that is longer by 44.
MAX_SOCKET_PATH = 107 - 44

# Below this, the beats of an idle server would cost too much, seconds.
MIN_HANG_TIMEOUT = 2.0
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
AUTO = "auto"
RANGE = ".."

YES = frozenset({"true", "yes", "on", "1"})
NO = frozenset({"false", "no", "off", "0"})


class Workers(NamedTuple):
    """The allowed numbers of servers, from the least to the most. The server starts with the least."""

    least: int
    most: int

    @property
    def is_range(self) -> bool:
        """Whether the number may change with the load."""
        return self.least < self.most

    def __str__(self) -> str:
        return f"{self.least}{RANGE}{self.most}" if self.is_range else str(self.least)


def whole(value: Any) -> int:
    """Read a whole number from 1 on."""
    number = int(value)
    if isinstance(value, (bool, float)) or number < 1:
        raise ValueError(value)
    return number


def state_bytes(value: Any) -> int:
    """Read a size of the state, bytes."""
    number = whole(value)
    if not MIN_STATE_BYTES <= number <= MAX_STATE_BYTES:
        raise ValueError(value)
    return number


def seconds(value: Any) -> float:
    """Read a number of seconds from 0 on."""
    number = float(value)
    if isinstance(value, bool) or not 0 <= number < float("inf"):
        raise ValueError(value)
    return number


def positive_seconds(value: Any) -> float:
    """Read a number of seconds above 0."""
    number = seconds(value)
    if number == 0:
        raise ValueError(value)
    return number


def seconds_or_off(value: Any) -> float:
    """Read a number of seconds, or an ``off``, which is 0."""
    return 0.0 if str(value).strip().lower() in NO - {"1"} else positive_seconds(value)


def hang_timeout(value: Any) -> float:
    """Read a limit of the time without progress, seconds; 0 is off."""
    number = seconds_or_off(value)
    if 0 < number < MIN_HANG_TIMEOUT:
        raise ValueError(value)
    return number


def fraction(value: Any) -> float:
    """Read a number from 0 to 1."""
    number = seconds(value)
    if number > 1:
        raise ValueError(value)
    return number


def percent(value: Any) -> float:
    """Read a percentage above 0."""
    number = positive_seconds(str(value).strip().removesuffix("%"))
    if number > 100:
        raise ValueError(value)
    return number


def size(value: Any) -> int:
    """Read a number of bytes: a whole number, or a number with a unit (``200M``, in powers of 1024)."""
    if type(value) is int:
        number = value
    else:
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", str(value), re.IGNORECASE)
        if isinstance(value, (bool, float)) or found is None:
            raise ValueError(value)
        number = int(float(found[1]) * UNITS[found[2].upper()])
    if number < 1:
        raise ValueError(value)
    return number


def workers(value: Any) -> Workers:
    """Read a number of servers, or a range of numbers; ``auto`` stands for the number of CPUs."""
    least, is_range, most = str(value).strip().lower().partition(RANGE)
    ends = (least, most if is_range else least)
    low, high = (0 if end.strip() == AUTO else whole(end) for end in ends)
    if isinstance(value, (bool, float)) or 0 < high < low:
        raise ValueError(value)
    if not (low and high):
        # Imported on use: a fixed number needs none of it.
        from worker._system.cgroup import available_cpus

        cpus = available_cpus()
        low = low or min(cpus, high or cpus)
        high = high or max(cpus, low)
    return Workers(low, high)


def path(value: Any) -> str:
    """Read the path of a file; return it as an absolute one."""
    text = os.fspath(value)
    if not isinstance(text, str) or not text.strip() or "\0" in text or text.endswith("/"):
        raise ValueError(value)
    return os.path.abspath(text)


def account(value: Any) -> str:
    """Read the name or the number of a user or a group."""
    if isinstance(value, (bool, float)) or not re.fullmatch(r"\s*[^\s:/]+\s*", str(value)):
        raise ValueError(value)
    return str(value).strip()


def port(value: Any) -> int:
    """Read the number of a TCP port."""
    number = whole(value)
    if number > MAX_PORT:
        raise ValueError(value)
    return number


def host(value: Any) -> str:
    """Read a host to listen on."""
    if not isinstance(value, str) or not re.fullmatch(r"\s*[\w.:%-]+\s*", value):
        raise ValueError(value)
    return value.strip()


def policy(value: Any) -> str:
    """Read a restart policy."""
    if value not in POLICIES:
        raise ValueError(value)
    return str(value)


def preload(value: Any) -> str:
    """Read what the preload process imports."""
    if value not in PRELOADS:
        raise ValueError(value)
    return str(value)


def order(value: Any) -> RestartOrder:
    """Read the order of a restart."""
    return RestartOrder(str(value).upper())


def mode(value: Any) -> int:
    """Read the permissions of a file, octal as text."""
    bits = value if type(value) is int else int(str(value), 8)
    if not 0 <= bits <= 0o777:
        raise ValueError(value)
    return bits


def socket_path(value: Any) -> str:
    """Read the path of a unix socket; return it as an absolute one."""
    text = os.fspath(value)
    if not isinstance(text, str) or not text or "\0" in text:
        raise ValueError(value)
    path = os.path.abspath(text)
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise ValueError(value)
    return path


def yes_or_no(value: Any) -> bool:
    """Read a yes or a no."""
    text = str(value).strip().lower()
    if text not in YES | NO:
        raise ValueError(value)
    return text in YES


def has_library(name: str) -> bool:
    """Return whether a module is installed, without importing it."""
    from importlib.util import find_spec

    # An import that was forbidden in `sys.modules`.
    with suppress(ValueError):
        return find_spec(name) is not None
    return False


def patterns(value: Any) -> tuple[str, ...]:
    """Read patterns: separated by commas, or one on each line."""
    if isinstance(value, str):
        value = value.splitlines() if "\n" in value.strip() else value.split(",")
    stripped = tuple(filter(None, map(str.strip, value)))
    compile_patterns(stripped)
    return stripped


def compile_patterns(patterns: Iterable[str]) -> list[Any]:
    """Compile patterns as in a ``.gitignore`` (https://git-scm.com/docs/gitignore).

    Raises:
        ValueError: One of them is not a pattern.
    """
    # Costly to import, and needed only by a reloader and for patterns that are given.
    from pathspec import GitIgnoreSpec

    try:
        with warnings.catch_warnings():
            # A future meaning of nested sets in a class: ``_reload.ignore`` escapes them.
            warnings.simplefilter("ignore", FutureWarning)
            return [*GitIgnoreSpec.from_lines(patterns).patterns]
    except re.error as exc:
        raise ValueError(f"no pattern: {exc}") from None


def is_debugged() -> bool:
    """Return whether an application runs with ``--debug`` or ``--dev``."""
    from sanic import Sanic

    return any(app.debug for app in Sanic._app_registry.values())


def default_hang_timeout() -> float:
    """Return the default of ``hang_timeout``, seconds."""
    return 60.0 if IS_NATIVE and not is_debugged() else 0.0


def default_slow_loop_warning() -> float:
    """Return the default of ``slow_loop_warning``, seconds."""
    return 0.1 if is_debugged() else 1.0


def max_workers() -> int:
    """Return the default of ``max_workers``."""
    return max(64, 8 * (os.cpu_count() or 1))


def graceful_timeout() -> float:
    """Return the default of ``graceful_timeout``, seconds."""
    from sanic import Sanic

    timeouts = [
        float(app.config.get("GRACEFUL_SHUTDOWN_TIMEOUT", GRACEFUL_SHUTDOWN_TIMEOUT))
        for app in Sanic._app_registry.values()
    ]
    return max(timeouts, default=GRACEFUL_SHUTDOWN_TIMEOUT) + GRACE
