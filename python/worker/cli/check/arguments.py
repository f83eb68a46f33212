"""The options of a check, which stand among the arguments of the server."""

from __future__ import annotations

import re
from argparse import ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

from worker.cli.check.exits import ExitCode
from worker.cli.durations import seconds
from worker.cli.early import NO_TARGETS, OTHER_ACTIONS
from worker.cli.program import PROGRAM

__all__ = ["ABOUT", "Options", "UsageError", "add_options", "make_parser", "parse"]

ABOUT = "Start an application once, without listening, and report how that went. Its listeners run."
USAGE = f"{PROGRAM} check [options] TARGET [options of the server]"
EPILOG = """\
All other arguments are those of the server. Nothing listens on its address.

exit codes:
{codes}
"""
# The time for each step if neither the user nor the application has given one, seconds.
LIMIT = 30.0


class UsageError(Exception):
    """The arguments of the command are wrong."""


@dataclass
class Options:
    """The options of a check.

    Attributes:
        server: The arguments of the server.
        paths: The paths that are requested.
        headers: The headers of the requests.
        expected: The status that they have to get; ``None`` for any below 400.
        timeout: The longest time for each step, seconds; ``None`` for the default.
        imports: Whether to list the longest imports.
        json: Whether to print the report as JSON.
    """

    server: list[str]
    paths: list[str]
    headers: list[tuple[str, str]]
    expected: int | None
    timeout: float | None
    imports: bool
    json: bool

    @property
    def limit(self) -> float:
        """The longest time for each step, seconds."""
        return LIMIT if self.timeout is None else self.timeout


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}. See {self.prog} --help")


def parse(args: Sequence[str]) -> Options:
    """Return the options of a check.

    Args:
        args (Sequence[str]): The arguments after ``check``.

    Raises:
        UsageError: The command is wrong.
        SystemExit: The command asked for help, which is printed.
    """
    found, server = make_parser().parse_known_args(args)
    if not server:
        raise UsageError(f"there is no target. See {PROGRAM} check --help")
    if server[0] in NO_TARGETS or (server[1:2] and server[1] in OTHER_ACTIONS):
        action = server[0] if server[0] in NO_TARGETS else server[1]
        raise UsageError(f"check takes the arguments of a server, and {action!r} starts none")
    return Options(server, found.get, found.header, found.expect, found.timeout, found.imports, found.json)


def make_parser() -> ArgumentParser:
    """Return the parser of the options."""
    codes = "\n".join(f"  {code:<5}{code.meaning}" for code in ExitCode)
    parser = _Parser(
        f"{PROGRAM} check",
        USAGE,
        ABOUT,
        EPILOG.format(codes=codes),
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_options(parser)
    return parser


def add_options(parser: ArgumentParser) -> None:
    """Add the options of a check to a parser."""
    parser.add_argument(
        "--get",
        metavar="PATH",
        type=_path,
        action="append",
        default=[],
        help="request this path when the worker is ready; may be given several times",
    )
    parser.add_argument(
        "--header",
        metavar="'NAME: VALUE'",
        type=_header,
        action="append",
        default=[],
        help="add a header to the requests; may be given several times",
    )
    parser.add_argument(
        "--expect",
        metavar="STATUS",
        type=_status,
        help="the status that the requests have to get [any below 400]",
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=partial(seconds, below=1e6),
        help="longest time for each step in the main process, for the start of the worker, for each request, "
        "and for the stop [30; for the start of the worker WorkerManager.THRESHOLD]",
    )
    parser.add_argument("--imports", action="store_true", help="list the ten longest imports")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def _path(text: str) -> str:
    if not re.fullmatch(r"/[!-~]*", text):
        raise ArgumentTypeError(f"cannot be {text!r}: it takes a path such as /health, percent-encoded")
    return text


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or not value.isprintable():
        raise ArgumentTypeError(f"cannot be {text!r}: it takes a header such as 'Accept: text/html'")
    return name, value.strip()


def _status(text: str) -> int:
    if not re.fullmatch(r"[1-5][0-9][0-9]", text):
        raise ArgumentTypeError(f"cannot be {text!r}: it takes a status from 100 to 599")
    return int(text)
