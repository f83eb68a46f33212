"""The marks that :func:`worker.inspector.action` leaves on a method."""

from __future__ import annotations

from types import FunctionType
from typing import Any, NamedTuple

from worker.constants import excerpt

__all__ = ["Marks", "marks_of", "set_marks"]

ATTRIBUTE = "__inspector_action__"


class Marks(NamedTuple):
    """How a method can be called over HTTP.

    Attributes:
        read_only: By GET, too.
        hidden: Not at all.
    """

    read_only: bool = False
    hidden: bool = False


def set_marks(method: Any, marks: Marks) -> None:
    """Mark a method, in the body of its class.

    Raises:
        TypeError: It is no method.
    """
    if not isinstance(method, (FunctionType, classmethod)):
        raise TypeError(f"action() marks methods, and {excerpt(method)} is none")
    setattr(method, ATTRIBUTE, marks)


def marks_of(method: Any) -> Marks | None:
    """Return the marks of a member of a class, as the class holds it; ``None`` if it has none."""
    return getattr(method, ATTRIBUTE, None)
