"""Keeps a preload process for the manager: watches it, starts another one, and has it import new code."""

from __future__ import annotations

import logging
import math
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from sanic.log import logger

from worker._spawn import processes
from worker._spawn.preload.application import described, has_present_conditions
from worker._spawn.preload.preloads import preloads
from worker._spawn.preload.process import (
    BEGAN,
    WATCHED,
    ImportFailedError,
    OutdatedError,
    PreloadError,
    PreloadProcess,
    StopAskedError,
    UnsafeError,
)
from worker._state import events
from worker._supervisor.restart_policy import backoff
from worker.constants import PRELOAD_APP, PRELOAD_FRAMEWORK, PRELOAD_OFF, excerpt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, MutableMapping
    from multiprocessing.context import BaseContext

    from worker._control.receive import MonitorProtocol
    from worker._state.event_log import EventLog
    from worker._supervisor.lifecycle import Lifecycle
    from worker._supervisor.operation import Operation
    from worker.settings import Settings

__all__ = ["Preloadable", "Preloading"]

# How long the first start waits for the preload process, seconds. It then spawns the workers.
FIRST_WAIT = 1.0
# How often a preload process that imports is looked at, seconds.
POLL = 0.02

FRAMEWORK_ONLY = "The application is not preloaded until the next restart."


class Preloadable(Protocol):
    """The manager, as this duty sees it."""

    settings: Settings
    context: BaseContext
    worker_state: MutableMapping[str, Any]

    @property
    def app_loader(self) -> Any:
        """Loads the application; ``None`` if that is not known."""


class Preloading:
    """A duty: one preload process that can fork workers is there, or starts after a backoff.

    Args:
        manager (Preloadable): The manager.
        lifecycle (Lifecycle): Holds restart requests back while new code is imported.
        log (EventLog): Takes the events that an operator is told.
        start_limit (Callable): Returns how long the import of an application may take, seconds.
        reconcile (Callable): Has the supervisor look for slots to restart.
    """

    def __init__(
        self,
        manager: Preloadable,
        lifecycle: Lifecycle,
        log: EventLog,
        start_limit: Callable[[], float],
        reconcile: Callable[[], None],
    ) -> None:
        self._manager = manager
        self._lifecycle = lifecycle
        self._log = log
        self._start_limit = start_limit
        self._reconcile = reconcile
        self._monitor: MonitorProtocol | None = None
        self._depth = PRELOAD_OFF
        # Whether the application is imported, too. It is not if it cannot be, until the next restart.
        self._loads = False
        # The preload processes that import.
        self._starting: set[PreloadProcess] = set()
        # The operations that prove the code of the current preload process.
        self._proving: tuple[Operation, ...] = ()
        # Whether it is to be found whether imported files have changed, for restarts that were requested.
        self._must_refresh = False
        self._failures = 0
        self._shown: dict[str, Any] | None = None
        self._poll_at = self._retry_at = self._import_by = math.inf

    @property
    def due_at(self) -> float:
        """When to look at the preload processes again, on the monotonic clock."""
        is_over = not self._lifecycle.server.starts_processes
        has_work = bool(self._starting) or self._retry_at < math.inf
        if preloads.has_unused or self._is_decided() or (is_over and has_work):
            return -math.inf
        if self._must_refresh or self._shown != self._status():
            return -math.inf
        return min(self._poll_at, self._retry_at)

    def begin(self, monitor: MonitorProtocol | None) -> None:
        """Wait before the first start until a preload process is ready, if that does not take too long."""
        self._monitor = monitor
        method = processes.preloaded_method(self._manager.context)
        if method:
            self._depth = PRELOAD_FRAMEWORK if method == "forkserver" else self._manager.settings.preload
        if self._depth == PRELOAD_OFF:
            preloads.reset()
            return
        preloads.on_failure = self._on_failure
        self._loads = self._depth == PRELOAD_APP
        self._start()
        wait = FIRST_WAIT
        if self._loads:
            # The main process has imported the application, too, and has taken no longer than this.
            wait += time.monotonic() - BEGAN
        if preloads.current is not None:
            self._check(preloads.current, wait)
        if preloads.current in self._starting:
            logger.info("%s is not ready yet. Workers are spawned meanwhile.", preloads.current)

    def close(self) -> None:
        """Kill all preload processes."""
        self._depth = PRELOAD_OFF
        self._halt()
        self._proving = ()
        preloads.on_failure = None
        preloads.reset()

    def on_exit(self, key: str) -> bool:
        """Handle the exit of a preload process; return whether the key of the watch is that of one."""
        if not key.startswith(WATCHED):
            return False
        process = next((one for one in preloads if one.key == key), None)
        if process in (preloads.current, preloads.next) and process is not None:
            self._check(process)
        else:
            preloads.drop(process)
        return True

    @contextmanager
    def renewal(self) -> Iterator[None]:
        """Renew the preload process for the restarts that are requested in the body.

        With the depth ``app`` they are held back until new code is imported, and aborted if it cannot be.
        """
        self._lifecycle.holds_requests = self._depth == PRELOAD_APP
        try:
            yield
        finally:
            self._lifecycle.holds_requests = False
            if self._lifecycle.held:
                self._import()
            elif self._depth == PRELOAD_FRAMEWORK and self._lifecycle.requested:
                # Later in this turn of the loop: the service manager is told of the restart at once.
                self._must_refresh = True

    def perform(self, now: float) -> None:
        """Look at the preload processes that import, and start one whose backoff is over."""
        preloads.clear()
        self._show()
        if not self._lifecycle.server.starts_processes:
            self._halt()
            return
        if self._must_refresh:
            self._must_refresh = False
            self._refresh()
        for process in self._starting.copy():
            self._check(process)
        self._poll_at = now + POLL if self._starting else math.inf
        if self._is_decided():
            self._settle()
        if now >= self._retry_at:
            self._retry_at = math.inf
            self._start()

    def _status(self) -> dict[str, Any] | None:
        """Return the current preload process as the state has it; ``None`` if there is none."""
        if (process := preloads.current) is None:
            return None
        return {"pid": process.pid, "depth": _depth(process), "ready": process.is_ready}

    def _show(self) -> None:
        self._shown = self._status()
        self._log.show_preload(self._shown)

    def _halt(self) -> None:
        """Start no more preload processes. Those with children are needed until these have exited."""
        self._must_refresh = False
        self._poll_at = self._retry_at = self._import_by = math.inf
        self._starting.clear()
        preloads.drop(preloads.next)

    # The current preload process

    def _start(self) -> None:
        """Start a preload process as the current one."""
        try:
            process = preloads.start()
            if process.has_application and not (self._loads and has_present_conditions(process)):
                # The command has let it import the application.
                preloads.drop(process)
                process = preloads.start()
            self._prepare(process)
        except PreloadError as error:
            if preloads.current is None:
                self._retry_later(None, error)
            else:
                preloads.fail(error)

    def _prepare(self, process: PreloadProcess) -> None:
        """Watch a preload process, and let it import what it is to import.

        Raises:
            PreloadError: It has ended.
        """
        if self._monitor is not None and process.pidfd is not None:
            self._monitor.watch(process.key, process.pid, process.pidfd.fileno())
        self._starting.add(process)
        self._poll_at = -math.inf
        if self._manager.settings.process_titles:
            process.set_title()
        if self._loads and not process.has_application:
            process.load(described(self._manager.app_loader))

    def _check(self, process: PreloadProcess, wait: float = 0.0) -> None:
        """Take note of the state of the current, or of the next one."""
        is_next = process is preloads.next
        if not is_next and process is not preloads.current:
            self._starting.discard(process)
            return
        try:
            if process.update(wait):
                self._on_ready(process)
                return
            limit = self._start_limit()
            if time.monotonic() >= (self._import_by if is_next else process.started_at + limit):
                raise PreloadError(f"it was not ready within {limit:g} s")
        except PreloadError as error:
            self._starting.discard(process)
            if is_next:
                self._fail_next(process, error)
            else:
                preloads.fail(error)

    def _on_ready(self, process: PreloadProcess) -> None:
        if process not in self._starting:
            return
        self._starting.discard(process)
        seconds = time.monotonic() - process.started_at
        text = f"{process} is ready after {seconds:.2f} s."
        self._log.append(
            events.PreloadReady(text=text, pid=process.pid, depth=_depth(process), seconds=seconds)
        )
        if process is preloads.next:
            self._release()
            self._replace_current()

    def _on_failure(self, process: PreloadProcess, error: PreloadError) -> None:
        """Start another one: the current one does not work, and was dropped."""
        if isinstance(error, StopAskedError):
            return
        if isinstance(error, ImportFailedError) and process.loaded_in is not None:
            # It has not logged its traceback. Two imports at once may have been in each other's way.
            logger.info("%s: %s. Another one imports it again.", process, excerpt(error))
            self._start()
            return
        if isinstance(error, (ImportFailedError, UnsafeError)):
            self._loads = False
            self._report(process, error, FRAMEWORK_ONLY)
            self._start()
            return
        if time.monotonic() - process.started_at >= self._manager.settings.min_uptime:
            self._failures = 0
        self._retry_later(process, error)

    def _retry_later(self, process: PreloadProcess | None, error: PreloadError) -> None:
        settings = self._manager.settings
        self._failures += 1
        if self._failures > settings.max_consecutive_failures:
            self._report(process, error, "Workers are spawned until the next restart.")
            return
        delay = backoff(self._failures, settings)
        self._retry_at = time.monotonic() + delay
        text = f"Workers are spawned until another one is ready; it is started in {delay:.1f} s."
        level = logging.INFO if isinstance(error, OutdatedError) else logging.WARNING
        self._report(process, error, text, level=level, delay=delay)

    def _report(
        self,
        process: PreloadProcess | None,
        error: PreloadError,
        consequence: str,
        *,
        level: int = logging.WARNING,
        delay: float | None = None,
    ) -> None:
        subject = "No preload process can be started" if process is None else process
        reason = excerpt(error)
        self._log.append(
            events.PreloadFailed(
                text=f"{subject}: {reason}. {consequence}",
                level=level,
                pid=None if process is None else process.pid,
                error=reason,
                next_start_in=delay,
            )
        )

    # New code

    def _import(self) -> None:
        """Let the next preload process import the application anew. The restarts wait for it."""
        if preloads.next is None:
            # Not extended by later requests: each of them begins the import anew.
            self._import_by = time.monotonic() + self._start_limit()
        self._failures, self._loads = 0, True
        try:
            self._prepare(preloads.start_next())
        except PreloadError as error:
            self._fail_next(preloads.next, error)

    def _refresh(self) -> None:
        """Start another preload process if the current one has code that may have changed."""
        self._failures = 0
        current = preloads.current
        try:
            if current is None:
                # One that waits for its backoff is started then.
                if self._retry_at == math.inf:
                    self._start()
                return
            if not current.has_application:
                if not current.update() or not (file := current.changed_file()):
                    return
                text = "%s: %s has changed since its import. Workers are spawned until another one is ready."
                logger.info(text, current, file)
        except PreloadError as error:
            preloads.fail(error)
            return
        self._replace_current()
        self._start()

    def _fail_next(self, process: PreloadProcess | None, error: PreloadError) -> None:
        """Go on after the next one has failed: only an error of the application keeps the old code."""
        preloads.drop(process)
        if isinstance(error, ImportFailedError):
            count = "1 worker" if self._lifecycle.held == 1 else f"{self._lifecycle.held} workers"
            kept = "Keeping the previous workers; " if self._lifecycle.is_served() else ""
            text = f"{kept}rollout aborted, {count} not restarted."
            self._report(process, error, text[0].upper() + text[1:], level=logging.ERROR)
            self._lifecycle.abort_held(excerpt(error))
            self._reconcile()
            return
        self._release()
        if isinstance(error, UnsafeError):
            self._loads = False
            self._report(process, error, FRAMEWORK_ONLY)
            self._refresh()
        else:
            self._replace_current()
            self._retry_later(process, error)

    def _release(self) -> None:
        """Begin the restarts that were held back."""
        self._lifecycle.release()
        self._reconcile()

    def _replace_current(self) -> None:
        """Let the next one, or none, be the current one. The requested restarts show if its code starts."""
        self._proving = self._lifecycle.requested
        preloads.promote()

    def _is_decided(self) -> bool:
        """Return whether it is known that the code of the current one starts, or does not."""
        return preloads.previous is not None and (
            any(operation.done for operation in self._proving)
            or not any(operation in self._lifecycle.operations.under_way for operation in self._proving)
        )

    def _settle(self) -> None:
        """Keep the current one if its code starts; else go back to the previous one."""
        if any(operation.done for operation in self._proving):
            preloads.prove()
        else:
            preloads.roll_back()
            self._retry_at = math.inf
            logger.info("%s is used again: the new code does not start.", preloads.current)
        self._proving = ()


def _depth(process: PreloadProcess) -> str:
    return PRELOAD_APP if process.has_application else PRELOAD_FRAMEWORK
