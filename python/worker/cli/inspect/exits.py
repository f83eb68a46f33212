"""The exit codes of the client, and the error that carries one."""

from __future__ import annotations

from worker.cli.exits import MeantCode

__all__ = ["CommandError", "ExitCode"]


class ExitCode(MeantCode):
    """The exit codes of the client."""

    DONE = 0, "done"
    FAILED = 1, "the server refused the request as wrong, or the operation failed"
    USAGE = 2, "the command is wrong, or several servers run here"
    UNREACHABLE = 3, "nothing listens, or no inspector answers in time"
    REFUSED = 4, "the key is wrong or missing, or the request is forbidden"
    STILL_RUNNING = 5, "the operation still runs when --timeout is over"
    INTERRUPTED = 130, "Ctrl-C"


class CommandError(Exception):
    """Ends the command with a message on stderr and an exit code."""

    def __init__(self, message: str, code: ExitCode) -> None:
        super().__init__(message)
        self.code = code
