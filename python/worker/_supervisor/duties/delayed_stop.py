"""Stops the server after the drain delay, in which load balancers learn that it stops."""

from __future__ import annotations

import math
import time
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING

from sanic.log import logger

from worker._state.foreign import adapted
from worker._supervisor import reports
from worker._supervisor.model import ServerPhase
from worker.constants import MAIN_NAME
from worker.process import get_now

if TYPE_CHECKING:
    from collections.abc import MutableMapping
    from typing import Any

    from worker._supervisor.supervisor import Supervisor

__all__ = ["DelayedStop"]


class DelayedStop:
    """Stops the server on request, at once or after the drain delay.

    During the delay the entry of the main process shows the time of the stop, by which ``/readyz`` answers
    503. Everything else goes on: requests are accepted, and workers are replaced.

    Args:
        supervisor (Supervisor): Stops the processes.
        state (MutableMapping[str, Any]): The shared state.
        delay (float): The drain delay, seconds; 0 for none.

    Attributes:
        due_at: When the stop begins, on the monotonic clock; ``inf``: it was not requested, or has begun.
    """

    def __init__(self, supervisor: Supervisor, state: MutableMapping[str, Any], delay: float) -> None:
        self._supervisor = supervisor
        self._state = state
        self._delay = delay
        self.due_at = math.inf

    @property
    def is_waiting(self) -> bool:
        """Whether a stop was requested that has not begun."""
        return self.due_at < math.inf

    def skip_delay(self) -> None:
        """Let the next request begin the stop at once."""
        self._delay = 0.0
        self.due_at = math.inf

    def request(self) -> None:
        """Stop the server after the delay; at once if it does not serve. Another request changes nothing."""
        supervisor = self._supervisor
        if supervisor.phase is not ServerPhase.RUNNING or supervisor.gave_up:
            self.skip_delay()
        if self.is_waiting:
            logger.debug("Stop request ignored: the server stops already, after its drain delay.")
            return
        if delay := self._delay:
            # First of all: a probe must fail before anything else is seen of the stop.
            self._show(delay)
            self.due_at = time.monotonic() + delay
        if not supervisor.phase.is_over:
            supervisor.log.append(reports.stop_requested(supervisor.operations.origin.name, delay))
        if not delay:
            supervisor.stop()

    def perform(self, now: float) -> None:
        """Begin the stop."""
        self.skip_delay()
        logger.info("The drain delay is over: no more requests are accepted.")
        self._supervisor.stop()

    def _show(self, delay: float) -> None:
        changes = {"stop_at": get_now() + timedelta(seconds=delay)}
        # The stop goes on without a state that is unreachable, closed or damaged.
        with suppress(OSError, EOFError, ValueError, RuntimeError, KeyError):
            adapted(self._state).update_entry(MAIN_NAME, changes)
