"""Runs one command of the client."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from time import monotonic

from worker.cli.inspect import address, arguments, verbs
from worker.cli.inspect.client import Client
from worker.cli.inspect.exits import CommandError, ExitCode
from worker.cli.program import PROGRAM

__all__ = ["run"]

# The longest time to wait for an answer, in seconds. A user's own command may take any time.
TIMEOUT = 30.0


def run(args: Sequence[str]) -> int:
    """Run a command; return its exit code (:class:`~worker.cli.inspect.exits.ExitCode`).

    Args:
        args (Sequence[str]): The command, from ``inspect`` or a short form on.
    """
    try:
        options = arguments.parse(args)
        where = address.find(options, os.environ)
        key = options.get("api_key") or os.environ.get("SANIC_INSPECTOR_API_KEY", "")
        if timeout := options.get("timeout"):
            options["deadline"] = monotonic() + timeout
        limit = timeout or (None if "arguments" in options else TIMEOUT)
        code = verbs.run(Client(where, key, limit), options)
        sys.stdout.flush()
    except CommandError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # The reader has seen enough: `| head`. The interpreter would complain when it flushes once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.FAILED
    return code
