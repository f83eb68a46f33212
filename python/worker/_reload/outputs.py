"""Recognises the files that the server itself writes: a reload because of them would repeat for ever."""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping, MutableMapping
from contextlib import suppress
from datetime import datetime
from fcntl import F_GETFL, fcntl
from importlib.machinery import all_suffixes
from typing import Any

from sanic.log import logger

from worker._reload.file_events import resolved
from worker._reload.ignore import rules
from worker._reload.names import printable, shown
from worker._state.foreign import adapted
from worker.constants import ProcessState, excerpt

__all__ = ["Outputs", "Processes", "Rollouts"]

# The number of rollouts in a row after which files that change in each of them, and no others, are output.
IN_A_ROW = 3
# How long after a rollout a change still belongs to it, seconds. The watch reports a change a little later,
# and shows only the last change of a file that changes all the time.
SLACK = 0.25
# The largest number of remembered files that a process has had open for writing.
MAX_REMEMBERED = 1_000
# The keys of a state entry that the reloader reads.
KEYS = ("pid", "server", "state", "serving", "start_at", "restart_at", "ready_at")
# The suffixes of files that Python can import.
MODULES = tuple(all_suffixes())
# A number in the name of a file that differs each time: a pid, a time.
NUMBER = re.compile(r"\d{3,}")
# Additions to the name of a log that is rotated, and of a file that a database makes beside its own.
ROTATED = r"([._-]\d[\d._T-]*)"
PACKED = r"(\.(gz|bz2|xz|zst|zip))?"
JOURNAL = r"-(journal|wal|shm|mj\w+)"
NAMED_AFTER = re.compile(rf"(?<=[^.])({ROTATED}{PACKED}|{JOURNAL})$")

# The largest number of characters of a suggested pattern in a line, besides the files.
IGNORE_LIMIT = 100

Identity = tuple[int, int]


class Processes:
    """The processes of the server, as in the shared state.

    Args:
        state (MutableMapping[str, Any] | None): The shared state, name to entry; ``None``: there is none.
    """

    def __init__(self, state: MutableMapping[str, Any] | None) -> None:
        self._state = state

    def pids(self) -> set[int]:
        """Return the pids of all processes in the state."""
        pids = (entry.get("pid") for entry in self._entries())
        return {pid for pid in pids if isinstance(pid, int) and pid > 0}

    def renewed_at(self, since: float) -> float:
        """Return when the last server became ready, if all servers were started since a time.

        Args:
            since (float): The time, seconds since 1970.

        Returns:
            float: Seconds since 1970; ``inf`` if a server is older or not ready, ``-inf`` without a state.
        """
        latest = -math.inf
        for entry in self._entries():
            if entry.get("server") and entry.get("state") != ProcessState.FAILED.name:
                started = _seconds(entry.get("restart_at") or entry.get("start_at"))
                ready = _seconds(entry.get("ready_at"))
                if not (entry.get("serving") and since <= started <= ready):
                    return math.inf
                latest = max(latest, ready)
        return latest

    def _entries(self) -> list[Mapping[str, Any]]:
        if self._state is None:
            return []
        try:
            state = adapted(self._state)
            return [state.read_keys(name, KEYS) for name in [*self._state.keys()]]
        except Exception:
            # The process that keeps the state, or an entry, is gone. The next call may succeed.
            logger.debug("The state of the processes cannot be read.", exc_info=True)
            return []


class Rollouts:
    """Records the files that change in each rollout, from its request until the last new server is ready.

    Requests during one rollout make up the next one.

    Args:
        processes (Processes): The processes of the server.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        # When the current rollout was requested, when it was over, and when the next one was last requested.
        self._begun: float | None = None
        self._ready = math.inf
        self._next: float | None = None
        self._changed: set[str] = set()
        # The files that have changed in each of the last rollouts, and the number of these rollouts.
        self._usual: set[str] = set()
        self._times = 0

    def request(self, now: float) -> None:
        """Record a request, made at a time in seconds since 1970."""
        if self._begun is None:
            self._begun = now
        else:
            self._next = now

    def note(self, changed: Mapping[str, float]) -> set[str]:
        """Record changes.

        Args:
            changed (Mapping[str, float]): Paths, and the times of their change, seconds since 1970.

        Returns:
            set[str]: The paths that have changed in three rollouts in a row, in which no other path has.
        """
        found: set[str] = set()
        while changed and self._begun is not None:
            # Read it once: the next rollout changes the answer.
            if self._ready == math.inf:
                self._ready = self._processes.renewed_at(self._begun)
            ready = self._ready
            self._changed |= {path for path, time in changed.items() if time <= ready + SLACK}
            changed = {path: time for path, time in changed.items() if time > ready + SLACK}
            if changed:
                found |= self._conclude()
                changed = {path: time for path, time in changed.items() if path not in found}
        if changed:
            self._usual, self._times = set(), 0
        return found

    def _conclude(self) -> set[str]:
        """End the current rollout, and begin the next one if it was requested."""
        is_usual = bool(self._changed) and self._changed == self._usual
        self._usual, self._times = self._changed, self._times + 1 if is_usual else 1
        self._begun, self._next, self._ready, self._changed = self._next, None, math.inf, set()
        return self._usual if self._times == IN_A_ROW else set()


class Outputs:
    """Distinguishes output of the server from edits.

    Output are the files that this process or another one of the server has or had open for writing, and files
    that are named after them (``audit.txt.1``, ``data-journal``). Output are also files that change in three
    rollouts in a row in which no other file does. The log names both. A file that Python can import, or that
    a pattern with a leading ``!`` matches, is output only while it is open.

    Args:
        state (MutableMapping[str, Any] | None): The shared state.
        roots (Iterable[str]): The directories below which patterns apply.
        patterns (Iterable[str]): The setting ``reload_ignore``.
    """

    def __init__(
        self, state: MutableMapping[str, Any] | None, roots: Iterable[str], patterns: Iterable[str]
    ) -> None:
        self._processes = Processes(state)
        self._rollouts = Rollouts(self._processes)
        self._roots = [os.path.join(resolved(root), "") for root in roots]
        wanted = rules(pattern[1:] for pattern in patterns if pattern.startswith("!"))
        self._wanted = [re.compile(expression) for expression, _ in wanted]
        # The files that were open for writing, by the path of their change, with the names derived from them.
        self._written: dict[str, tuple[Identity, re.Pattern[str]]] = {}
        # The patterns of the files that have changed in each rollout.
        self._ignored: set[str] = set()

    def among(self, paths: set[str], modules: Collection[str]) -> set[str]:
        """Return the paths that are known to be output now.

        Args:
            paths (set[str]): Files that have changed.
            modules (Collection[str]): Files that are imported.
        """
        if not paths:
            return set()
        open_now = {*_own(), *self._others()}
        found = set()
        for path in paths:
            identity = _identity(path)
            if identity is not None and identity in open_now:
                self._remember(path, identity)
                found.add(path)
        for path in paths - found:
            if self._is_known(path) and not self._is_wanted(path, modules):
                found.add(path)
        return found

    def request(self, now: float) -> None:
        """Record a request for a rollout, made at a time in seconds since 1970."""
        self._rollouts.request(now)

    def found_by(self, changed: Mapping[str, float], modules: Collection[str]) -> set[str]:
        """Return the paths that turn out to be output by their changes in each rollout.

        Args:
            changed (Mapping[str, float]): Files, and the times of their change, seconds since 1970.
            modules (Collection[str]): Files that are imported.
        """
        if not changed:
            return set()
        times: dict[str, float] = {}
        for path, time in changed.items():
            times[_pattern(path)] = max(time, times.get(_pattern(path), 0.0))
        usual = self._rollouts.note(times)
        found = {path for path in changed if _pattern(path) in usual}
        text = "Reloader: in each of the last %d rollouts only this changed: %s. "
        names = shown(sorted(usual))
        ignored = excerpt(",".join("/" + self._below(name) for name in sorted(usual)), IGNORE_LIMIT)
        if any(self._is_wanted(path, modules) for path in (*found, *usual)):
            more = "If the servers write it, add it to reload_ignore (SANIC_WORKER_RELOAD_IGNORE='%s')."
            logger.warning(text + more, IN_A_ROW, names, ignored)
            return set()
        if usual:
            more = (
                "The servers write it, so it is not watched any more. Add it to reload_ignore "
                "(SANIC_WORKER_RELOAD_IGNORE='%s') to ignore it from the start. A ! before it has it watched."
            )
            logger.warning(text + more, IN_A_ROW, names, ignored)
            self._ignored |= usual
        return found

    def _remember(self, path: str, identity: Identity) -> None:
        if path not in self._written:
            logger.info("Reloader: not watching %s. The server has it open for writing.", shown([path]))
        self._written[path] = identity, _named_after(path)
        while len(self._written) > MAX_REMEMBERED:
            del self._written[next(iter(self._written))]

    def _is_known(self, path: str) -> bool:
        identity = _identity(path)
        return _pattern(path) in self._ignored or any(
            identity == known or named_after.fullmatch(path) for known, named_after in self._written.values()
        )

    def _others(self) -> Iterator[Identity]:
        for pid in self._processes.pids() - {os.getpid()}:
            yield from _open_for_writing(pid)

    def _is_wanted(self, path: str, modules: Collection[str]) -> bool:
        if path in modules or path.endswith(MODULES):
            return True
        below = self._below(path)
        return any(expression.search(below) for expression in self._wanted)

    def _below(self, path: str) -> str:
        """Return the part of a path below the innermost root."""
        length = max((len(root) for root in self._roots if path.startswith(root)), default=1)
        return path[length:]


def _pattern(path: str) -> str:
    """Return the name from which a path is derived, printable and with ``*`` for each number."""
    folder, name = os.path.split(printable(path))
    return os.path.join(folder, NUMBER.sub("*", NAMED_AFTER.sub("", name)))


def _named_after(path: str) -> re.Pattern[str]:
    """Return the pattern of paths derived from an output: rotated logs, and the journals of a database."""
    stem, suffix = map(re.escape, os.path.splitext(path))
    log = f"{stem}{suffix}{ROTATED}|{stem}{ROTATED}{suffix}"
    return re.compile(f"({log}){PACKED}|{stem}{suffix}{JOURNAL}")


def _own() -> Iterator[Identity]:
    """Yield the files that this process has open for writing."""
    with suppress(OSError):
        for fd in map(int, os.listdir("/dev/fd")):
            # The descriptor that has listed the directory is closed by now.
            with suppress(OSError):
                about, flags = os.fstat(fd), fcntl(fd, F_GETFL)
                if _is_written(about, flags):
                    yield about.st_dev, about.st_ino


def _open_for_writing(pid: int) -> Iterator[Identity]:
    """Yield the files that another process has open for writing; none without the permission to see them."""
    folder = f"/proc/{pid}"
    with suppress(OSError):
        for fd in os.listdir(f"{folder}/fd"):
            with suppress(OSError, ValueError, IndexError):
                about = os.stat(f"{folder}/fd/{fd}")
                if stat.S_ISREG(about.st_mode) and _is_written(about, _flags(f"{folder}/fdinfo/{fd}")):
                    yield about.st_dev, about.st_ino


def _flags(path: str) -> int:
    with open(path, encoding="ascii") as lines:
        return int(next(line for line in lines if line.startswith("flags:")).split()[1], 8)


def _is_written(about: os.stat_result, flags: int) -> bool:
    return stat.S_ISREG(about.st_mode) and flags & os.O_ACCMODE != os.O_RDONLY


def _identity(path: str) -> Identity | None:
    with suppress(OSError):
        about = os.stat(path)
        return about.st_dev, about.st_ino
    return None


def _seconds(time: object) -> float:
    return time.timestamp() if isinstance(time, datetime) else -math.inf
