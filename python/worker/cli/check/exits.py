"""The exit codes of a check."""

from __future__ import annotations

from worker.cli.exits import MeantCode

__all__ = ["ExitCode"]


class ExitCode(MeantCode):
    """The exit codes of a check."""

    FINE = 0, "the application starts, serves and stops"
    FAILED = 1, "the application fails"
    USAGE = 2, "the command, a setting or the target is wrong"
    TIMEOUT = 3, "a step took longer than --timeout"
    INTERRUPTED = 130, "Ctrl-C"
