"""Starts the preload process before the command imports Sanic, so that both import at the same time."""

from __future__ import annotations

import os
from contextlib import suppress

__all__ = ["APP", "NO_TARGETS", "OTHER_ACTIONS", "start_preload"]

FLAG = "--preload"
VARIABLE = "SANIC_WORKER_PRELOAD"
OFF, APP = "off", "app"
# The options with which Sanic's command serves nothing, serves without a manager, or loads the application
# and then forks: the process that serves is not the parent then. The command accepts their abbreviations.
WITHOUT_PRELOAD = ("--help", "--version", "--single-process", "--repl", "--print-completion", "--daemon")
# The letters for these, which may stand together with others (`-dD`).
SHORT = frozenset("hD")
# The words in the place of a target, and after one, that make a command of Sanic do something else.
NO_TARGETS = ("exec", "help", "inspect", "kill", "restart", "status")
OTHER_ACTIONS = ("exec", "restart", "status", "stop")


def start_preload(given: list[str], *, is_program: bool) -> None:
    """Start the preload process, if the command is one that serves with a manager.

    Nothing but the command line and the environment is known yet. If the application then chooses another
    start method, the process is ended again.

    Args:
        given (list[str]): The arguments of the command.
        is_program (bool): Whether the command is the program that was run, and not called by a script. A
            child would import that script before it installs this package.
    """
    if "SANIC_WORKER_NAME" in os.environ or _is_off(given) or not _serves(given):
        return
    from worker._spawn.preload.preloads import preloads
    from worker._spawn.preload.process import PreloadError

    preloads.installs = is_program
    # The manager tries it again, and reports the reason.
    with suppress(PreloadError):
        preloads.start()


def _is_off(given: list[str]) -> bool:
    value = os.environ.get(VARIABLE, "")
    for index, arg in enumerate(given):
        if arg == FLAG:
            value = "".join(given[index + 1 : index + 2])
        elif arg.startswith(f"{FLAG}="):
            value = arg.partition("=")[2]
    return value == OFF


def _serves(given: list[str]) -> bool:
    # Sanic takes `-v` alone for `--version`.
    if not given or given == ["-v"] or given[0] in NO_TARGETS or (given[1:2] and given[1] in OTHER_ACTIONS):
        return False
    return not any(map(_needs_none, given))


def _needs_none(arg: str) -> bool:
    if not arg.startswith("--"):
        # Where the letters are a value (`-Hhost`), the manager starts the process, a little later.
        return arg.startswith("-") and not SHORT.isdisjoint(arg)
    option = arg.partition("=")[0]
    return len(option) > 3 and any(name.startswith(option) for name in WITHOUT_PRELOAD)
