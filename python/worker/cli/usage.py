"""The help of ``sanic-worker`` as a whole, and its completion in a shell."""

from __future__ import annotations

import sys
from argparse import Action, ArgumentParser, HelpFormatter
from typing import Any

from worker import settings
from worker.cli.program import PROGRAM

__all__ = ["add_settings", "is_asked_for", "make_parser", "show"]

COMPLETION = "--print-completion"
SHELLS = ("bash", "zsh", "fish", "tcsh")
USAGE = f"""\
{PROGRAM} TARGET [options]
       {PROGRAM} check TARGET [options]
       {PROGRAM} ps | top | events [options]
       {PROGRAM} inspect [verb] [options]"""
DESCRIPTION = f"""\
Serve a Sanic application on the worker manager of this package, and control it while it runs.

  {PROGRAM} shop.server:app --workers 4    serve the application app of the module shop.server
  {PROGRAM} shop.server:create_app         serve the application that a function returns
  {PROGRAM} ./site --simple                serve the files of a directory
  {PROGRAM} check shop.server:app          start it once, without listening, and report how that went
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


class _Options(ArgumentParser):
    """Has no target: a verb stands in its place, and a shell knows nothing of targets."""

    def add_argument(self, *names: Any, **given: Any) -> Action:
        if names[0].startswith("-"):
            return super().add_argument(*names, **given)
        return Action([], names[0])


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
    if shell is None:
        print(make_parser().format_help(), end="")
        return
    name = shell.partition("=")[2] or "".join(given[given.index(shell) + 1 :][:1])
    if name not in SHELLS:
        known = ", ".join(SHELLS)
        print(f"{PROGRAM}: {COMPLETION} cannot be {name!r}: it takes one of {known}", file=sys.stderr)
        raise SystemExit(2)
    import shtab

    from worker.cli.check.arguments import ABOUT, add_options
    from worker.cli.inspect import arguments

    parser = make_parser(_Options)
    commands = arguments.add_verbs(parser)
    server = make_parser(_Options)
    check = commands.add_parser(
        "check", help=ABOUT, parents=[server], add_help=False, conflict_handler="resolve"
    )
    add_options(check)
    print(shtab.complete(parser, name))


def make_parser(kind: type[ArgumentParser] = ArgumentParser) -> ArgumentParser:
    """Return a parser with all arguments of the command. It only describes them: Sanic parses its own."""
    from sanic.cli.arguments import Group

    parser = kind(PROGRAM, USAGE, DESCRIPTION, EPILOG, formatter_class=_Formatter, conflict_handler="resolve")
    shells = f"{', '.join(SHELLS[:-1])} or {SHELLS[-1]}"
    parser.add_argument(
        COMPLETION, metavar="SHELL", choices=SHELLS, help=f"print the completion for {shells}"
    )
    groups: Any = Group
    for group in groups._registry:
        group.create(parser).attach()
    add_settings(parser, describes=True)
    return parser


def add_settings(parser: ArgumentParser, *, describes: bool = False) -> None:
    """Add the flag of each setting to a parser.

    Args:
        parser (ArgumentParser): The parser.
        describes (bool): Add the choices, too. Where flags are parsed, the setting refuses a wrong value.
    """
    group = parser.add_argument_group(f"settings of {PROGRAM}")
    for setting in settings.SETTINGS:
        # Sanic's parser reads this one. Its other name stays only here, as ours replaces both in the help.
        is_sanics = setting.name == "workers"
        if is_sanics and not describes:
            continue
        text = f"{setting.meaning} Default: {setting.default_text}. [env: {setting.variable}]"
        group.add_argument(
            *(["-w"] if is_sanics else []),
            setting.flag,
            dest=setting.name,
            metavar="X",
            choices=(describes and setting.choices) or None,
            help=text.replace("`", "").replace("%", "%%"),
        )
