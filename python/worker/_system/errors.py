"""The errors by which a server cannot begin."""

from __future__ import annotations

__all__ = ["BeginError"]


class BeginError(OSError):
    """The system refuses a server to begin; the message has the object, the reason and the remedy.

    Attributes:
        is_wrong_usage: Whether a setting is wrong, so that the next attempt would fail, too. Defaults to
            ``False``.
    """

    is_wrong_usage = False

    def __str__(self) -> str:
        return str(self.strerror)
