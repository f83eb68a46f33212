"""The exit codes of the client, and the error that carries one."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["CommandError", "ExitCode"]


class ExitCode(IntEnum):
    """The exit codes of the client.

    Attributes:
        meaning: The cause in words.
    """

    meaning: str

    DONE = 0, "done"
    FAILED = 1, "the server refused the request as wrong, or the operation failed"
    USAGE = 2, "the command is wrong, or several servers run here"
    UNREACHABLE = 3, "nothing listens, or no inspector answers in time"
    REFUSED = 4, "the key is wrong or missing, or the request is forbidden"
    STILL_RUNNING = 5, "the operation still runs when --timeout is over"
    INTERRUPTED = 130, "Ctrl-C"

    def __new__(cls, value: int, meaning: str) -> ExitCode:
        """Return the code with its meaning."""
        code = int.__new__(cls, value)
        code._value_ = value
        code.meaning = meaning
        return code


class CommandError(Exception):
    """Ends the command with a message on stderr and an exit code."""

    def __init__(self, message: str, code: ExitCode) -> None:
        super().__init__(message)
        self.code = code
