"""The duty that keeps a preload process, with simulated preload processes and a simulated clock."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any

from worker._spawn.preload.preloads import preloads
from worker._spawn.preload.process import WATCHED, PreloadError
from worker._state.event_log import EventLog
from worker._supervisor.duties import preloading
from worker._supervisor.lifecycle import Lifecycle
from worker._supervisor.model import ServerPhase
from worker._supervisor.operation import Kind, Operation
from worker.constants import Phase, ProcessState, RestartOrder
from worker.settings import resolve


class Preload:
    """A preload process that is simulated. It is ready, or fails, as soon as the test says so."""

    pids = itertools.count(1000)

    def __init__(self, *, installs: bool = False) -> None:
        self.pid = next(self.pids)
        self.key = f"{WATCHED}{self.pid}]"
        self.pidfd = None
        self.started_at = preloading.time.monotonic()
        self.is_ready = False
        self.has_application = False
        self.loaded_in: object = None
        self.error: PreloadError | None = None
        self.changed = ""
        self.children = 0
        self.is_killed = False

    def __str__(self) -> str:
        return f"The preload process [{self.pid}]"

    def set_title(self) -> None:
        pass

    def load(self, data: bytes) -> None:
        self.has_application = True

    def update(self, timeout: float = 0.0) -> bool:
        if self.error is not None:
            raise self.error
        return self.is_ready

    def changed_file(self) -> str:
        if self.error is not None:
            raise self.error
        return self.changed

    def outdated(self) -> str:
        return ""

    def has_forks(self) -> bool:
        return self.children > 0

    def has_ended(self) -> bool:
        return False

    def stop(self) -> None:
        self.is_killed = True


class Slot:
    """A server in the process table, as far as a request for its restart needs it."""

    name = "Sanic-Server-0-0"
    exclusive, is_server = False, True
    state, absence, restart_policy, previous = ProcessState.ACKED, "", None, None

    def is_alive(self) -> bool:
        return True

    def show_phase(self, phase: Phase) -> None:
        pass


class Log(EventLog):
    """Keeps the last state of the preload process."""

    shown: Any = None

    def show_preload(self, shown: Any) -> None:
        self.shown = shown


class Scene:
    """The duty of a manager whose preload processes are simulated."""

    def __init__(self, depth: str, **settings: Any) -> None:
        self.slot: Any = Slot()
        self.now = 0.0
        self.limit = math.inf
        self.settings = resolve({"preload": depth, "backoff_initial": 1, **settings})
        self.lifecycle = Lifecycle(
            lambda: [self.slot],
            self.settings,
            lambda: self.now,
            lambda: 0.5,
            lambda slot: False,
            lambda slot: False,
            lambda: None,
            EventLog({}),
        )
        self.lifecycle.server = ServerPhase.RUNNING
        manager: Any = SimpleNamespace(settings=self.settings, context=None, app_loader=None)
        self.looks = 0
        self.log = Log({})
        self.duty = preloading.Preloading(manager, self.lifecycle, self.log, lambda: self.limit, self.look)

    def look(self) -> None:
        self.looks += 1

    def begin(self) -> Preload:
        """Begin; return the current preload process, which is ready."""
        self.duty.begin(None)
        self.current.is_ready = True
        self.perform()
        return self.current

    def perform(self) -> None:
        """Let time pass until one that imports is looked at; perform the duty as long as it is due."""
        self.now += preloading.POLL
        while self.duty.due_at <= self.now:
            self.duty.perform(self.now)

    def wait(self) -> None:
        """Let the backoff pass."""
        self.now += 1000
        self.perform()

    def restart(self) -> Operation:
        """Request the restart of the server, in a turn of the loop."""
        with self.duty.renewal(), self.lifecycle.operation(Kind.RESTART) as operation:
            self.lifecycle.request(self.slot, RestartOrder.STARTUP_FIRST, {})
        if self.settings.preload == "framework":
            self.duty.perform(self.now)
        return operation

    def end(self, *operations: Operation, failure: str = "") -> None:
        """End a rollout; it has replaced the server, unless it has failed."""
        self.lifecycle._requests.clear()
        if failure:
            self.lifecycle.operations.abort(operations, failure)
        else:
            for operation in operations:
                operation.mark_ready(self.slot)
        self.lifecycle.operations.settle([self.slot], lambda slot, operation: True)
        self.perform()

    @property
    def shown(self) -> Any:
        """The current preload process as the event log shows it."""
        return self.log.shown

    @property
    def current(self) -> Preload:
        assert isinstance(preloads.current, Preload)
        return preloads.current

    @property
    def next(self) -> Preload:
        assert isinstance(preloads.next, Preload)
        return preloads.next

    def answer(self, error: PreloadError | None = None) -> Preload:
        """Let the next preload process have imported the code, or have failed; return it."""
        process = self.next
        process.is_ready, process.error = error is None, error
        self.perform()
        return process
