"""Every setting of ours: its name, type, default and meaning, and where it may come from.

A setting is given to ``WorkerManager(...)``, to ``worker.install(...)`` or in the environment as
``SANIC_WORKER_<NAME>``; the later of these wins. They are resolved once, in main.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["SETTINGS", "Setting", "Settings", "resolve"]

ENV_PREFIX = "SANIC_WORKER_"
# What Sanic itself takes when nobody has set GRACEFUL_SHUTDOWN_TIMEOUT, and what main adds to it, seconds.
GRACEFUL_SHUTDOWN_TIMEOUT = 15.0
GRACE = 5.0

# What the state takes empty, and some room; and what it may take, as far as it is used, bytes.
MIN_CEILING = 8 << 20
CEILING = 1 << 30
MAX_CEILING = 16 << 30

# What install() was given.
_installed: dict[str, Any] = {}


@dataclass(frozen=True)
class Settings:
    """The settings of one manager, each resolved and checked."""

    max_workers: int
    graceful_timeout: float
    state_ceiling: int


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        name: As a keyword; in the environment in upper case, after ``SANIC_WORKER_``.
        parse: Makes the value from text or from a value; raises ``ValueError`` or ``TypeError``.
        default: Makes the value that holds where nobody gave one.
        wants: What would be right, in words, for the message that refuses a wrong one.
        meaning: What it does.
    """

    name: str
    parse: Callable[[Any], Any]
    default: Callable[[], Any]
    wants: str
    meaning: str


def _whole(value: Any) -> int:
    number = int(value)
    if isinstance(value, (bool, float)) or number < 1:
        raise ValueError(value)
    return number


def _ceiling(value: Any) -> int:
    number = _whole(value)
    if not MIN_CEILING <= number <= MAX_CEILING:
        raise ValueError(value)
    return number


def _seconds(value: Any) -> float:
    seconds = float(value)
    if isinstance(value, bool) or not 0 <= seconds < float("inf"):
        raise ValueError(value)
    return seconds


def _max_workers() -> int:
    return max(64, 8 * (os.cpu_count() or 1))


def _graceful_timeout() -> float:
    from sanic import Sanic

    timeouts = [
        float(app.config.get("GRACEFUL_SHUTDOWN_TIMEOUT", GRACEFUL_SHUTDOWN_TIMEOUT))
        for app in Sanic._app_registry.values()
    ]
    return max(timeouts, default=GRACEFUL_SHUTDOWN_TIMEOUT) + GRACE


SETTINGS = (
    Setting(
        "max_workers",
        _whole,
        _max_workers,
        "a whole number from 1 on",
        "The most servers that scaling may ask for, and the most processes of one managed worker that is "
        "asked for over the pipe. Default: 8 times the number of cores, at least 64.",
    ),
    Setting(
        "graceful_timeout",
        _seconds,
        _graceful_timeout,
        "a number of seconds from 0 on",
        "How long a process that was told to leave may take before it is killed, seconds. Default: the "
        "largest GRACEFUL_SHUTDOWN_TIMEOUT of the applications in main (Sanic's default: 15) and 5 more.",
    ),
    Setting(
        "state_ceiling",
        _ceiling,
        lambda: CEILING,
        f"a whole number of bytes from {MIN_CEILING} to {MAX_CEILING}",
        "How much memory the state of the workers may take, bytes; it is taken as it is used. "
        "Default: 1 GiB, or as much of it as a process may have.",
    ),
)


def install(given: Mapping[str, Any]) -> None:
    """Keep what ``worker.install()`` was given, for every manager from now on.

    Raises:
        TypeError: There is no setting of that name.
        ValueError: A value is wrong.
    """
    known = {setting.name: setting for setting in SETTINGS}
    for name, value in given.items():
        if name not in known:
            raise TypeError(f"There is no setting {name!r}; there are: {', '.join(known)}")
        _check(known[name], value, "worker.install()")
    _installed.update(given)


def forget() -> None:
    """Drop what ``worker.install()`` was given."""
    _installed.clear()


def resolve(given: Mapping[str, Any]) -> Settings:
    """The settings of a manager.

    Args:
        given (Mapping[str, Any]): What its constructor was given; ``None`` stands for nothing.

    Raises:
        ValueError: A value is wrong; the message names the setting, the value and what would be right.
    """
    values = {}
    for setting in SETTINGS:
        sources = (
            (os.environ.get(ENV_PREFIX + setting.name.upper()), ENV_PREFIX + setting.name.upper()),
            (_installed.get(setting.name), "worker.install()"),
            (given.get(setting.name), "WorkerManager()"),
        )
        for value, source in sources:
            if value is not None:
                values[setting.name] = _check(setting, value, source)
                break
        else:
            values[setting.name] = setting.default()
    return Settings(**values)


def checked(name: str, value: Any, source: str) -> Any:
    """The value of one setting, from ``source``.

    Raises:
        ValueError: It is wrong; the message says what would be right.
    """
    return _check(next(setting for setting in SETTINGS if setting.name == name), value, source)


def _check(setting: Setting, value: Any, source: str) -> Any:
    try:
        return setting.parse(value)
    except (TypeError, ValueError):
        raise ValueError(
            f"{setting.name} of {source} cannot be {value!r}: it takes {setting.wants}"
        ) from None
