"""The conditions in which a spawned child begins, because it takes them over from the main process.

A child of a preload process is given those that a running process can take over. The others are *fixed*: a
preload process whose fixed conditions are not those of the main process any more is of no use.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from worker._child.descriptors import SHORTAGES
from worker._child.preload.conditions import Conditions
from worker._child.signals import HANDLED

__all__ = ["changed", "executable", "fixed", "present", "read_status", "variables"]

# The fields of /proc/self/status that a child takes over for good, or could take over with privileges alone.
FIELDS = {
    *("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"),
    *("NoNewPrivs", "Seccomp", "Seccomp_filters"),
    *("SigIgn", "THP_enabled", "Cpus_allowed", "Mems_allowed"),
}
# The variables that the interpreter, its libraries, Sanic and its dependencies read when they are loaded.
AT_START = (
    "GLIBC_TUNABLES",
    "LANG",
    "LC_",
    "LD_",
    "MALLOC_",
    "MULTIDICT_",
    "OPENSSL_",
    "PYTHON",
    "SANIC_NO_COLOR",
    "WEBSOCKETS_",
    "WORKER_CORE",
)
# The variables that Sanic writes in the main process after the import of the application.
WRITTEN = ("SANIC_LOG_EXTRA", "SANIC_MOTD_OUTPUT")
PROC = "/proc/self/"
LIMITS = {name: getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}
# Its handlers of these differ from those of its children.
OWN_SIGNALS = sum(1 << (signum - 1) for signum in HANDLED)


def read_status() -> dict[str, str]:
    """Return the fields of this process's status; none where ``/proc`` is not mounted.

    Raises:
        OSError: No further descriptor can be opened now.
    """
    lines = (line.partition(":\t") for line in _read("status").splitlines())
    return {name: value for name, _, value in lines}


def present(status: Mapping[str, str]) -> Conditions:
    """Return the present conditions of the main process that a child of a preload process is given.

    Args:
        status (Mapping[str, str]): The result of :func:`read_status`.
    """
    limits = {number: resource.getrlimit(number)[0] for number in LIMITS.values()}
    return Conditions(dict(os.environ), _umask(status), limits)


def fixed(status: Mapping[str, str]) -> dict[str, Any]:
    """Return the conditions that a child of this process takes over at its start only, by name.

    Args:
        status (Mapping[str, str]): The result of :func:`read_status`.

    Raises:
        OSError: No further descriptor can be opened now.
    """
    # The function of multiprocessing would import all of it.
    from subprocess import _args_from_interpreter_flags  # type: ignore[attr-defined]

    found: dict[str, Any] = {name: status[name] for name in FIELDS & status.keys()}
    if "SigIgn" in found:
        found["SigIgn"] = int(found["SigIgn"], 16) & ~OWN_SIGNALS
    if not status:
        found |= {"Uid": (os.getuid(), os.geteuid()), "Gid": (os.getgid(), os.getegid())}
        found["Groups"] = os.getgroups()
    found |= {name: resource.getrlimit(number)[1] for name, number in LIMITS.items()}
    # The size of the stacks of threads is derived from it at the start.
    found["RLIMIT_STACK"] = resource.getrlimit(resource.RLIMIT_STACK)
    found["nice"] = os.getpriority(os.PRIO_PROCESS, 0)
    with suppress(AttributeError, OSError):
        found["scheduling"] = os.sched_getscheduler(0), os.sched_getparam(0).sched_priority
    for name in ("cgroup", "oom_score_adj"):
        found[name] = _read(name)
    found["root directory"] = _file("/")
    found["standard streams"] = [_file(fd) for fd in range(3)]
    found["interpreter"] = executable(), *_args_from_interpreter_flags()
    return found | _variables(lambda name: name.startswith(AT_START))


def variables() -> dict[str, Any]:
    """Return the environment variables that the import of an application may read, as fixed conditions."""
    # The others of ours are the names of a process, and settings.
    return _variables(lambda name: not name.startswith("SANIC_WORKER_") and name not in WRITTEN)


def changed(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Return the names of the conditions that differ, for the log; empty if none does."""
    names = before.keys() | now.keys()
    return ", ".join(sorted(name for name in names if before.get(name) != now.get(name)))


def executable() -> str:
    """Return the interpreter that children run in."""
    spawn = sys.modules.get("multiprocessing.spawn")
    return os.fsdecode(spawn.get_executable()) if spawn else sys.executable


def _variables(is_fixed: Callable[[str], bool]) -> dict[str, Any]:
    return {f"variable {name}": value for name, value in os.environ.items() if is_fixed(name)}


def _umask(status: Mapping[str, str]) -> int:
    if "Umask" in status:
        return int(status["Umask"], 8)
    # A file that another thread makes meanwhile has fewer permissions, and not more.
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


def _read(name: str) -> str:
    try:
        fd = os.open(PROC + name, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in SHORTAGES:
            raise
        return ""
    try:
        return os.read(fd, 65536).decode()
    finally:
        os.close(fd)


def _file(path: str | int) -> tuple[int, int] | None:
    """Return the identity of a file or an open descriptor; ``None`` if there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
