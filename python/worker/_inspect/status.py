"""Takes one snapshot of the server for everything that shows it: the page, the client, metrics and health."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from threading import Thread
from typing import Any, NamedTuple

from sanic import __version__ as sanic_version

from worker._core import core_info
from worker._state import schema
from worker._state.event_log import last_seq, read_operations, read_preload, read_totals
from worker._state.foreign import adapted, snapshot
from worker._state.shared import SharedState
from worker._system import proc
from worker._system.listen_queue import ListenQueue
from worker.constants import MAIN_NAME, Phase, ProcessState

__all__ = ["Sampler", "Worker"]

KEYS = (
    schema.OWNER,
    "server",
    "state",
    "phase",
    "serving",
    "restarts",
    "requests_before",
    "why",
    "next_restart_at",
    "stop_at",
)
# The types of all values that are read. A worker, or a state of another kind, may hold anything under a key.
KINDS = {key.name: key.kind for key in schema.SCHEMA}
# The largest number that is shown.
LARGEST = 2**63
# The numbers of a process that are shown as they are.
NUMBERS = ("in_flight", "connections", "loop_lag_p50", "loop_lag_p99", "loop_busy")
# In these phases no process runs. The entry still has the pid of the last one.
VACANT = frozenset(phase.name.lower() for phase in (Phase.STOPPED, Phase.BACKOFF, Phase.FAILED))
STARTING, STOPPED, STOPPING = (
    phase.name.lower() for phase in (Phase.STARTING, Phase.STOPPED, Phase.STOPPING)
)
READY = frozenset(phase.name.lower() for phase in (Phase.READY, Phase.REPLACING))
UNENDED = frozenset({"pending", "running"})

# The proportional memory of a process is read again when it is older than the first, and shown until it is
# as old as the second, seconds. Between two requests of a monitoring system a minute may pass.
PSS_REFRESH = 5.0
PSS_MAX_AGE = 300.0
# How long one refresh may take, seconds. The oldest values come first.
PSS_BUDGET = 0.1


class Worker(NamedTuple):
    """A worker of a snapshot.

    Attributes:
        shown: Its part of the snapshot.
        is_wanted: Whether it is to accept requests: it is a server that was not stopped for good.
        is_ready: Whether it accepts requests. A process that a signal has stopped does not.
    """

    shown: dict[str, Any]
    is_wanted: bool
    is_ready: bool


class Sampler:
    """Takes snapshots of the server, from the shared state and from what the kernel knows.

    A snapshot asks nothing of the main process and of the workers. Between two snapshots nothing is done.

    Args:
        worker_state (Mapping[str, Any]): The state of all processes, name to entry.
        app_info (Mapping[str, Any]): The information on the application.
    """

    def __init__(self, worker_state: Mapping[str, Any], app_info: Mapping[str, Any]) -> None:
        self.worker_state = worker_state
        self._state = adapted(worker_state)  # type: ignore[arg-type]
        core = core_info()
        # Looked up once: the version stands in the files of the distribution.
        self._fixed = {
            "app": str(app_info.get("app", "")),
            "version": core.version,
            "core": core.core,
            "sanic": sanic_version,
        }
        self._queue = ListenQueue()
        self._memory = _ProportionalMemory()
        self._requests: dict[str, int] = {}
        self._last_event = 0

    @property
    def has_sheets(self) -> bool:
        """Whether the state has sheets. A mapping of another kind has none, so it shows no events either."""
        return bool(self._state.cells("pong"))

    def status(self) -> dict[str, Any]:
        """Return the snapshot: ``time``, ``server``, ``workers`` and ``operations``. JSON can hold it.

        Times are in seconds. A value that is not known is ``None``.

        Raises:
            OSError, EOFError: The state cannot be reached.
        """
        found = self.sample()
        self._last_event = last_seq(self.worker_state, self._last_event)
        found["server"]["last_event"] = self._last_event
        operations = read_operations(self.worker_state)
        return {
            "time": datetime.now(tz=timezone.utc).isoformat(),
            **found,
            "operations": [one for one in operations if one["status"] in UNENDED],
        }

    def sample(self) -> dict[str, Any]:
        """Return the parts ``server``, without its last event, and ``workers`` of the snapshot.

        Raises:
            OSError, EOFError: The state cannot be reached.
        """
        entries = dict(self._entries())
        main = entries.pop(MAIN_NAME, {})
        workers = [self._worker(name, entry) for name, entry in entries.items()]
        shown = [worker.shown for worker in workers]
        memory = self._memory.read([one["pid"] for one in shown if one["pid"] is not None])
        for one in shown:
            one["pss_bytes"] = memory.get(one["pid"])
        self._requests = {name: count for name, count in self._requests.items() if name in entries}
        return {"server": self._server(main, workers), "workers": shown}

    def servers(self) -> list[Worker]:
        """Return the servers that are wanted.

        Raises:
            OSError, EOFError: The state cannot be reached.
        """
        workers = [self._worker(name, entry) for name, entry in self._entries() if name != MAIN_NAME]
        return [worker for worker in workers if worker.is_wanted]

    def is_stopping(self) -> bool:
        """Return whether a stop was requested, and the drain delay has begun.

        Raises:
            OSError, EOFError: The state cannot be reached.
        """
        with suppress(KeyError, RuntimeError):
            return "stop_at" in self._state.read_keys(MAIN_NAME, ("stop_at",))
        return False

    def main_usage(self) -> proc.Usage | None:
        """Return the resources that the main process has used; ``None`` if it is gone."""
        try:
            pid = _pid(self._state.read_keys(MAIN_NAME, (schema.OWNER,)))
        except (KeyError, RuntimeError):
            return None
        return None if pid is None else proc.usage(pid)

    def _server(self, entry: Mapping[str, Any], workers: list[Worker]) -> dict[str, Any]:
        main = _pid(entry)
        used, maximum = self._state.usage()
        kernel = None if main is None else proc.usage(main)
        servers = [worker for worker in workers if worker.is_wanted]
        holder = next((one.shown["pid"] for one in servers if one.shown["phase"] in READY), None)
        return {
            **self._fixed,
            "pid": main,
            "uptime": kernel.uptime if kernel else None,
            "workers_wanted": len(servers),
            "workers_ready": sum(worker.is_ready for worker in servers),
            "stops_in": _seconds_until(entry.get("stop_at")),
            "preload": read_preload(self.worker_state),
            "restarts": sum(read_totals(self.worker_state).get("restarts", {}).values()),
            "backlog": self._queue.length(main, holder) if main and holder else None,
            "state_bytes": used if maximum else None,
            "state_max_bytes": maximum or None,
        }

    def _worker(self, name: str, entry: Mapping[str, Any]) -> Worker:
        phase = _phase(entry)
        pid = None if phase in VACANT else _pid(entry)
        numbers = {} if pid is None else self._numbers(pid, entry)
        kernel = None if pid is None else proc.usage(pid)
        is_server = entry.get("server") is True
        shown = {
            "name": name,
            "server": is_server,
            "phase": phase,
            "state": entry.get("state"),
            "pid": pid,
            "uptime": kernel.uptime if kernel else None,
            "restarts": entry.get("restarts", 0),
            "requests": self._count(name, entry, numbers) if is_server else None,
            **{key: numbers.get(key) for key in NUMBERS},
            "heartbeat_age": _seconds_since(numbers.get(schema.LAST_BEAT)),
            "rss_bytes": kernel.rss_bytes if kernel else None,
            "pss_bytes": None,
            "cpu_seconds": kernel.cpu_seconds if kernel else None,
            "why": entry.get("why"),
            "next_restart_in": _seconds_until(entry.get("next_restart_at")),
        }
        is_ready = phase in READY and kernel is not None and kernel.is_running
        return Worker(shown, is_wanted=is_server and phase != STOPPING, is_ready=is_ready)

    def _count(self, name: str, entry: Mapping[str, Any], numbers: Mapping[str, Any]) -> int | None:
        """Return the requests of all processes of a slot, which never become fewer.

        The main process adds up those of the processes that have ended, just before or after they leave the
        state. A snapshot in between would have fewer.
        """
        before = entry.get("requests_before")
        now = numbers.get(schema.REQUESTS)
        if before is None and now is None:
            return self._requests.get(name)
        count = max(self._requests.get(name, 0), (before or 0) + (now or 0))
        self._requests[name] = count
        return count

    def _numbers(self, pid: int, entry: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the numbers of a process. A state of another kind keeps them in the entry, if at all."""
        return self._state.numbers(pid) or entry

    def _entries(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        state = self.worker_state
        if not isinstance(state, SharedState):
            yield from ((name, _trusted(entry)) for name, entry in snapshot(state).items())
            return
        for name in state:
            # It was removed in between, or is damaged: the main process makes it anew.
            with suppress(KeyError, RuntimeError):
                yield name, _trusted(state.read_keys(name, KEYS))


class _ProportionalMemory:
    """The proportional memory of processes, read in a thread, and only after :meth:`read` was called."""

    def __init__(self) -> None:
        self._values: dict[int, tuple[float, int | None]] = {}
        self._reader: Thread | None = None

    def read(self, pids: Collection[int]) -> dict[int | None, int | None]:
        """Return the values that are known by pid, and begin to read those that are too old."""
        now = time.monotonic()
        known = {pid: self._values[pid] for pid in pids if pid in self._values}
        old = [pid for pid in pids if pid not in known or now - known[pid][0] > PSS_REFRESH]
        if old and (self._reader is None or not self._reader.is_alive()):
            # A copy: the reader adds to it, while the known values are read below.
            self._values = known.copy()
            old.sort(key=lambda pid: known[pid][0] if pid in known else 0.0)
            self._reader = Thread(target=self._refresh, args=(old,), name="memory", daemon=True)
            self._reader.start()
        return {pid: value for pid, (at, value) in known.items() if now - at <= PSS_MAX_AGE}

    def _refresh(self, pids: list[int]) -> None:
        began = time.monotonic()
        for pid in pids:
            value = proc.pss_bytes(pid)
            now = time.monotonic()
            self._values[pid] = (now, value)
            if now - began > PSS_BUDGET:
                break


def _trusted(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of an entry that have the type of their key. One of another type counts as absent."""
    return {key: value for key, value in entry.items() if type(value) is KINDS.get(key) and _is_shown(value)}


def _is_shown(value: Any) -> bool:
    """Return whether a value is no number, or one that JSON and the metrics can hold."""
    return type(value) not in (int, float) or 0 <= value <= LARGEST


def _phase(entry: Mapping[str, Any]) -> str | None:
    """Return the phase of a slot. A state of another kind shows it only while no process runs."""
    phase = entry.get("phase")
    if phase is not None:
        return str(phase)
    if entry.get("state") == ProcessState.NONE.name:
        # It was not started yet: one with `auto_start=False`, for example.
        return STOPPED
    if entry.get("state") == ProcessState.TERMINATED.name:
        return STOPPING
    return "ready" if entry.get("serving") else STARTING


def _pid(entry: Mapping[str, Any]) -> int | None:
    pid = entry.get(schema.OWNER)
    return pid if type(pid) is int and pid > 0 else None


def _seconds_since(moment: Any) -> float | None:
    if not isinstance(moment, datetime):
        return None
    return max(0.0, time.time() - moment.timestamp())


def _seconds_until(moment: Any) -> float | None:
    if not isinstance(moment, datetime):
        return None
    return max(0.0, moment.timestamp() - time.time())
