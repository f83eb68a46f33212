"""The supervisor: observes the processes of a manager, and reports events to the lifecycle of their slots."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

from sanic.log import error_logger, logger

from worker._spawn import liveness, processes
from worker._state.event_log import EventLog
from worker._state.foreign import adapted
from worker._supervisor import model, reports
from worker._supervisor.child import ChildProcess
from worker._supervisor.children import Children
from worker._supervisor.duties.preloading import Preloadable, Preloading
from worker._supervisor.lifecycle import Lifecycle
from worker._supervisor.mailbox import Mailbox
from worker._supervisor.model import ServerPhase
from worker._supervisor.operation import Kind, Operation
from worker._supervisor.rollout import STARTING_PHASES
from worker._supervisor.state_watcher import StateWatcher
from worker.constants import NAME_LIMIT, Phase, ProcessState, RestartOrder, excerpt
from worker.process import RestartAsked, SlotChanged, SlotStarted, Worker, WorkerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker._control.receive import MonitorProtocol

__all__ = ["ProcessTable", "Supervisor"]

# How long the inspector and its like may take to stop until they are killed, seconds.
HELPER_GRACE = 3.0


class ProcessTable(Preloadable, Protocol):
    """The manager, as the supervisor sees it."""

    THRESHOLD: int

    @property
    def workers(self) -> list[Worker]:
        """All workers."""

    def shutdown(self) -> None:
        """Stop the server."""

    def remove_worker(self, worker: Worker) -> None:
        """Remove a worker whose processes have ended."""


class Supervisor:
    """Turns observations of processes into events of their slots, for which :class:`Lifecycle` acts.

    Args:
        table (ProcessTable): The manager, with its process table.

    Attributes:
        log: Takes the events that an operator is told.
        operations: The restarts and scalings under way.
        children: The processes that are watched.
        preloading: Keeps the preload process, from which workers are forked.
        mailbox: Takes the messages of the slots.
        gave_up: Whether the server was stopped because no worker was left that could run.
        reconcile_at: When to :meth:`reconcile` again, on the monotonic clock; ``inf``: when an event comes.
    """

    def __init__(self, table: ProcessTable) -> None:
        self._table = table
        self._state_watcher = StateWatcher(table.worker_state)
        self.log = EventLog(table.worker_state)
        self.children = Children()
        self._lifecycle = Lifecycle(
            self._slots,
            table.settings,
            time.monotonic,
            random.random,
            lambda slot: bool(self.children.of(slot)),
            self._accepts,
            self.read_mailbox,
            self.log,
        )
        self.operations = self._lifecycle.operations
        self.preloading = Preloading(table, self._lifecycle, self.log, self.start_limit, self.look_again)
        self.mailbox = Mailbox(self.wake)
        self._monitor: MonitorProtocol | None = None
        self._has_events = False
        self._has_logged_wait = False
        self._failure = ""
        self._opened_at = math.inf
        self.reconcile_at = math.inf
        self.gave_up = False

    # The phase of the server

    @property
    def phase(self) -> ServerPhase:
        """The phase of the server."""
        return self._lifecycle.server

    @property
    def is_open(self) -> bool:
        """Whether processes are watched: a loop runs."""
        return self._monitor is not None

    @property
    def notify_fd(self) -> int | None:
        """The descriptor that becomes readable when the state of the processes changes."""
        return self._state_watcher.notify_fd

    def open(self, monitor: MonitorProtocol) -> None:
        """Watch processes from now on, by the monitor of the calling loop."""
        self._monitor = monitor
        self.preloading.begin(monitor)
        self._opened_at = time.monotonic()
        self.mailbox.open()

    def close(self) -> None:
        """Wait for the exit of killed processes. Every state is final then."""
        self.children.close()
        self._monitor = None
        self.mailbox.close()
        self._lifecycle.close()
        self.preloading.close()

    def wake(self) -> None:
        """End the wait of the loop; called from any thread, and from a signal handler."""
        monitor = self._monitor
        if monitor is not None:
            monitor.wake()

    def look_again(self) -> None:
        """Let the loop :meth:`reconcile` before its next wait."""
        self._has_events = True

    def begin_start(self) -> None:
        """Begin the first start of the servers."""
        if self.phase.starts_processes:
            self._lifecycle.server = ServerPhase.STARTING
        self._lifecycle.waits_for_change = self.can_wait_for_change

    def end_start(self) -> None:
        """End the first start of the servers; from now on each is supervised by itself."""
        if self.phase is ServerPhase.STARTING:
            self._lifecycle.server = ServerPhase.RUNNING
            servers = sum(slot.is_server for slot in self._slots())
            self.log.append(reports.server_ready(servers, time.monotonic() - self._opened_at))
        self._lifecycle.waits_for_change = False
        self._has_events = True

    def stop(self) -> None:
        """Stop every process, and start no more."""
        self._lifecycle.stop()

    def end_loop(self) -> None:
        """Start no more processes, and end the loop."""
        self._lifecycle.halt(ServerPhase.LOOP_ENDED)

    @property
    def failure(self) -> str:
        """Why the first start has failed; empty if it has not."""
        if self._failure or self.can_wait_for_change:
            return self._failure
        records = (self._lifecycle.record(slot) for slot in self._slots() if slot.is_server)
        return next((str(record.last_exit) for record in records if record.phase is Phase.FAILED), "")

    @property
    def can_wait_for_change(self) -> bool:
        """Whether a reloader runs."""
        return any(slot.is_reloader and not self._has_ended(slot) for slot in self._slots())

    # Requests

    @contextmanager
    def operation(self, kind: Kind) -> Iterator[Operation | None]:
        """Make one operation, whose outcome is logged, of all requests in the body."""
        self.read_mailbox()
        with self._lifecycle.operation(kind) if self.is_open else nullcontext() as operation:
            yield operation
            self.read_mailbox()

    def start(self, slot: WorkerProcess, operation: Operation | None = None) -> None:
        """Start the first process of a slot.

        Raises:
            Exception: The process cannot be started at all. If the system refuses it, it is tried again.
        """
        if self.is_open:
            self._lifecycle.start(slot, operation)
        else:
            slot.start()

    def restart_failed(self) -> int:
        """Start failed servers again; return their number."""
        failed = [slot for slot in self._slots() if slot.is_server and self.slot_phase(slot) is Phase.FAILED]
        for slot in failed:
            logger.info("%s: starting it again; it was FAILED.", excerpt(slot.name, NAME_LIMIT))
            slot.restart()
        return len(failed)

    def reload_order(self, order: RestartOrder) -> RestartOrder:
        """Return the order of a restart of all servers for changed files; ``order`` was requested."""
        # Code that does not start must not stop a server that serves.
        if self.is_open and order is RestartOrder.SHUTDOWN_FIRST:
            return self._table.settings.reload_order
        return order

    # Slots and processes

    def slot_phase(self, slot: WorkerProcess) -> Phase:
        """Return the phase of a slot."""
        return self._lifecycle.phase(slot)

    def start_limit(self, slot: type[WorkerProcess] | WorkerProcess = WorkerProcess) -> float:
        """Return how long a start may take until the process is ready, seconds."""
        return max(self._table.THRESHOLD, slot.THRESHOLD) / 10

    def retire(self, slot: WorkerProcess) -> None:
        """Remove the entry of a slot that has left the table, and an untracked worker that has exited."""
        self.read_mailbox()
        if not self.is_open:
            return
        worker = next((one for one in self._table.workers if slot in one.processes), None)
        if worker is None:
            if not self.children.of(slot):
                slot.forget()
                self._lifecycle.forget(slot)
        elif not (worker.tracked or self.phase.is_over) and all(map(self._has_ended, worker.processes)):
            self._table.remove_worker(worker)
            for one in worker.processes:
                self._lifecycle.forget(one)

    # Observations

    def read_mailbox(self) -> None:
        """Handle the messages of slots."""
        for message in self.mailbox.take():
            self._has_events = True
            match message:
                case SlotStarted(slot):
                    self._watch(slot)
                case SlotChanged(slot, ProcessState.TERMINATED):
                    self._lifecycle.handle(slot, model.StopSent())
                case RestartAsked(slot, order, config) if self.phase.starts_processes:
                    self._lifecycle.request(slot, order, config)
                case RestartAsked():
                    logger.debug("Restart request ignored: the server is stopping.")

    def on_exit(self, key: str, exitcode: int | None) -> None:
        """Handle the exit of a process."""
        self.read_mailbox()
        if self.preloading.on_exit(key):
            return
        child = self.children[key]
        slot, base = child.slot, child.base
        has_begun = liveness.has_begun(base)
        # Before it is collected: until then no other process can have its pid.
        child.kill_group()
        code = liveness.reap(base)
        if not child.is_ready:
            entry = slot.read_entry(base.pid) or (slot.read_entry() if child.is_current else {})
            child.error = excerpt(entry.get("start_error") or child.error)
        others_left = self.children.of(slot) != [child]
        exit_ = child.exit(exitcode if code is None else code, time.monotonic(), others_left)
        if base is slot.previous:
            event: model.SlotEvent = model.PreviousExited(exit_)
        else:
            event = model.Exited(exit_) if child.is_current else model.StoppedExited(exit_)
        if self._fails_start(slot, event):
            self._failure = self._failure or f"{exit_}." + ("" if has_begun else f" {processes.NOT_BEGUN}")
            self._lifecycle.halt(ServerPhase.START_FAILED)
        self.children.remove(key)
        # Before the next process takes the entry, and while the state has the number.
        has_served = slot.count_requests(base.pid)
        self._lifecycle.handle(slot, event)
        slot.on_exit(base, self.slot_phase(slot) is Phase.READY)
        adapted(self._table.worker_state).reclaim(base.pid)
        if has_served:
            # After that: a reader must not add them to the number that the process itself has written.
            slot.show_requests()
        self.retire(slot)
        self._has_events = True

    def on_start_failure(self, pid: int | None, name: str) -> None:
        """Handle the report of a process, by pid and name, that it cannot start."""
        child = self.children.by_pid(pid)
        text = f"{name} failed to start. Its error is in the log above."
        is_server = child is None or child.slot.is_server
        if self.phase is ServerPhase.STARTING and not self.can_wait_for_change and is_server:
            self._failure = self._failure or text
        elif child is not None and child.slot.is_server and not child.is_ready:
            # The error is reported with its exit, which follows.
            child.error = child.error or "its error is in the log above"
        else:
            error_logger.error("%s", text)

    def give_up_start(self, slot: WorkerProcess) -> None:
        """Kill a server that has taken too long for its first start."""
        for child in self._starting():
            if child.slot is slot:
                self._time_out(child)

    def check_readiness(self, now: float, everything: bool = False) -> None:
        """Update the readiness of starting processes from the shared state."""
        starting = self._starting()
        is_awaited = starting or self.children.may_resend
        names = self._state_watcher.changed(now, everything) if is_awaited else ()
        for child in starting:
            if child.slot.name not in names:
                continue
            entry = self._state_watcher.read(child.slot)
            child.serves |= bool(entry.get("serving"))
            has_acked = child.serves or entry.get("state") == ProcessState.ACKED.name
            if has_acked and child.slot.state < ProcessState.ACKED:
                child.slot.acknowledge()

    @property
    def has_events(self) -> bool:
        """Whether something was observed that :meth:`reconcile` has not seen."""
        return self._has_events or bool(self.mailbox)

    def needs_reconcile(self, now: float) -> bool:
        """Return whether it is time to :meth:`reconcile`."""
        return self.has_events or now >= self.reconcile_at or self._state_watcher.has_changes()

    def reconcile(self) -> None:
        """Perform all actions that are due, and set the time of the next call."""
        self.read_mailbox()
        self._has_events = False
        now = time.monotonic()
        self.check_readiness(now)
        for child in self._starting():
            self._check_start(child, now)
        self._lifecycle.run_due()
        self._check_server()
        starting = [child for child in self._starting() if child.slot.is_server]
        stopping = [child for child in self.children if self._is_stopping(child)]
        deadlines = [self._lifecycle.next_retry]
        if self.phase is not ServerPhase.STARTING:
            deadlines += [child.ready_by for child in starting]
        for child in stopping:
            child.note_stop(now)
            if child.resend:
                child.resend_stop(self._flags(child))
        if starting or self.operations or self.children.may_resend:
            deadlines.append(self._state_watcher.arm(now))
        else:
            self._state_watcher.disarm()
        deadlines += [self._kill_overdue(child, now) for child in stopping]
        self.reconcile_at = min(deadlines)

    def _kill_overdue(self, child: ChildProcess, now: float) -> float:
        """Kill a process that has not stopped within the graceful timeout; return when that is."""
        grace = child.stop_limit(self._table.settings.graceful_timeout)
        if now >= child.kill_at(grace):
            self.children.escalate_stop(child, self.phase)
            self.log.append(reports.killed(child, reports.overdue(child, grace)))
        return child.kill_at(grace)

    def _slots(self) -> list[WorkerProcess]:
        return [slot for worker in self._table.workers for slot in worker.processes]

    def _watch(self, slot: WorkerProcess) -> None:
        """Wait for the exit of the process that was started in a slot, and until it is ready."""
        assert self._monitor is not None
        base, now = slot.current, time.monotonic()
        limit = self.start_limit(slot)
        sentinel = getattr(base, "sentinel", None)
        child: ChildProcess | None = None
        if type(base.pid) is int and type(sentinel) is int:
            child = ChildProcess(slot, base, now, now + limit, limit)
            child.ready_at = math.inf if slot.is_server else now
            if slot.absence and not slot.is_reloader:
                # It has nothing of the application's to finish.
                child.grace = HELPER_GRACE
            self._monitor.watch(self.children.add(child), base.pid, sentinel)
        self._lifecycle.handle(slot, model.Started(child))

    def _starting(self) -> list[ChildProcess]:
        return [
            child
            for child in self.children
            if child.is_current and self.slot_phase(child.slot) in STARTING_PHASES
        ]

    def _is_stopping(self, child: ChildProcess) -> bool:
        return child.is_stopping(self.slot_phase(child.slot) is Phase.DRAINING)

    def _has_ended(self, slot: WorkerProcess) -> bool:
        """Return whether no process runs in a slot, nor will be started by itself."""
        return self.slot_phase(slot) in (Phase.STOPPED, Phase.FAILED) and not slot.is_alive()

    def _fails_start(self, slot: WorkerProcess, event: model.SlotEvent) -> bool:
        return (
            self.phase is ServerPhase.STARTING
            and isinstance(event, model.Exited)
            and slot.is_server
            and slot.state < ProcessState.ACKED
            and not self.can_wait_for_change
        )

    def _check_start(self, child: ChildProcess, now: float) -> None:
        slot = child.slot
        if child.serves or not slot.is_server:
            self._lifecycle.handle(slot, model.Ready(child))
        elif now >= child.ready_by and self.phase is not ServerPhase.STARTING:
            if slot.state is not ProcessState.ACKED:
                self._time_out(child)
                return
            logger.warning(
                "%s acknowledged its start but did not report that it serves within %g s. Counting it ready.",
                child,
                child.start_limit,
            )
            self._lifecycle.handle(slot, model.Ready(child))

    def _time_out(self, child: ChildProcess) -> None:
        child.error = f"not ready within {child.start_limit:g} s (WorkerManager.THRESHOLD)"
        self._lifecycle.handle(child.slot, model.StartTimedOut(child))

    def _check_server(self) -> None:
        """Stop, or wait for a change of the code, if no server is left that could run."""
        if self.phase not in (ServerPhase.NEW, ServerPhase.RUNNING) or self._lifecycle.is_served():
            self._has_logged_wait = False
        elif self.can_wait_for_change:
            if not self._has_logged_wait:
                error_logger.error("No server can run any more. Waiting for the next file change.")
            self._has_logged_wait = True
        else:
            self.log.append(reports.gave_up())
            self.gave_up = True
            self._table.shutdown()

    def _accepts(self, slot: WorkerProcess) -> bool:
        """Return whether a stopping process of a slot may still accept connections."""
        return slot.is_server and any(
            self._is_stopping(child) and not self._flags(child).get("stopping")
            for child in self.children.of(slot)
        )

    def _flags(self, child: ChildProcess) -> Mapping[str, Any]:
        return adapted(self._table.worker_state).numbers(child.base.pid)
