"""The connection of a worker to its manager: ``app.m``."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from datetime import datetime, timezone
from os import environ, getpid
from time import monotonic, sleep
from typing import Any

from sanic.log import Colors, logger

from worker._control.send import Publisher, recycle, report_busy, send
from worker._state import identity
from worker._state.foreign import adapted
from worker._state.shared import SharedState
from worker.constants import ProcessState, accept_newer_keywords
from worker.state import WorkerState

__all__ = ["WorkerMultiplexer"]

# How long an ack waits for its turn at most, seconds.
ACK_TIMEOUT = 1.0


class WorkerMultiplexer:
    """Sends commands of a worker to its manager, and shows the state of all processes.

    Each worker has one, as ``app.multiplexer`` or ``app.m``. A method that sends a command returns when the
    command is sent, not when it is done. It raises ``ConnectionError`` if the main process is gone.

    Args:
        monitor_publisher (Publisher): The sending end of the control channel.
        worker_state (MutableMapping[str, Any]): The state of all processes, name to entry; any mapping that
            they share.
    """

    def __init__(self, monitor_publisher: Publisher, worker_state: MutableMapping[str, Any]) -> None:
        self._monitor_publisher = monitor_publisher
        self._all_entries = worker_state
        self._state = WorkerState(worker_state, self.name)

    def ack(self) -> None:
        """Tell the manager that this worker has started: its state becomes ``ACKED``.

        Raises:
            KeyError: This process has no entry in the state.
        """
        logger.debug(
            f"{Colors.BLUE}Process ack: {Colors.BOLD}{Colors.SANIC}%s {Colors.BLUE}[%s]{Colors.END}",
            self.name,
            self.pid,
        )
        self._await_turn()
        self._record({"state": ProcessState.ACKED.name})

    @accept_newer_keywords
    def manage(
        self,
        ident: str,
        func: Callable[..., Any],
        kwargs: dict[str, Any],
        transient: bool = False,
        restartable: bool | None = None,
        tracked: bool = False,
        auto_start: bool = True,
        workers: int = 1,
    ) -> None:
        """Request that the manager runs a function in processes of its own.

        Args:
            ident (str): The name of the new worker, not yet in use; its processes are ``Sanic-<ident>-<i>``.
                The keyword ``name`` of later releases is accepted, too.
            func (Callable): The function. It is pickled, so it must be importable.
            kwargs (dict[str, Any]): The keyword arguments to call it with; picklable.
            transient (bool): Restart it with every global restart. Defaults to ``False``.
            restartable (bool | None): Whether it may be restarted. Defaults to ``None``: if it is transient.
            tracked (bool): Keep its entry in the state after its exit. Defaults to ``False``.
            auto_start (bool): Start it at once. Defaults to ``True``.
            workers (int): The number of its processes. Defaults to 1.
        """
        self._send((ident, func, kwargs, transient, restartable, tracked, auto_start, workers))

    def set_serving(self, serving: bool) -> None:
        """Record whether this worker accepts connections, as ``serving`` in its entry.

        If other processes share the state, the entry also gets the time, as ``ready_at``.

        If the state and the main process are gone, nothing is recorded, and the stop of the worker goes on.

        Raises:
            KeyError: This process has no entry in the state.
        """
        fields: dict[str, Any] = {"serving": serving}
        if serving and type(self._all_entries) is not dict:
            fields["ready_at"] = datetime.now(tz=timezone.utc)
        try:
            self._record(fields)
        except (OSError, EOFError):
            logger.debug("Monitor process has already exited.")
        except RuntimeError as error:
            # A damaged entry must neither end a worker nor disturb its stop.
            logger.debug("State entry of %s is damaged: %s. Not recorded: serving.", self.name, error)

    def exit(self) -> None:
        """Remove this worker's entry from the state, if there still is one."""
        try:
            del self._all_entries[self.name]
        except KeyError:
            logger.debug("Worker state of %s has already been removed.", self.name)
        # A proxy without its server raises one of many errors, that of a missing address among them.
        except (OSError, EOFError, RuntimeError):
            logger.debug("Monitor process has already exited.")

    def restart(self, name: str = "", all_workers: bool = False, zero_downtime: bool = False) -> None:
        """Request a restart of this worker, of another one, or of all.

        Args:
            name (str): The process to restart, or several, joined by commas. Defaults to this one.
            all_workers (bool): Restart all that restart with the server. Defaults to ``False``.
            zero_downtime (bool): Start the new process before the old one is stopped.
                Defaults to ``False``.

        Raises:
            ValueError: Both ``name`` and ``all_workers`` are given.
        """
        if name and all_workers:
            raise ValueError("Ambiguous restart with both a named process and all_workers=True")
        if not name:
            name = "__ALL_PROCESSES__" if all_workers else self.name
        message = name if name.endswith(":") else f"{name}:"
        self._send(f"{message}:STARTUP_FIRST" if zero_downtime else message)

    reload = restart

    def scale(self, num_workers: int) -> None:
        """Request that the manager runs ``num_workers`` servers, at least one."""
        self._send(f"__SCALE__:{num_workers}")

    def terminate(self, early: bool = False) -> None:
        """Request a stop of the whole server.

        Args:
            early (bool): This process failed to start, and will never be ready.
                Defaults to ``False``.
        """
        self._send("__TERMINATE_EARLY__" if early else "__TERMINATE__")

    @property
    def pid(self) -> int:
        """The process id of this worker."""
        return getpid()

    @property
    def name(self) -> str:
        """The name of this worker; empty in a process that is not managed."""
        return environ.get("SANIC_WORKER_NAME", "")

    @property
    def state(self) -> WorkerState:
        """This worker's own entry in the state."""
        return self._state

    @property
    def workers(self) -> dict[str, Any]:
        """The state of all processes, name to entry, in a new ``dict``."""
        return self._state.full()

    def _await_turn(self) -> None:
        """Wait for the last write of the main process about this start: the pid in the entry.

        Over a ``SyncManager``, the main process reads and writes the whole entry. An ack between the two
        would be lost. Any other mapping may not be shared with the main process, so there is no wait.
        """
        state = self._all_entries
        if isinstance(state, SharedState):
            return
        from multiprocessing.managers import BaseProxy

        deadline = monotonic() + ACK_TIMEOUT
        while isinstance(state, BaseProxy) and state[self.name].get("pid") != identity.worker_pid():
            if monotonic() > deadline:
                return
            sleep(ACK_TIMEOUT / 200)

    def _record(self, changes: dict[str, Any]) -> None:
        adapted(self._all_entries).update_entry(self.name, changes, identity.worker_pid())

    def _request_recycling(self, cause: str, value: float, limit: float) -> bool:
        """Request that a new process replaces this one, unless the control channel is full."""
        return recycle(self._monitor_publisher, cause, value, limit)

    def _report_busy(self) -> bool:
        """Report that this server has become busy, unless the control channel is full."""
        return report_busy(self._monitor_publisher)

    def _send(self, message: Any) -> None:
        send(self._monitor_publisher, message)
