"""``python -m worker``: the same as ``sanic-worker``, which starts here too.

A spawned worker imports the program that was run. The command is imported in its function, so that a worker
does without it.
"""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run the command with the arguments of this process."""
    from worker import cli

    cli.main()


if __name__ == "__main__":
    main()
