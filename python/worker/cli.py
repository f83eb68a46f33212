"""``sanic-worker``: the ``sanic`` command, on this manager."""

from __future__ import annotations

import sys
from argparse import SUPPRESS, ArgumentParser
from pathlib import Path

from worker import settings
from worker._core import core_info
from worker.integration import install

__all__ = ["main"]

SINGLE_PROCESS = "--single-process"


def main(args: list[str] | None = None) -> None:
    """Run the ``sanic`` command of the installed Sanic on this manager.

    The flags of our own, one a setting, are taken out before Sanic sees the rest.

    Args:
        args (list[str] | None): The arguments; ``None`` for those of the process.

    Raises:
        SystemExit: A flag has a wrong value (exit code 2), or whatever Sanic ends with.
    """
    _refuse_namesake()
    install()
    given = sys.argv[1:] if args is None else args
    # What follows is up to the inspector, whose commands take any arguments.
    if given[:1] != ["inspect"]:
        given = _take_flags(given)
    if given in (["--version"], ["-v"]):
        info = core_info()
        print(f"sanic-worker {info.version}; {info.core} core")
    from sanic import __main__ as sanic

    if args is None:
        # Sanic looks there too.
        sys.argv[1:] = given
    try:
        sanic.main(None if args is None else given)  # type: ignore[no-untyped-call]
    finally:
        if {"-h", "--help"} & {*given}:
            print(_parser().format_help().partition("\n\n")[2])


def _take_flags(given: list[str]) -> list[str]:
    parser = _parser()
    flags, rest = parser.parse_known_args(given)
    try:
        settings.take_flags(vars(flags))
        settings.resolve({})
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    # Sanic's parser takes abbreviations.
    if any(flag.startswith("--sin") and SINGLE_PROCESS.startswith(flag) for flag in rest):
        settings.warn_without_manager()
    return rest


def _parser() -> ArgumentParser:
    # Sanic's own flags are not to be taken for abbreviations of ours.
    parser = ArgumentParser("sanic-worker", add_help=False, allow_abbrev=False, argument_default=SUPPRESS)
    group = parser.add_argument_group("Settings of sanic-worker")
    for setting in settings.SETTINGS:
        text = f"{setting.meaning} Default: {setting.otherwise}."
        group.add_argument(
            setting.flag, dest=setting.name, metavar="X", help=text.replace("`", "").replace("%", "%%")
        )
    return parser


def _refuse_namesake() -> None:
    """End where the application's folder has a module of our name: each would get the other's."""
    ours = Path(__file__).parent.resolve()
    for namesake in (Path.cwd() / "worker.py", Path.cwd() / "worker" / "__init__.py"):
        if namesake.is_file() and namesake.parent.resolve() != ours:
            sys.exit(
                f"{namesake} has the name of the package that sanic-worker installs: an application that "
                "imports `worker` would get one and mean the other. Rename that file."
            )
