"""A worker's line to the process that manages it: ``app.m``."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from datetime import datetime, timezone
from os import environ, getpid
from time import monotonic, sleep
from typing import Any

from sanic.log import Colors, logger

from worker._compat import later_names
from worker._control.send import Publisher, send
from worker._state import identity
from worker._state.foreign import shared
from worker._state.shared import SharedState
from worker.constants import ProcessState
from worker.state import WorkerState

__all__ = ["WorkerMultiplexer"]

# How long an ack waits for its turn at the most, seconds.
ACK_PATIENCE = 1.0


class WorkerMultiplexer:
    """What a worker uses to talk to its manager, and to see the other processes.

    There is one in each worker, as ``app.multiplexer`` or ``app.m``. Whatever asks the manager for something
    returns when the message is sent, not when it is done, and raises ``ConnectionError`` where the main
    process is gone.

    Args:
        monitor_publisher (Publisher): The sending end of the pipe to the main process.
        worker_state (MutableMapping[str, Any]): The state of all processes, name to entry; any mapping that
            they share.
    """

    def __init__(self, monitor_publisher: Publisher, worker_state: MutableMapping[str, Any]) -> None:
        self._monitor_publisher = monitor_publisher
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

    @later_names
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
        """Ask the manager to run a function in processes of its own from now on.

        Args:
            ident (str): The name of the new worker, not yet in use; its processes are ``Sanic-<ident>-<i>``.
                The later releases' keyword ``name`` is accepted too.
            func (Callable): What to run. It is pickled, so it must be importable.
            kwargs (dict[str, Any]): The keyword arguments to call it with; picklable.
            transient (bool): Restart it with every global restart. Defaults to ``False``.
            restartable (bool | None): May it be restarted? ``None`` (the default): if it is transient.
            tracked (bool): Keep its entry in the state when it has ended. Defaults to ``False``.
            auto_start (bool): Start it at once. Defaults to ``True``.
            workers (int): How many processes run it. Defaults to 1.
        """
        self._send((ident, func, kwargs, transient, restartable, tracked, auto_start, workers))

    def set_serving(self, serving: bool) -> None:
        """Record whether this worker accepts connections, as ``serving`` in its entry.

        Where other processes see the entry, they find there as well since when it has: ``ready_at``.

        Where the state is gone, and main with it, nobody is left to know: the stop of the worker goes on.

        Raises:
            KeyError: This process has no entry in the state.
        """
        facts: dict[str, Any] = {"serving": serving}
        if serving and type(self._state._state) is not dict:
            facts["ready_at"] = datetime.now(tz=timezone.utc)
        try:
            self._record(facts)
        except (OSError, EOFError):
            logger.debug("Monitor process has already exited.")
        except RuntimeError as error:
            # It is damaged. That is no reason for a worker to end, nor to end in disorder.
            logger.debug("State entry of %s is damaged: %s. Not recorded: serving.", self.name, error)

    def exit(self) -> None:
        """Take this worker's entry out of the state, if there still is a state to take it out of."""
        try:
            del self._state._state[self.name]
        except KeyError:
            logger.debug("Worker state of %s has already been removed.", self.name)
        # A proxy finds its server gone in many ways, the address of it missing among them.
        except (OSError, EOFError, RuntimeError):
            logger.debug("Monitor process has already exited.")

    def restart(self, name: str = "", all_workers: bool = False, zero_downtime: bool = False) -> None:
        """Ask the manager to restart this worker, another one, or all.

        Args:
            name (str): The process to restart, or several, joined by commas. Defaults to this one.
            all_workers (bool): Restart all that restart with the server. Defaults to ``False``.
            zero_downtime (bool): Start the new process before the old one is told to leave.
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
        """Ask the manager to run ``num_workers`` server processes, at least one."""
        self._send(f"__SCALE__:{num_workers}")

    def terminate(self, early: bool = False) -> None:
        """Ask the manager to stop the whole server.

        Args:
            early (bool): This process failed to start: nothing more is to be hoped for from it.
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
        """The state of all processes, name to entry, in a ``dict`` of the caller's own."""
        return self._state.full()

    def _await_turn(self) -> None:
        """Wait for main's last word on the start of this process, which is its pid in the entry.

        Over a ``SyncManager`` a write is a read and a write: an ack that comes between the two of main's
        would be lost. Of any other mapping nobody knows whether main writes to the same one.
        """
        state = self._state._state
        if isinstance(state, SharedState):
            return
        from multiprocessing.managers import BaseProxy

        patience = monotonic() + ACK_PATIENCE
        while isinstance(state, BaseProxy) and state[self.name].get("pid") != identity.worker_pid():
            if monotonic() > patience:
                return
            sleep(ACK_PATIENCE / 200)

    def _record(self, changes: dict[str, Any]) -> None:
        shared(self._state._state).update_entry(self.name, changes, identity.worker_pid())

    def _send(self, message: Any) -> None:
        send(self._monitor_publisher, message)
