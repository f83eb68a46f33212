"""Reads the values of settings, each from text or from an object of the right type.

Each function raises ``TypeError`` or ``ValueError`` for any other value.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from worker.constants import POLICIES, RestartOrder

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

YES = frozenset({"true", "yes", "on", "1"})
NO = frozenset({"false", "no", "off", "0"})


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
