"""The upgrade: another main process, with new code, takes the place of this one on the same sockets.

:class:`Upgrade` is the side of the main process that runs: it starts its successor, and stops once the
servers of that all serve. :class:`TakeOver` is the side of the successor. Both look at their channel
(:mod:`worker._system.handover`) in a fixed interval, during an upgrade only.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from sanic.log import error_logger, logger

from worker._child import descriptors
from worker._spawn.successor import start_successor
from worker._supervisor import reports
from worker._supervisor.duties.upgrade_policy import judge, why_refused
from worker._supervisor.model import ServerPhase
from worker._supervisor.operation import Kind, Operation
from worker._supervisor.replacement import ready_servers
from worker._supervisor.restart_policy import describe_exit_code
from worker._system import activation, handover, pid_file, proc, systemd
from worker._system.handover import GONE, VARIABLE, Successor
from worker.constants import Phase, excerpt

if TYPE_CHECKING:
    from worker._supervisor.supervisor import Supervisor
    from worker._system.handover import Predecessor
    from worker.process import Worker, WorkerProcess
    from worker.settings import Settings

__all__ = ["TakeOver", "Upgrade"]

# The time from one look at the channel to the next, seconds.
LOOK_AGAIN = 0.05


class Host(Protocol):
    """The manager, as an upgrade uses it."""

    settings: Settings

    @property
    def workers(self) -> list[Worker]:
        """All workers."""

    def shutdown(self) -> None:
        """Stop the server."""


@dataclass
class _Attempt:
    """One upgrade.

    Attributes:
        successor: The new main process.
        operation: The operation.
        began: When it began; this and the others on the monotonic clock.
        limit: How long each stage of its start may take, seconds.
        deadline: The end of the present stage.
        sockets: The names of the sockets that the successor uses; ``None`` until its servers serve.
        kill_at: When to kill the successor, which was told to stop; ``inf`` before.
    """

    successor: Successor
    operation: Operation
    began: float
    limit: float
    deadline: float
    sockets: frozenset[str] | None = None
    kill_at: float = math.inf


class Upgrade:
    """Starts the successor of this main process, and stops for it or stays.

    Args:
        host (Host): The manager.
        supervisor (Supervisor): Knows the processes.
        is_stopping (Callable): Returns whether the server is stopping, or is going to.

    Attributes:
        due_at: When to look at the successor again, on the monotonic clock; ``inf``: there is none.
    """

    def __init__(self, host: Host, supervisor: Supervisor, is_stopping: Callable[[], bool]) -> None:
        self._host = host
        self._supervisor = supervisor
        self._is_stopping = is_stopping
        self._attempt: _Attempt | None = None
        self._expects_stop = False
        self.due_at = math.inf

    @property
    def is_under_way(self) -> bool:
        """Whether a successor runs that has not taken over."""
        return self._attempt is not None

    def begin(self) -> None:
        """Start the successor.

        Raises:
            ValueError: The upgrade is refused; the text is the reason.
        """
        if reason := self._why_refused():
            raise ValueError(f"Cannot upgrade: {reason}.")
        operations, log = self._supervisor.operations, self._supervisor.log
        by = operations.origin.name
        operation = operations.start(Kind.UPGRADE)
        try:
            successor = _started_successor()
        except OSError as error:
            reason = f"it could not be started: {excerpt(error)}"
            operations.finish(operation, failure=reason)
            log.append(reports.upgrade_failed(operation.id, None, 0.0, reason))
            return
        descriptors.close_in_children(successor)
        now, limit = time.monotonic(), self._supervisor.start_limit()
        self._attempt = _Attempt(successor, operation, now, limit, now + limit)
        self.due_at = now + LOOK_AGAIN
        log.append(reports.upgrade_requested(operation.id, successor.pid, by))
        operations.note(operation, f"the new main process [{successor.pid}] starts")

    def perform(self, now: float) -> None:
        """Look at the successor, and act."""
        attempt = self._attempt
        if attempt is None:
            self.due_at = math.inf
            return
        self.due_at = now + LOOK_AGAIN
        if attempt.kill_at < math.inf:
            self._end(attempt, now)
            return
        self._receive(attempt, now)
        has_exited, code = attempt.successor.poll(), attempt.successor.exit_code
        exit_text = "see its lines in the log" if code is None else describe_exit_code(code)
        verdict = judge(
            exit_text=exit_text if has_exited else "",
            is_ready=attempt.sockets is not None,
            is_stopping=self._is_stopping(),
            overdue_after=attempt.limit,
            is_overdue=now >= attempt.deadline,
        )
        if verdict.failure:
            self._fail(attempt, verdict.failure, now)
        elif verdict.succeeds:
            self._hand_over(attempt, now)

    def expects_stop(self) -> bool:
        """Return, once after an upgrade, that a stop signal is not the second one: there was no first."""
        expected, self._expects_stop = self._expects_stop, False
        return expected

    def kill(self) -> None:
        """Kill a successor that has not taken over. Its workers end with it."""
        if self._attempt is not None:
            self._attempt.successor.signal(signal.SIGKILL)

    def close(self) -> None:
        """Kill a successor that has not taken over, and collect it."""
        if self._attempt is not None:
            self._attempt.successor.end()
            self._forget(self._attempt)

    def _why_refused(self) -> str:
        slots = [slot for worker in self._host.workers for slot in worker.processes]
        return why_refused(
            is_running=self._supervisor.phase is ServerPhase.RUNNING,
            is_stopping=self._is_stopping(),
            pid=os.getpid(),
            # The parent of a process that has taken over is any that collects orphans.
            parent="" if handover.predecessor() else proc.name(os.getppid()),
            is_candidate=handover.is_candidate(),
            is_awaited=handover.is_awaited(),
            is_exclusive=any(slot.exclusive for slot in slots),
            has_sockets=bool(activation.listeners()),
            may_write_pid=pid_file.may_be_replaced(),
            other=0 if self._attempt is None else self._attempt.successor.pid,
        )

    def _receive(self, attempt: _Attempt, now: float) -> None:
        while message := attempt.successor.receive():
            if message is GONE:
                # It is stopping, or has exited.
                attempt.sockets = None
                return
            attempt.deadline = now + attempt.limit
            if message.get("stage") == "ready":
                attempt.sockets = frozenset(map(str, message.get("sockets", ())))

    def _hand_over(self, attempt: _Attempt, now: float) -> None:
        """Leave everything to the successor, and stop."""
        successor, sockets = attempt.successor, attempt.sockets or frozenset()
        for listener in activation.listeners():
            if listener.name in sockets:
                listener.share()
        # Before the successor tells it anything.
        systemd.notify(MAINPID=successor.pid)
        systemd.forget()
        operations, seconds = self._supervisor.operations, now - attempt.began
        shown = operations.finish(attempt.operation, f"the main process [{successor.pid}] serves")
        successor.send("yours", operation=shown)
        self._forget(attempt)
        self._supervisor.log.append(reports.upgrade_done(attempt.operation.id, successor.pid, seconds))
        # Without the drain delay: the successor accepts requests on the same sockets.
        self._supervisor.log.append(reports.stop_requested(f"the upgrade to [{successor.pid}]"))
        self._expects_stop = True
        self._supervisor.stop()

    def _fail(self, attempt: _Attempt, reason: str, now: float) -> None:
        """Stay in charge, and stop the successor."""
        successor, seconds = attempt.successor, now - attempt.began
        self._supervisor.operations.finish(attempt.operation, failure=reason)
        self._supervisor.log.append(
            reports.upgrade_failed(attempt.operation.id, successor.pid, seconds, reason)
        )
        successor.signal(signal.SIGTERM)
        attempt.kill_at = now + self._grace
        self._end(attempt, now)

    def _end(self, attempt: _Attempt, now: float) -> None:
        """Wait for the exit of a successor that was told to stop; kill it if that takes too long."""
        if attempt.successor.poll():
            self._forget(attempt)
        elif now >= attempt.kill_at:
            logger.warning(
                "The main process [%s] did not exit within %g s of the stop. Killing it.",
                attempt.successor.pid,
                self._grace,
            )
            self.kill()
            attempt.kill_at = now + self._grace

    @property
    def _grace(self) -> float:
        """How long a successor may take to stop, seconds."""
        return self._host.settings.drain_delay + self._host.settings.graceful_timeout

    def _forget(self, attempt: _Attempt) -> None:
        descriptors.forget(attempt.successor)
        attempt.successor.close()
        self._attempt, self.due_at = None, math.inf


def _started_successor() -> Successor:
    """Start the successor, with the sockets of this process.

    Raises:
        OSError: The system refuses it.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with theirs:
            fds = [*(listener.fileno() for listener in activation.listeners()), theirs.fileno()]
            environment = {
                **handover.start_environment(),
                **systemd.environment(),
                **activation.environment(),
                VARIABLE: f"{os.getpid()}:{activation.FIRST + len(fds) - 1}",
            }
            # systemd waits for the exit of a main process that is its child, and of no other one.
            is_orphan = systemd.is_notified()
            directory = handover.start_directory()
            pid = start_successor(environment, directory, fds, is_orphan=is_orphan)
            return Successor(pid, ours, is_child=not is_orphan)
    except BaseException:
        ours.close()
        raise


class TakeOver:
    """Takes the place of the predecessor once all servers of this process serve.

    Args:
        host (Host): The manager.
        supervisor (Supervisor): Knows the processes.
        predecessor (Predecessor): The main process that started this one.

    Attributes:
        due_at: When to look again, on the monotonic clock; ``inf``: this process has taken over.
    """

    def __init__(self, host: Host, supervisor: Supervisor, predecessor: Predecessor) -> None:
        self._host = host
        self._supervisor = supervisor
        self._predecessor = predecessor
        self._began = time.monotonic()
        self._has_told = False
        self.due_at = -math.inf
        descriptors.close_in_children(predecessor)
        predecessor.send("begun")

    def perform(self, now: float) -> None:
        """Tell the predecessor once the servers serve; take over once it has answered."""
        self.due_at = now + LOOK_AGAIN
        if self._supervisor.phase.is_over:
            # The predecessor does not leave the server to a process that is stopping.
            self._close()
            return
        message = self._predecessor.receive()
        stage = message.get("stage")
        # A predecessor that was killed cannot answer.
        if stage == "yours" or (stage == "gone" and self._has_told):
            self._take_over(now, message.get("operation"))
        elif stage == "gone":
            self._give_up("it has ended before the workers of this one served")
        elif any(self._supervisor.slot_phase(slot) is Phase.FAILED for slot in self._servers()):
            self._give_up("it goes on, as a worker of this one could not be started")
        elif not self._has_told and self._all_serve():
            names = [listener.name for listener in activation.listeners()]
            self._has_told = self._predecessor.send("ready", sockets=names)
            logger.info("Ready to take the place of the main process [%s].", self._predecessor.pid)

    def _servers(self) -> list[WorkerProcess]:
        return [slot for worker in self._host.workers for slot in worker.processes if slot.is_server]

    def _all_serve(self) -> bool:
        return len(ready_servers(self._supervisor)) == len(self._servers())

    def _take_over(self, now: float, operation: Any) -> None:
        self._predecessor.has_ceded = True
        for listener in activation.listeners():
            if listener.is_bound_here:
                listener.own()
        failure = None
        try:
            pid_file.take_over()
        except pid_file.PidFileError as error:
            failure = error
        # Not in the handler of the error: the command `sanic-worker` drops what is logged there.
        if failure is not None:
            error_logger.error("%s", failure)
        self._close()
        # A client may wait for the outcome.
        if isinstance(operation, dict) and operation.get("id"):
            self._supervisor.operations.adopt(operation)
        self._supervisor.log.append(reports.took_over(self._predecessor.pid, now - self._began))

    def _give_up(self, reason: str) -> None:
        self._close()
        error_logger.error("Not in place of the main process [%s]: %s.", self._predecessor.pid, reason)
        self._supervisor.gave_up = True
        self._host.shutdown()

    def _close(self) -> None:
        descriptors.forget(self._predecessor)
        self._predecessor.close()
        self.due_at = math.inf
