"""The entry of one place in the table of processes, as main keeps it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, TypeVar

from sanic.log import error_logger, logger

from worker._state import schema
from worker._state.foreign import ForeignState, shared
from worker._state.shared import SharedState
from worker.constants import NAME_LIMIT, excerpt

__all__ = ["Entry", "known"]

T = TypeVar("T")


def known(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return what main goes by of an entry; what is of another type counts as absent, whoever has set it."""
    return {key: entry[key] for key, kind in schema.OBSERVED.items() if isinstance(entry.get(key), kind)}


class Entry:
    """What ``worker_state`` holds under the name of one place.

    A state that cannot be reached or is full, or an entry that is gone, is nothing to fail for: main goes on
    without. One that was damaged is made anew.

    Args:
        state (MutableMapping[str, Any]): The state of all processes.
        name (str): The place, and its process.
        lost (Callable): Tells what main knows of the process whose entry is lost. Defaults to nothing.
    """

    def __init__(
        self, state: MutableMapping[str, Any], name: str, lost: Callable[[], Mapping[str, Any]] = dict
    ) -> None:
        self._mapping = state
        self._state = shared(state)
        self._name = name
        self._lost = lost

    @property
    def _shown(self) -> str:
        return excerpt(self._name, NAME_LIMIT)

    @property
    def is_foreign(self) -> bool:
        """Whether two processes of the same name write over each other's words."""
        return isinstance(self._state, ForeignState)

    @property
    def merges(self) -> bool:
        """Whether a write changes nothing but its keys, so that none is lost."""
        return not isinstance(self._state, ForeignState) or self._state.merges

    def require(self, is_server: bool) -> None:
        """See to it that there is one.

        Raises:
            ConnectionError: The state cannot be reached, is full, or is damaged for good.
        """
        try:
            if not self._mended(lambda: self._state.has_entry(self._name)):
                self._mapping[self._name] = {"server": is_server, **self._lost()}
        except (OSError, EOFError) as error:
            raise ConnectionError(
                f"Cannot start {self._shown}: the state of the workers cannot be reached"
            ) from error
        except (MemoryError, RuntimeError) as error:
            raise ConnectionError(f"Cannot start {self._shown}: {error}") from error

    def read(self, pid: int = 0) -> Mapping[str, Any]:
        """Return what main asks for of it, or of what a process has said while it was another's.

        Empty if there is none. The users' keys are left alone: to unpickle runs code of theirs.
        """
        try:
            return known(self._mended(lambda: self._state.some(self._name, [*schema.OBSERVED], pid)))
        except (KeyError, OSError, EOFError, MemoryError, RuntimeError):
            return {}

    def record(self, changes: Mapping[str, Any]) -> None:
        """Set some keys."""
        self._reach(lambda: self._state.update_entry(self._name, changes), changes)

    def hand_over(self, pid: int, changes: Mapping[str, Any]) -> None:
        """Let it be that of a process: set these keys, then those that the process has written already."""
        self._reach(lambda: self._state.hand_over(self._name, pid, changes), changes)

    def drop_part(self, pid: int) -> None:
        """Forget what a process has said while the entry was another's."""
        self._reach(lambda: self._state.drop_part(self._name, pid), {})

    def remove(self) -> None:
        """Remove it."""
        try:
            self._mended(lambda: self._mapping.__delitem__(self._name))
        except (OSError, EOFError):
            logger.debug("Monitor process has already exited.")
        except (KeyError, MemoryError, RuntimeError):
            logger.debug("Could not find worker state to delete.")

    # Not a context manager: the error that leaves one is in a cycle, and of one that comes from a pipe of
    # `multiprocessing` CPython 3.12.1 crashes when it collects that.
    def _reach(self, write: Callable[[], None], changes: Mapping[str, Any]) -> None:
        try:
            self._mended(write)
        except (KeyError, OSError, EOFError, RuntimeError):
            logger.debug("State entry of %s is gone. Not recorded: %s.", self._shown, ", ".join(changes))
        except MemoryError as error:
            text = "State entry of %s cannot be written: %s. Not recorded: %s."
            error_logger.error(text, self._shown, error, ", ".join(changes))

    def _mended(self, use: Callable[[], T]) -> T:
        """Use it; where something else has written to its memory, make it anew and use that."""
        try:
            return use()
        except RuntimeError as error:
            if not isinstance(self._state, SharedState):
                raise
            if self._state.is_first_damage(self._name):
                error_logger.error("State entry of %s is damaged: %s. Creating it again.", self._shown, error)
        self._state[self._name] = self._lost()
        return use()
