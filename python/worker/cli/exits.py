"""The base of exit codes that have a meaning in words."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["MeantCode"]


class MeantCode(IntEnum):
    """An exit code with its meaning: a member is ``NAME = number, "meaning"``.

    Attributes:
        meaning: The meaning in words.
    """

    meaning: str

    def __new__(cls, value: int, meaning: str) -> MeantCode:
        """Return the code with its meaning."""
        code = int.__new__(cls, value)
        code._value_ = value
        code.meaning = meaning
        return code
