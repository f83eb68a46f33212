"""The table of settings: name, type, default and meaning of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from worker.constants import ALWAYS, POLICIES, PRELOAD_FRAMEWORK, PRELOADS, RestartOrder
from worker.settings import values

__all__ = ["ENV_PREFIX", "SETTINGS", "Setting", "Settings"]

ENV_PREFIX = "SANIC_WORKER_"


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
    hang_timeout: float
    slow_loop_warning: float
    max_requests: int | None
    max_lifetime: float | None
    max_rss: int | None
    max_memory_percent: float | None
    recycle_jitter: float
    workers: values.Workers | None
    drain_delay: float
    pid_file: str
    user: str
    group: str
    umask: int | None
    preload: str

    @property
    def range(self) -> values.Workers | None:
        """The numbers of servers between which the load decides; ``None``: the number is fixed."""
        return self.workers if self.workers is not None and self.workers.is_range else None

    @property
    def recycles(self) -> bool:
        """Whether a server is replaced when it reaches a limit."""
        limits = (self.max_requests, self.max_lifetime, self.max_rss, self.max_memory_percent)
        return any(limit is not None for limit in limits)


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
    Setting(
        "hang_timeout",
        values.hang_timeout,
        values.default_hang_timeout,
        f"a number of seconds from {values.MIN_HANG_TIMEOUT:g} on, or off",
        "Time after which a server whose event loop makes no progress is replaced, in seconds. Its stacks "
        "are in the log then. No server is replaced for this with --debug, with --dev or under a debugger.",
        "60; off with --debug, and without the native core",
        native=True,
    ),
    Setting(
        "slow_loop_warning",
        values.seconds_or_off,
        values.default_slow_loop_warning,
        "a number of seconds above 0, or off",
        "Time that one step of the event loop of a server may take, in seconds. A step that takes longer is "
        "logged with the place in the code, once a minute for each function.",
        "1; 0.1 with --debug",
    ),
    Setting(
        "max_requests",
        values.whole,
        lambda: None,
        WHOLE,
        "Number of requests after which a server is replaced by a new process, which starts first. One "
        "server is replaced at a time, after `min_uptime` at the earliest; requests in flight are answered.",
        "none: no limit",
    ),
    Setting(
        "max_lifetime",
        values.positive_seconds,
        lambda: None,
        "a number of seconds above 0",
        "Time after which a server is replaced in the same way, in seconds.",
        "none: no limit",
    ),
    Setting(
        "max_rss",
        values.size,
        lambda: None,
        "a number of bytes above 0, such as 200000000, 200M or 1.5G",
        "Memory at which a server is replaced in the same way, in bytes. Memory that several processes share "
        "counts in proportion (PSS), where the kernel tells it; else all of it counts (RSS).",
        "none: no limit",
    ),
    Setting(
        "max_memory_percent",
        values.percent,
        lambda: None,
        "a number above 0, at most 100",
        "The same as a percentage of the memory limit of the control group, for each server. With 4 servers, "
        "15 lets them take 60 % together. Without such a limit it has no effect.",
        "none: no limit",
    ),
    Setting(
        "recycle_jitter",
        values.fraction,
        lambda: 0.1,
        "a number from 0 to 1",
        "Largest share by which `max_requests` and `max_lifetime` are lowered at random for each process, so "
        "that not all are replaced at the same time.",
        "0.1",
    ),
    Setting(
        "workers",
        values.workers,
        lambda: None,
        "a whole number from 1 on, auto, or a range such as 2..8 or 2..auto",
        "Number of servers, in place of the one that the application gives. `auto` is the number of CPUs "
        "that the process may use: by its affinity and by the quota of its control group. With a range, "
        "which needs the native core, the number follows the measured load.",
        "the number that the application gives; 1 without one",
    ),
    Setting(
        "drain_delay",
        values.seconds,
        lambda: 0.0,
        SECONDS,
        "Time between a request to stop and the stop, in seconds. `/readyz` answers 503 meanwhile, and "
        "requests are still accepted. A second signal ends it, and SIGINT stops without it.",
        "0",
    ),
    Setting(
        "pid_file",
        values.path,
        str,
        "the path of a file",
        "File with the pid of the main process, while it runs. A second server with the same file fails.",
        "none",
    ),
    Setting(
        "user",
        values.account,
        str,
        "the name or the number of a user",
        "User as which the server runs once its sockets are bound. Only root can give it.",
        "the user that starts it",
        native=True,
    ),
    Setting(
        "group",
        values.account,
        str,
        "the name or the number of a group",
        "Group as which the server runs once its sockets are bound. Only root can give it.",
        "the main group of `user`, if that is given",
        native=True,
    ),
    Setting(
        "umask",
        values.mode,
        lambda: None,
        "the permissions of a file in octal digits, from 000 to 777",
        "Permissions that new files of the server lack, as for `umask`.",
        "that of the process that starts it",
    ),
    Setting(
        "preload",
        values.preload,
        lambda: PRELOAD_FRAMEWORK,
        "one of " + ", ".join(PRELOADS),
        "What the preload process imports, from which workers are forked: Sanic and this package "
        "(`framework`), or the application as well (`app`). With `off`, each worker is an interpreter of its "
        "own. It counts where the start method is `spawn`.",
        PRELOAD_FRAMEWORK,
        choices=PRELOADS,
    ),
)
