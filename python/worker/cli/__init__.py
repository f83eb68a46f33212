"""``sanic-worker``: serves an application, and inspects and controls a running server."""

from __future__ import annotations

import sys

__all__ = ["main"]

# The words that make a command one of the inspector's client, and not of Sanic's command.
CLIENT = ("inspect", "ps", "top", "events")


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
    if given and given[0] in CLIENT:
        from worker.cli.inspect import command

        if code := command.run(given):
            sys.exit(code)
    else:
        from worker.cli import sanic_command

        sanic_command.run(args)
