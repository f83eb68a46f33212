"""The exit codes of the client, and the error that carries one."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["CommandError", "ExitCode"]


class ExitCode(IntEnum):
    """The exit codes of the client, as in ``docs/command.md``."""

    DONE = 0
    """The request or the operation succeeded."""
    FAILED = 1
    """The server refused the request as wrong, or the operation failed."""
    USAGE = 2
    """The command is wrong."""
    UNREACHABLE = 3
    """Nothing listens, or no inspector answers."""
    REFUSED = 4
    """The key is wrong or missing, or the request is forbidden."""
    STILL_RUNNING = 5
    """The operation had not ended when ``--timeout`` was over."""
    INTERRUPTED = 130
    """Ctrl-C."""


class CommandError(Exception):
    """Ends the command with a message on stderr and an exit code."""

    def __init__(self, message: str, code: ExitCode) -> None:
        super().__init__(message)
        self.code = code
