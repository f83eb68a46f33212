"""The help of ``sanic-worker`` as a whole, and its completion in a shell."""

from __future__ import annotations

from argparse import ArgumentParser, HelpFormatter
from typing import Any

from worker import settings
from worker.cli.inspect import arguments
from worker.cli.program import PROGRAM

__all__ = ["add_settings", "is_asked_for", "make_parser", "show"]

COMPLETION = "--print-completion"
USAGE = f"""\
{PROGRAM} TARGET [options]
       {PROGRAM} ps | top | events [options]
       {PROGRAM} inspect [verb] [options]"""
DESCRIPTION = f"""\
Serve a Sanic application on the worker manager of this package, and control it while it runs.

  {PROGRAM} shop.server:app --workers 4    serve the application app of the module shop.server
  {PROGRAM} shop.server:create_app         serve the application that a function returns
  {PROGRAM} ./site --simple                serve the files of a directory
"""
EPILOG = f"""\
The options of Sanic are those of the installed release. A module named like a verb is served by its full
name, such as top:app. `{PROGRAM} inspect VERB --help` describes the options of a verb."""
# The first words of commands that have a help of their own.
SANICS_OWN = ("kill", "status", "restart")


class _Formatter(HelpFormatter):
    """Keeps the lines of a description, and wraps each line of a help text by itself."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "".join(f"{indent}{line}\n" for line in text.splitlines())

    def _split_lines(self, text: str, width: int) -> list[str]:
        split = super()._split_lines
        return [part for line in text.expandtabs(2).splitlines() for part in split(line, width)]


def is_asked_for(given: list[str]) -> bool:
    """Return whether a command asks for the help of ``sanic-worker``, or for its completion."""
    if not given:
        return False
    if given[0] == "help" or any(arg.partition("=")[0] == COMPLETION for arg in given):
        return True
    # The commands of an application (`exec`) take any arguments.
    has_own_help = given[0] in SANICS_OWN or given[1:2] == ["exec"]
    return not has_own_help and bool({"-h", "--help"} & {*given})


def show(given: list[str]) -> None:
    """Print the help, or the completion for a shell.

    Raises:
        SystemExit: There is no completion for the shell (exit code 2).
    """
    shell = next((arg for arg in given if arg.partition("=")[0] == COMPLETION), None)
    parser = make_parser()
    if shell is None:
        print(parser.format_help(), end="")
        return
    import shtab

    name = shell.partition("=")[2] or "".join(given[given.index(shell) + 1 :][:1])
    if name not in shtab.SUPPORTED_SHELLS:
        known = ", ".join(shtab.SUPPORTED_SHELLS)
        raise SystemExit(f"{PROGRAM}: {COMPLETION} cannot be {name!r}: it takes one of {known}")
    # A verb stands in the place of the target, of which nothing is known to a shell.
    parser._actions[:] = [action for action in parser._actions if action.option_strings]
    arguments.add_verbs(parser)
    print(shtab.complete(parser, name))


def make_parser() -> ArgumentParser:
    """Return a parser with all arguments of the command. It only describes them: Sanic parses its own."""
    from sanic.cli.arguments import Group

    parser = ArgumentParser(PROGRAM, USAGE, DESCRIPTION, EPILOG, formatter_class=_Formatter)
    parser.add_argument(COMPLETION, metavar="SHELL", help="print the completion for bash, zsh, fish or tcsh")
    groups: Any = Group
    for group in groups._registry:
        group.create(parser).attach()
    add_settings(parser)
    return parser


def add_settings(parser: ArgumentParser) -> None:
    """Add the flag of each setting to a parser."""
    group = parser.add_argument_group(f"settings of {PROGRAM}")
    for setting in settings.SETTINGS:
        text = f"{setting.meaning} Default: {setting.default_text}. [env: {setting.variable}]"
        group.add_argument(
            setting.flag, dest=setting.name, metavar="X", help=text.replace("`", "").replace("%", "%%")
        )
