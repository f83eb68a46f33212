"""The exit code of the main process. Sanic knows 0 and 1; the manager notes a more exact one for its end."""

from __future__ import annotations

from worker.constants import ExitCode

__all__ = ["note", "noted"]

_noted = ExitCode.STOPPED


def note(code: ExitCode) -> None:
    """Note how the server of this process ends."""
    global _noted
    _noted = code


def noted() -> ExitCode:
    """Return how the last server of this process has ended."""
    return _noted
