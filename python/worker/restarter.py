"""Selects the processes of a restart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from sanic.log import error_logger

from worker.constants import NAME_LIMIT, ProcessState, RestartOrder, excerpt, listed

__all__ = ["Restarter"]

_FINAL = (ProcessState.COMPLETED, ProcessState.FAILED, ProcessState.NONE)


class Restartable(Protocol):
    """A slot of the process table, as :class:`Restarter` uses it."""

    name: str
    state: ProcessState
    restartable: bool

    def restart(self, restart_order: RestartOrder = ..., **kwargs: Any) -> None:
        """Restart it."""


class Restarter:
    """Restarts the selected processes of the manager, and logs names without a restarted process.

    A transient process restarts with the server. A durable process is restarted only by name, and only after
    it has exited.
    """

    def restart(
        self,
        transient_processes: Iterable[Restartable],
        durable_processes: Iterable[Restartable],
        process_names: Sequence[str] | None = None,
        restart_order: RestartOrder = RestartOrder.SHUTDOWN_FIRST,
        **kwargs: Any,
    ) -> None:
        """Restart those of the processes that are restartable.

        A durable process that still runs, and names without a restarted process, are logged as errors.

        Args:
            transient_processes (Iterable[WorkerProcess]): The manager's transient processes.
            durable_processes (Iterable[WorkerProcess]): The manager's durable processes.
            process_names (Sequence[str] | None): The processes to restart; ``None`` or empty for every
                transient one. Defaults to ``None``.
            restart_order (RestartOrder): The order. Defaults to ``RestartOrder.SHUTDOWN_FIRST``.
            **kwargs: Passed on to :meth:`worker.process.WorkerProcess.restart`.

        Raises:
            Exception: The error of the first restart that failed, after all restarts were tried.
        """
        names = dict.fromkeys(process_names or ())
        transient = [process for process in transient_processes if not names or process.name in names]
        durable = [process for process in durable_processes if process.name in names]
        meant = [process for process in transient if process.restartable]
        meant += [process for process in durable if process.restartable and _has_ended(process)]
        failed: list[tuple[str, Exception]] = []
        for process in meant:
            names.pop(process.name, None)
            try:
                process.restart(restart_order=restart_order, **kwargs)
            except Exception as exc:
                failed.append((process.name, exc))
        if names:
            error_logger.error(f"Failed to restart processes: {listed([*names])}")
        if failed:
            _log_failures(failed[1:])
            raise failed[0][1]


def _log_failures(failed: Sequence[tuple[str, Exception]]) -> None:
    """Log failed restarts, one line for each error."""
    found: dict[str, tuple[list[str], Exception]] = {}
    for name, error in failed:
        names, _ = found.setdefault(f"{type(error).__name__}: {excerpt(error)}", ([], error))
        names.append(name)
    for text, (names, error) in found.items():
        # The state of the workers cannot be reached. That is no fault in code: a traceback would not help.
        trace = None if isinstance(error, ConnectionError) else error
        error_logger.error("Failed to restart %s: %s", listed(names), text, exc_info=trace)


def _has_ended(process: Restartable) -> bool:
    if process.state in _FINAL:
        return True
    error_logger.error(
        f"Cannot restart process {excerpt(process.name, NAME_LIMIT)} because it is not in a final state. "
        f"Current state is: {process.state.name}."
    )
    return False
