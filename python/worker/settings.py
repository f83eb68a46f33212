"""Every setting of ours: its name, type, default and meaning, and where it may come from.

A setting is given to ``WorkerManager(...)``, to ``worker.install(...)``, in the environment as
``SANIC_WORKER_<NAME>`` or to the command as ``--<name>``; the later of these wins. They are resolved once, in
main, and travel to the children on their process object.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from sanic.log import logger

from worker._core import IS_NATIVE
from worker.constants import RestartOrder

__all__ = ["SETTINGS", "Setting", "Settings", "resolve"]

ENV_PREFIX = "SANIC_WORKER_"
# What Sanic itself takes when nobody has set GRACEFUL_SHUTDOWN_TIMEOUT, and what main adds to it, seconds.
GRACEFUL_SHUTDOWN_TIMEOUT = 15.0
GRACE = 5.0

# What the state takes empty, and some room; and what it may take, as far as it is used, bytes.
MIN_STATE_BYTES = 8 << 20
DEFAULT_STATE_BYTES = 1 << 30
MAX_STATE_BYTES = 16 << 30

YES = frozenset({"true", "yes", "on", "1"})
NO = frozenset({"false", "no", "off", "0"})

# When a process that has died is replaced.
POLICIES = ("always", "on-failure", "never")

# The settings that do not need a manager: they hold in a server of a single process as well.
IN_ANY_SERVER = frozenset({"idle_drain_timeout", "unix_mode"})

# What install() was given, and what the flags of the command say.
_installed: dict[str, Any] = {}
_flags: dict[str, Any] = {}
# Sanic's own in the environment.
_SANICS = frozenset({"NAME", "IDENTIFIER", "PROCESS"})
_warned: set[str] = set()


@dataclass(frozen=True)
class Settings:
    """The settings of one manager, each resolved and checked."""

    max_workers: int
    graceful_timeout: float
    state_max_bytes: int
    restart_policy: str
    backoff_initial: float
    backoff_max: float
    max_consecutive_failures: int
    min_uptime: float
    max_surge: int
    max_unavailable: int
    canary: bool
    reload_order: RestartOrder
    reload_ignore: tuple[str, ...]
    idle_drain_timeout: float
    unix_mode: int | None
    inspector_open: bool


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        name: As a keyword; in the environment in upper case, after ``SANIC_WORKER_``; as a flag with dashes.
        parse: Makes the value from text or from a value; raises ``ValueError`` or ``TypeError``.
        default: Makes the value that holds where nobody gave one.
        wants: What would be right, in words, for the message that refuses a wrong one.
        meaning: What it does.
        otherwise: The default in words.
        native: Whether it is of no use without the native core, and refused there.
    """

    name: str
    parse: Callable[[Any], Any]
    default: Callable[[], Any]
    wants: str
    meaning: str
    otherwise: str
    native: bool = False

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return ENV_PREFIX + self.name.upper()

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        return "--" + self.name.replace("_", "-")


def _whole(value: Any) -> int:
    number = int(value)
    if isinstance(value, (bool, float)) or number < 1:
        raise ValueError(value)
    return number


def _state_bytes(value: Any) -> int:
    number = _whole(value)
    if not MIN_STATE_BYTES <= number <= MAX_STATE_BYTES:
        raise ValueError(value)
    return number


def _seconds(value: Any) -> float:
    seconds = float(value)
    if isinstance(value, bool) or not 0 <= seconds < float("inf"):
        raise ValueError(value)
    return seconds


def _policy(value: Any) -> str:
    if value not in POLICIES:
        raise ValueError(value)
    return str(value)


def _order(value: Any) -> RestartOrder:
    return RestartOrder(str(value).upper())


def _mode(value: Any) -> int:
    mode = value if type(value) is int else int(str(value), 8)
    if not 0 <= mode <= 0o777:
        raise ValueError(value)
    return mode


def _yes_or_no(value: Any) -> bool:
    text = str(value).strip().lower()
    if text not in YES | NO:
        raise ValueError(value)
    return text in YES


def _patterns(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = value.splitlines() if "\n" in value.strip() else value.split(",")
    patterns = tuple(filter(None, map(str.strip, value)))
    compile_patterns(patterns)
    return patterns


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


def _max_workers() -> int:
    return max(64, 8 * (os.cpu_count() or 1))


def _graceful_timeout() -> float:
    from sanic import Sanic

    timeouts = [
        float(app.config.get("GRACEFUL_SHUTDOWN_TIMEOUT", GRACEFUL_SHUTDOWN_TIMEOUT))
        for app in Sanic._app_registry.values()
    ]
    return max(timeouts, default=GRACEFUL_SHUTDOWN_TIMEOUT) + GRACE


WHOLE = "a whole number from 1 on"
SECONDS = "a number of seconds from 0 on"

SETTINGS = (
    Setting(
        "max_workers",
        _whole,
        _max_workers,
        WHOLE,
        "The most servers that scaling may ask for, and the most processes of one managed worker that is "
        "asked for over the pipe.",
        "8 times the number of cores, at least 64",
    ),
    Setting(
        "graceful_timeout",
        _seconds,
        _graceful_timeout,
        SECONDS,
        "How long a process that was told to leave may take before it is killed, seconds.",
        "the largest `GRACEFUL_SHUTDOWN_TIMEOUT` of the applications (Sanic's default: 15) and 5 more",
    ),
    Setting(
        "state_max_bytes",
        _state_bytes,
        lambda: DEFAULT_STATE_BYTES,
        f"a whole number of bytes from {MIN_STATE_BYTES} to {MAX_STATE_BYTES}",
        "How much memory the state of the workers may take, bytes; it is taken as it is used.",
        "1 GiB, or a twentieth of the address space that main may have (`ulimit -v`)",
        native=True,
    ),
    Setting(
        "restart_policy",
        _policy,
        lambda: "always",
        "one of " + ", ".join(POLICIES),
        "When a server process that ends while it should run is replaced: always, on-failure (any exit "
        "code but 0) or never.",
        "always",
    ),
    Setting(
        "backoff_initial",
        _seconds,
        lambda: 0.1,
        SECONDS,
        "How long a process that had not served for `min_uptime` waits for its restart, seconds; "
        "doubled by each such death in a row, give or take a fifth.",
        "0.1",
    ),
    Setting(
        "backoff_max",
        _seconds,
        lambda: 30.0,
        SECONDS,
        "The longest such wait, seconds.",
        "30",
    ),
    Setting(
        "max_consecutive_failures",
        _whole,
        lambda: 8,
        WHOLE,
        "After how many deaths in a row, of processes that had not served for `min_uptime`, a worker is "
        "FAILED, and not started again until a restart or a scaling asks for it.",
        "8",
    ),
    Setting(
        "min_uptime",
        _seconds,
        lambda: 10.0,
        SECONDS,
        "How long a process has to serve to count as stable, seconds: when it dies later, it is replaced "
        "at once.",
        "10",
    ),
    Setting(
        "max_surge",
        _whole,
        lambda: 1,
        WHOLE,
        "How many new workers a zero-downtime restart starts at a time, beside those that serve.",
        "1",
    ),
    Setting(
        "max_unavailable",
        _whole,
        lambda: 1,
        WHOLE,
        "How many of several workers a restart with SHUTDOWN_FIRST takes out of service at a time; one of "
        "them always stays.",
        "1",
    ),
    Setting(
        "canary",
        _yes_or_no,
        lambda: True,
        "on or off",
        "Whether a restart of servers that serve begins with one of them, which is kept until the new one "
        "serves; not with `reload_order` SHUTDOWN_FIRST, nor under HTTP/3.",
        "on",
    ),
    Setting(
        "reload_order",
        _order,
        lambda: RestartOrder.STARTUP_FIRST,
        "one of " + ", ".join(RestartOrder),
        "The order of a restart because of changed files: with STARTUP_FIRST, code that does not start "
        "never stops a worker that serves.",
        "STARTUP_FIRST",
    ),
    Setting(
        "reload_ignore",
        _patterns,
        tuple,
        "patterns as in a .gitignore, as a list or in a text with commas or line ends between them",
        "What the reloader ignores in the directories that it watches, besides what it ignores anyway "
        '(README, "The reloader"); a pattern that begins with ! watches again what one before it ignores.',
        "nothing more",
    ),
    Setting(
        "idle_drain_timeout",
        _seconds,
        lambda: 1.0,
        SECONDS,
        "How long a worker that is stopping keeps a connection open on which no request comes, seconds.",
        "1",
    ),
    Setting(
        "unix_mode",
        _mode,
        lambda: None,
        "the permissions of a file in octal digits, from 000 to 777",
        "The permissions of the unix socket that is listened on, as `chmod` takes them.",
        "666, as Sanic has it",
    ),
    Setting(
        "inspector_open",
        _yes_or_no,
        lambda: False,
        "true or false",
        "Whether the inspector may listen without an API key on an address that other machines reach. Anyone "
        "who reaches it can stop the server. Requests must name it by its IP address.",
        "false",
    ),
)
_BY_NAME = {setting.name: setting for setting in SETTINGS}


def install(given: Mapping[str, Any]) -> None:
    """Keep what ``worker.install()`` was given, for every manager from now on.

    Raises:
        TypeError: There is no setting of that name.
        ValueError: A value is wrong.
    """
    for name, value in given.items():
        if name not in _BY_NAME:
            raise TypeError(f"There is no setting {name!r}; there are: {', '.join(_BY_NAME)}")
        checked(name, value, "worker.install()")
    _installed.update(given)


def take_flags(given: Mapping[str, str]) -> None:
    """Keep what the flags of the command say, by the names of the settings.

    Raises:
        ValueError: A value is wrong.
    """
    for name, value in given.items():
        checked(name, value, _BY_NAME[name].flag)
    _flags.update(given)


def warn_without_manager() -> None:
    """Name the flags given that have no effect in a server of a single process, in one warning."""
    flags = [one.flag for one in SETTINGS if one.name in _flags and one.name not in IN_ANY_SERVER]
    if flags:
        verb = "has" if len(flags) == 1 else "have"
        logger.warning("%s %s no effect with --single-process", ", ".join(flags), verb)


def forget() -> None:
    """Drop what ``worker.install()`` was given, and what the flags said."""
    _installed.clear()
    _flags.clear()


def resolve(given: Mapping[str, Any]) -> Settings:
    """The settings of a manager.

    Args:
        given (Mapping[str, Any]): What its constructor was given; ``None`` stands for nothing, and what is no
            setting is left alone.

    Raises:
        ValueError: A value is wrong, or two of them do not agree; the message names the setting, the value
            and what would be right.
    """
    values, sources = {}, {}
    for setting in SETTINGS:
        found = (
            (_flags.get(setting.name), setting.flag),
            (_environment(setting.variable), setting.variable),
            (_installed.get(setting.name), "worker.install()"),
            (given.get(setting.name), "WorkerManager()"),
        )
        for value, source in found:
            if value is not None:
                values[setting.name], sources[setting.name] = checked(setting.name, value, source), source
                break
        else:
            values[setting.name] = setting.default()
    resolved = Settings(**values)
    if (
        resolved.backoff_initial > resolved.backoff_max
        and {"backoff_initial", "backoff_max"} <= sources.keys()
    ):
        raise ValueError(
            f"backoff_initial of {sources['backoff_initial']}, {resolved.backoff_initial:g}, is more than "
            f"backoff_max of {sources['backoff_max']}, {resolved.backoff_max:g}: it takes at most that"
        )
    return resolved


def warn_of_unknown_names() -> None:
    """Tell, once each, of names in the environment that look like settings and are none."""
    for variable in sorted(os.environ):
        name = variable.removeprefix(ENV_PREFIX)
        if name == variable or name in _SANICS or name.lower() in _BY_NAME or variable in _warned:
            continue
        if _environment(variable) is None:
            continue
        _warned.add(variable)
        near = get_close_matches(name.lower(), _BY_NAME, 1)
        hint = f"did you mean {_BY_NAME[near[0]].variable}?" if near else f"there are: {', '.join(_BY_NAME)}"
        logger.warning("%s in the environment is no setting of sanic-worker; %s", variable, hint)


def _environment(variable: str) -> str | None:
    """Return the value of a variable; ``None`` where it is unset or has only whitespace."""
    value = os.environ.get(variable, "")
    return value if value.strip() else None


def checked(name: str, value: Any, source: str) -> Any:
    """The value of one setting, from ``source``.

    Raises:
        ValueError: It is wrong, or needs the native core, which is missing; the message says what to do.
    """
    setting = _BY_NAME[name]
    if setting.native and not IS_NATIVE:
        raise ValueError(
            f"{name} of {source} needs the native core, which is not at work here (see worker.core_info()): "
            "install it, or take the setting away"
        )
    try:
        return setting.parse(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} of {source} cannot be {value!r}: it takes {setting.wants}") from None
