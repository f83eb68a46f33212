"""The state entry of one slot, as the main process writes and reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, TypeVar

from sanic.log import error_logger, logger

from worker._state import schema
from worker._state.foreign import ForeignState, adapted
from worker._state.shared import SharedState
from worker.constants import NAME_LIMIT, excerpt

__all__ = ["Entry", "observed"]

T = TypeVar("T")


def observed(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the observed keys of an entry. A value of a wrong type counts as absent: workers can set it."""
    return {key: entry[key] for key, kind in schema.OBSERVED.items() if isinstance(entry.get(key), kind)}


class Entry:
    """The entry of one slot in ``worker_state``.

    The main process goes on without a state that is unreachable or full, and without an entry that is gone.
    A damaged entry is made anew.

    Args:
        state (MutableMapping[str, Any]): The shared state.
        name (str): The name of the slot.
        last_known (Callable): Returns the known fields of the process whose entry is damaged. Defaults to
            none.
    """

    def __init__(
        self, state: MutableMapping[str, Any], name: str, last_known: Callable[[], Mapping[str, Any]] = dict
    ) -> None:
        self._mapping = state
        self._state = adapted(state)
        self._name = name
        self._last_known = last_known

    @property
    def _shown(self) -> str:
        return excerpt(self._name, NAME_LIMIT)

    @property
    def is_foreign(self) -> bool:
        """Whether two processes of one name overwrite each other's values: the state is not our own."""
        return isinstance(self._state, ForeignState)

    @property
    def merges(self) -> bool:
        """Whether a write changes only its keys, so that concurrent writes are not lost."""
        return not isinstance(self._state, ForeignState) or self._state.merges

    def require(self, is_server: bool) -> None:
        """Make the entry if there is none.

        Raises:
            ConnectionError: The state is unreachable, full, or damaged beyond repair.
        """
        try:
            if not self._repaired(lambda: self._state.has_entry(self._name)):
                self._mapping[self._name] = {"server": is_server, **self._last_known()}
        except (OSError, EOFError) as error:
            raise ConnectionError(
                f"Cannot start {self._shown}: the state of the workers cannot be reached"
            ) from error
        except (MemoryError, RuntimeError) as error:
            raise ConnectionError(f"Cannot start {self._shown}: {error}") from error

    def read(self, pid: int = 0) -> Mapping[str, Any]:
        """Return the observed keys of the entry, or of the one that a process has staged; empty if none.

        Keys of users are not read: unpickling runs code of users.
        """
        try:
            return observed(
                self._repaired(lambda: self._state.read_keys(self._name, [*schema.OBSERVED], pid))
            )
        except (KeyError, OSError, EOFError, MemoryError, RuntimeError):
            return {}

    def record(self, changes: Mapping[str, Any]) -> None:
        """Set some keys of the entry."""
        self._try_write(lambda: self._state.update_entry(self._name, changes), changes)

    def hand_over(self, pid: int, changes: Mapping[str, Any]) -> None:
        """Hand the entry over to a process: set these keys, then those that the process has staged."""
        self._try_write(lambda: self._state.hand_over(self._name, pid, changes), changes)

    def drop_staged(self, pid: int) -> None:
        """Drop the entry that a process has staged."""
        self._try_write(lambda: self._state.drop_staged(self._name, pid), {})

    def remove(self) -> None:
        """Remove the entry."""
        try:
            self._repaired(lambda: self._mapping.__delitem__(self._name))
        except (OSError, EOFError):
            logger.debug("Monitor process has already exited.")
        except (KeyError, MemoryError, RuntimeError):
            logger.debug("Could not find worker state to delete.")

    # Not a context manager: an error that leaves one is in a reference cycle. CPython 3.12.1 crashes when it
    # collects such a cycle with an error from a pipe of `multiprocessing`.
    def _try_write(self, write: Callable[[], None], changes: Mapping[str, Any]) -> None:
        try:
            self._repaired(write)
        except (KeyError, OSError, EOFError, RuntimeError):
            logger.debug("State entry of %s is gone. Not recorded: %s.", self._shown, ", ".join(changes))
        except MemoryError as error:
            text = "State entry of %s cannot be written: %s. Not recorded: %s."
            error_logger.error(text, self._shown, error, ", ".join(changes))

    def _repaired(self, use: Callable[[], T]) -> T:
        """Use the entry; if its memory is damaged, make it anew and use it again."""
        try:
            return use()
        except RuntimeError as error:
            if not isinstance(self._state, SharedState):
                raise
            if self._state.is_first_damage(self._name):
                error_logger.error("State entry of %s is damaged: %s. Creating it again.", self._shown, error)
        self._state[self._name] = self._last_known()
        return use()
