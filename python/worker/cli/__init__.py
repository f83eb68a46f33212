"""``sanic-worker``: serves or checks an application, and inspects and controls a running server."""

from __future__ import annotations

import gc
import sys

__all__ = ["main"]

# The words that make a command one of the inspector's client, and not of Sanic's command.
CLIENT = ("inspect", "ps", "top", "events")
# The options of the client, which may stand before the verb: those with a value, and those without.
VALUED = ("-H", "--host", "-p", "--port", "-k", "--api-key", "--unix", "--timeout")
FLAGS = ("-s", "--secure", "--json", "--raw")


def main(args: list[str] | None = None) -> None:
    """Run ``sanic-worker``.

    The client of the inspector imports neither Sanic nor an application, so it starts at once. Any other
    command is one of the installed Sanic, on this manager.

    Args:
        args (list[str] | None): The arguments; ``None`` for those of the process.

    Raises:
        SystemExit: The command did not succeed. ``docs/command.md`` lists the exit codes of the client. For
            Sanic's command it is 2 for a mistake, 1 for a failure, or the exit code of Sanic.
    """
    given = sys.argv[1:] if args is None else args
    if given[:1] == ["check"]:
        from worker.cli.check import command as check

        if code := check.run(args):
            sys.exit(code)
        return
    place = _place_of_verb(given)
    if place is not None:
        from worker.cli.inspect import command

        if code := command.run([given[place], *given[:place], *given[place + 1 :]]):
            sys.exit(code)
    else:
        from worker._system import init
        from worker.cli.early import start_preload

        # Both before Sanic is imported, which takes a while.
        init.obey_early_stop()
        is_program = args is None
        start_preload(given, is_program=is_program)
        if is_program:
            # It would look again and again at the objects of all modules, of which hardly any is garbage.
            gc.disable()
        from worker.cli import sanic_command

        if is_program:
            # Without this, it would now look at all of them at once.
            gc.freeze()
            gc.enable()
        sanic_command.run(args)


def _place_of_verb(given: list[str]) -> int | None:
    """Return the index of the client's verb; ``None`` if the command is not one of the client."""
    words = iter(enumerate(given))
    for index, word in words:
        if not word.startswith("-"):
            return index if word in CLIENT else None
        if word in VALUED:
            next(words, None)
        elif word not in FLAGS and word.partition("=")[0] not in VALUED and word[:2] not in VALUED:
            return None
    return None
