"""Define every setting: its name, type, default, meaning and sources.

A setting is given to ``WorkerManager(...)``, to ``worker.install(...)``, in the environment as
``SANIC_WORKER_<NAME>`` or to the command as ``--<name>``; the later of these wins. The main process resolves
all settings once. They travel to the children on their process object.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from sanic.log import logger

from worker._core import IS_NATIVE
from worker.constants import ALWAYS, POLICIES, RestartOrder, excerpt
from worker.settings import values

__all__ = ["SETTINGS", "Setting", "Settings", "resolve"]

ENV_PREFIX = "SANIC_WORKER_"

# These settings need no manager: they hold in a server of a single process as well.
IN_ANY_SERVER = frozenset({"idle_drain_timeout", "unix_mode"})

# From install(), and from the flags of the command.
_installed: dict[str, Any] = {}
_flags: dict[str, Any] = {}
# Sanic's own variables with this prefix.
_SANICS = frozenset({"NAME", "IDENTIFIER", "PROCESS"})
_warned: set[str] = set()


# Each worker imports this module. A dataclass takes several times as long to define as a named tuple.
class Settings(NamedTuple):
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
    health_open: bool
    health_port: int | None
    health_host: str
    inspector_unix: str
    process_titles: bool


class Setting(NamedTuple):
    """One setting.

    Attributes:
        name: The keyword; the variable and the flag are made from it.
        parse: Makes the value from text or from a value; raises ``ValueError`` or ``TypeError``.
        default: Makes the value that holds where none was given.
        allowed: The allowed values in words, for the message that refuses any other.
        meaning: The effect in words.
        default_text: The default in words.
        native: Whether the setting needs the native core, and is refused without it.
        library: The library that the setting needs to be on, and is refused without.
        choices: All allowed values, if they are few.
    """

    name: str
    parse: Callable[[Any], Any]
    default: Callable[[], Any]
    allowed: str
    meaning: str
    default_text: str
    native: bool = False
    library: str = ""
    choices: Sequence[str] = ()

    @property
    def variable(self) -> str:
        """The name in the environment."""
        return ENV_PREFIX + self.name.upper()

    @property
    def flag(self) -> str:
        """The name on the command line."""
        return "--" + self.name.replace("_", "-")


WHOLE = "a whole number from 1 on"
SECONDS = "a number of seconds from 0 on"
TITLES = "setproctitle"

SETTINGS = (
    Setting(
        "max_workers",
        values.whole,
        values.max_workers,
        WHOLE,
        "Largest number of servers that a scaling may request. Also the largest number of processes of a "
        "managed worker that is requested over the control channel.",
        "8 times the number of cores, at least 64",
    ),
    Setting(
        "graceful_timeout",
        values.seconds,
        values.graceful_timeout,
        SECONDS,
        "Time that a process has to exit after its stop, in seconds. Then it is killed.",
        "the largest `GRACEFUL_SHUTDOWN_TIMEOUT` of the applications (Sanic's default: 15) plus 5",
    ),
    Setting(
        "state_max_bytes",
        values.state_bytes,
        lambda: values.DEFAULT_STATE_BYTES,
        f"a whole number of bytes from {values.MIN_STATE_BYTES} to {values.MAX_STATE_BYTES}",
        "Memory that the state of the workers may take, in bytes. It is taken as it is used.",
        "1 GiB, or a twentieth of the main process's address space (`ulimit -v`) if that is less",
        native=True,
    ),
    Setting(
        "restart_policy",
        values.policy,
        lambda: ALWAYS,
        "one of " + ", ".join(POLICIES),
        "When a server that exits unasked is started again: always, on-failure (exit code not 0) or never.",
        ALWAYS,
        choices=POLICIES,
    ),
    Setting(
        "backoff_initial",
        values.seconds,
        lambda: 0.1,
        SECONDS,
        "Delay before the next start after a process that served for less than `min_uptime`, in seconds. "
        "Each such exit in a row doubles it, give or take a fifth.",
        "0.1",
    ),
    Setting(
        "backoff_max",
        values.seconds,
        lambda: 30.0,
        SECONDS,
        "Longest such delay, in seconds.",
        "30",
    ),
    Setting(
        "max_consecutive_failures",
        values.whole,
        lambda: 8,
        WHOLE,
        "Number of exits in a row, each after less than `min_uptime`, that make a worker FAILED. It is then "
        "started again only by a restart or a scaling.",
        "8",
    ),
    Setting(
        "min_uptime",
        values.seconds,
        lambda: 10.0,
        SECONDS,
        "Time that a process must serve to count as stable, in seconds. If it exits later, it is started "
        "again at once.",
        "10",
    ),
    Setting(
        "max_surge",
        values.whole,
        lambda: 1,
        WHOLE,
        "Number of new workers that a zero-downtime restart starts at a time, beside those that serve.",
        "1",
    ),
    Setting(
        "max_unavailable",
        values.whole,
        lambda: 1,
        WHOLE,
        "Number of workers that a restart with SHUTDOWN_FIRST takes out of service at a time. If there are "
        "several, one always stays in service.",
        "1",
    ),
    Setting(
        "canary",
        values.yes_or_no,
        lambda: True,
        "on or off",
        "Whether a restart of servers begins with one of them, which is kept until its new process serves. "
        "Not with `reload_order` SHUTDOWN_FIRST, nor under HTTP/3.",
        "on",
    ),
    Setting(
        "reload_order",
        values.order,
        lambda: RestartOrder.STARTUP_FIRST,
        "one of " + ", ".join(RestartOrder),
        "Order of a restart after a change of files. With STARTUP_FIRST, code that does not start stops no "
        "worker that serves.",
        "STARTUP_FIRST",
        choices=[order.value for order in RestartOrder],
    ),
    Setting(
        "reload_ignore",
        values.patterns,
        tuple,
        "patterns as in a .gitignore, as a list or in a text with commas or line ends between them",
        "Patterns that the reloader ignores in the watched directories, beside its own (README, "
        '"The reloader"). A pattern that begins with ! watches again the files that an earlier one ignores.',
        "none",
    ),
    Setting(
        "idle_drain_timeout",
        values.seconds,
        lambda: 1.0,
        SECONDS,
        "Time that a stopping worker keeps an idle connection open, in seconds.",
        "1",
    ),
    Setting(
        "unix_mode",
        values.mode,
        lambda: None,
        "the permissions of a file in octal digits, from 000 to 777",
        "Permissions of the unix socket that the server listens on, as for `chmod`.",
        "666, as in Sanic",
    ),
    Setting(
        "inspector_open",
        values.yes_or_no,
        lambda: False,
        "true or false",
        "Whether the inspector may listen without an API key on an address that other machines reach. Any "
        "client that reaches it can stop the server. Requests must name it by its IP address.",
        "false",
    ),
    Setting(
        "health_open",
        values.yes_or_no,
        lambda: False,
        "true or false",
        "Whether the inspector answers `/livez` and `/readyz` without its API key, and to requests from any "
        "page and with any host name.",
        "false",
    ),
    Setting(
        "health_port",
        values.port,
        lambda: None,
        f"the number of a TCP port from 1 to {values.MAX_PORT}",
        "Port on which a process of its own answers `/livez`, `/readyz` and `/metrics` without a key. No "
        "inspector is needed.",
        "none: no such process",
    ),
    Setting(
        "health_host",
        values.host,
        lambda: "127.0.0.1",
        "the name or the IP address of a host",
        "Host on which the process of `health_port` listens. Any client that reaches it can read how the "
        "server is.",
        "127.0.0.1",
    ),
    Setting(
        "inspector_unix",
        values.socket_path,
        str,
        f"the path of a file, of at most {values.MAX_SOCKET_PATH} bytes",
        "Path of the unix socket that the inspector listens on, with mode 600. It then opens no TCP port and "
        "serves no TLS. `sanic inspect` cannot use it; `sanic-worker inspect --unix` does.",
        "none",
    ),
    Setting(
        "process_titles",
        values.yes_or_no,
        lambda: values.has_library(TITLES),
        "on or off",
        "Whether `ps` shows the children of the main process as `sanic-worker: <name> <application>`, in "
        "place of a command line. The main process keeps its own.",
        "on, if the library setproctitle is installed",
        library=TITLES,
    ),
)
_BY_NAME = {setting.name: setting for setting in SETTINGS}


def install(given: Mapping[str, Any]) -> None:
    """Keep the settings given to ``worker.install()`` for every manager from now on.

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
    """Keep the settings given as flags of the command, by name.

    Raises:
        ValueError: A value is wrong.
    """
    for name, value in given.items():
        checked(name, value, _BY_NAME[name].flag)
    _flags.update(given)


def warn_without_manager() -> None:
    """Log one warning that names the flags without an effect in a server of a single process."""
    flags = [one.flag for one in SETTINGS if one.name in _flags and one.name not in IN_ANY_SERVER]
    if flags:
        verb = "has" if len(flags) == 1 else "have"
        logger.warning("%s %s no effect with --single-process", ", ".join(flags), verb)


def forget() -> None:
    """Drop the settings from ``worker.install()`` and from flags."""
    _installed.clear()
    _flags.clear()


def resolve(given: Mapping[str, Any]) -> Settings:
    """Return the settings of a manager.

    Args:
        given (Mapping[str, Any]): The keywords of its constructor. ``None`` counts as not given; other names
            than those of settings are passed over.

    Raises:
        ValueError: A value is wrong, or two of them do not agree. The message names the setting, the value
            and the allowed values.
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
    """Log a warning, once each, about variables that have the prefix of settings and are none."""
    from difflib import get_close_matches

    for variable in sorted(os.environ):
        name = variable.removeprefix(ENV_PREFIX)
        is_known = name == variable or name in _SANICS or name.lower() in _BY_NAME
        if is_known or variable in _warned or _environment(variable) is None:
            continue
        _warned.add(variable)
        near = get_close_matches(name.lower(), _BY_NAME, 1)
        hint = f"did you mean {_BY_NAME[near[0]].variable}?" if near else f"there are: {', '.join(_BY_NAME)}"
        logger.warning("%s in the environment is not a setting of sanic-worker; %s", excerpt(variable), hint)


def _environment(variable: str) -> str | None:
    """Return the value of a variable; ``None`` where it is unset or has only whitespace."""
    value = os.environ.get(variable, "")
    return value if value.strip() else None


def checked(name: str, value: Any, source: str) -> Any:
    """Return the value of one setting, from ``source``.

    Raises:
        ValueError: The value is wrong, or the setting needs the native core or a library that is missing.
            The message says how to mend it.
    """
    setting = _BY_NAME[name]
    if setting.native and not IS_NATIVE:
        raise ValueError(
            f"{name} of {source} needs the native core, which is not at work here (see worker.core_info()): "
            "install it, or take the setting away"
        )
    try:
        parsed = setting.parse(value)
    except (TypeError, ValueError):
        shown = excerpt(value, quoted=True)
        raise ValueError(f"{name} of {source} cannot be {shown}: it takes {setting.allowed}") from None
    if setting.library and parsed and not values.has_library(setting.library):
        raise ValueError(
            f"{name} of {source} needs the library {setting.library}, which is not installed: install it, or "
            "take the setting away"
        )
    return parsed
