"""Merges restart commands that are equal."""

from __future__ import annotations

from collections.abc import Iterable

from worker._core.messages import Command, Event, Opaque, Received, Restart

__all__ = ["Coalescing", "coalesce"]


class Coalescing:
    """Merges equal restarts that follow each other.

    Restarts are equal if their files and their order are, and if either all of them name processes or none
    does. The merged restart has the names of all, each once, in the order of arrival, and the first sender.
    Restarts that differ are kept in the order of the first of each kind. No other event is overtaken.

    Attributes:
        size: The number of events and of the names in them, together.
    """

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._alike: dict[tuple[bool, str | None, str], tuple[Received, Restart, dict[str, None]]] = {}
        self.size = 0

    def add(self, event: Event) -> None:
        """Add one event."""
        command = event.command if isinstance(event, Received) else None
        if not isinstance(event, Received) or not isinstance(command, Restart):
            self._settle()
            self._events.append(event)
            self.size += 1
            return
        kind = _kind(command)
        if kind not in self._alike:
            self._alike[kind] = (event, command, {})
            self.size += 1
        _, _, names = self._alike[kind]
        before = len(names)
        names.update(dict.fromkeys(command.names or ()))
        self.size += len(names) - before

    def has(self, command: Command | Opaque) -> bool:
        """Return whether adding this command would change nothing."""
        if not isinstance(command, Restart) or (kind := _kind(command)) not in self._alike:
            return False
        _, _, names = self._alike[kind]
        return all(name in names for name in command.names or ())

    def take(self) -> list[Event]:
        """Return all events, in order, and start anew."""
        self._settle()
        events, self._events, self.size = self._events, [], 0
        return events

    def _settle(self) -> None:
        for event, command, names in self._alike.values():
            union = command.names is not None and len(names) != len(command.names)
            restart = command.replace(names=tuple(names)) if union else command
            self._events.append(Received(restart, event.sender) if union else event)
        self._alike.clear()


def _kind(command: Restart) -> tuple[bool, str | None, str]:
    # The name of the order: hashing an enum member takes longer.
    return command.names is None, command.files, command.order.name


def coalesce(events: Iterable[Event]) -> list[Event]:
    """Merge restarts that are equal (see :class:`Coalescing`)."""
    coalescing = Coalescing()
    for event in events:
        coalescing.add(event)
    return coalescing.take()
