"""``sanic-worker``: the ``sanic`` command, on this manager."""

from __future__ import annotations

import sys
from pathlib import Path

from worker._core import core_info
from worker.integration import install

__all__ = ["main"]


def main(args: list[str] | None = None) -> None:
    """Run the ``sanic`` command of the installed Sanic on this manager.

    Args:
        args (list[str] | None): The arguments; ``None`` for those of the process.
    """
    _refuse_namesake()
    install()
    if (sys.argv[1:] if args is None else args) in (["--version"], ["-v"]):
        info = core_info()
        print(f"sanic-worker {info.version}; {info.core} core")
    from sanic import __main__ as sanic

    sanic.main(args)  # type: ignore[no-untyped-call]


def _refuse_namesake() -> None:
    """End where the application's folder has a module of our name: each would get the other's."""
    ours = Path(__file__).parent.resolve()
    for namesake in (Path.cwd() / "worker.py", Path.cwd() / "worker" / "__init__.py"):
        if namesake.is_file() and namesake.parent.resolve() != ours:
            sys.exit(
                f"{namesake} has the name of the package that sanic-worker installs: an application that "
                "imports `worker` would get one and mean the other. Rename that file."
            )
