"""The arguments of the client: its verbs, their options, and those of users' own commands."""

from __future__ import annotations

import re
from argparse import REMAINDER, SUPPRESS, ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Sequence
from typing import Any, NoReturn

from worker.cli.durations import seconds
from worker.cli.inspect.events import Since, parse_since
from worker.cli.inspect.exits import CommandError, ExitCode
from worker.cli.program import PROGRAM

__all__ = ["SHORT", "VERBS", "add_verbs", "make_parser", "parse"]

# The verbs that also are commands of their own.
SHORT = ("ps", "top", "events")
DEFAULT_VERB = "ps"
# Each verb with its help; the first line is the one of the list.
VERBS = {
    "ps": "Show the workers as a table. This is the default.",
    "top": "Show the workers live in the terminal: sort, restart and scale them by keys.",
    "status": "Show the server in a few lines: workers ready, uptime, restarts, running operations.",
    "reload": "Restart all workers.",
    "restart": "Restart workers by name.",
    "scale": "Change the number of workers.",
    "events": "Show the events of the server: starts, exits, restarts, rollouts.",
    "operations": "Show the last restarts, reloads and scalings, and how they ended.",
    "operation": "Show one operation.",
    "stacks": "Show the stacks of a process: threads, tasks and requests, also if it is stuck.",
    "upgrade": "Replace the main process by a new one with new code, on the same sockets.",
    "shutdown": "Stop the whole server.",
    "metrics": "Print the metrics, as Prometheus reads them.",
    "info": "Print the information on the application and its workers as JSON, as Sanic has it.",
}
ABOUT = "Inspect and control a running server."
EPILOG = """\
Any other verb is a command of the application's own inspector:

  {program} mine one two --key=value --flag --no-other

calls its method mine("one", "two", key="value", flag=True, other=False). After such a verb, only Sanic's own
options (--host, --port, --secure, --api-key, --raw) belong to this command; give the others before it.

The address is that of the options, else that of SANIC_WORKER_INSPECTOR_UNIX, else that of
SANIC_INSPECTOR_HOST and SANIC_INSPECTOR_PORT, else that of the one server of this user that runs here, else
localhost:6457.

exit codes:
{codes}
"""


class _Parser(ArgumentParser):
    """A parser whose errors are those of the client, and whose options are never abbreviated."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given = {"formatter_class": RawDescriptionHelpFormatter, "allow_abbrev": False, **kwargs}
        super().__init__(*args, **given)

    def error(self, message: str) -> NoReturn:
        raise CommandError(f"{message}. See {self.prog} --help", ExitCode.USAGE)


def parse(args: Sequence[str]) -> dict[str, Any]:
    """Return the options of a command, with its ``verb``.

    A verb that is not in :data:`VERBS` is a user's own command; its ``arguments`` are those of the request.

    Args:
        args (Sequence[str]): The command, from ``inspect`` or a short form on.

    Raises:
        CommandError: The command is wrong.
        SystemExit: The command asked for help, which is printed.
    """
    if args[0] in SHORT:
        return vars(make_verb_parser(args[0], f"{PROGRAM} {args[0]}").parse_args(args[1:]))
    program = f"{PROGRAM} {args[0]}"
    first = _Parser(program, add_help=False)
    _add_connection(first)
    first.add_argument("-h", "--help", action="store_true", default=False)
    first.add_argument("verb", nargs="?")
    first.add_argument("rest", nargs=REMAINDER)
    # The parser would drop the mark after which everything is an argument of a user's own command.
    cut = args.index("--") if "--" in args else len(args)
    before = vars(first.parse_args(args[1:cut]))
    verb, asks_for_help = before.pop("verb"), before.pop("help")
    rest = [*before.pop("rest"), *args[cut:]]
    if verb is None or verb in VERBS:
        parser = make_parser(program)
        given = ["--help"] if asks_for_help else [verb or DEFAULT_VERB, *rest]
        return {**before, **vars(parser.parse_args(given))}
    return {**before, "verb": verb, **_own_command(verb, rest, program)}


def make_parser(program: str) -> ArgumentParser:
    """Return the parser of ``inspect`` with all its verbs."""
    codes = "\n".join(f"  {code:<5}{code.meaning}" for code in ExitCode)
    parser = _Parser(program, description=ABOUT, epilog=EPILOG.format(program=program, codes=codes))
    _add_inspect(parser, program)
    return parser


def add_verbs(parser: ArgumentParser) -> Any:
    """Add ``inspect`` and the short forms to the parser of the whole command, for completion in a shell.

    Returns:
        Any: The action of the verbs, for more of them.
    """
    commands = parser.add_subparsers(dest="command", parser_class=_Parser)
    _add_inspect(commands.add_parser("inspect", help=ABOUT), f"{PROGRAM} inspect")
    for verb in SHORT:
        _add_arguments(commands.add_parser(verb, help=VERBS[verb]), verb)
    return commands


def _add_inspect(parser: ArgumentParser, program: str) -> None:
    parser.usage = f"{program} [options] [verb] [options of the verb]"
    _add_connection(parser)
    verbs = parser.add_subparsers(
        dest="verb", metavar="verb", title="verbs", prog=program, parser_class=_Parser
    )
    for verb, text in VERBS.items():
        _add_arguments(verbs.add_parser(verb, help=text, description=text), verb)


def make_verb_parser(verb: str, program: str) -> ArgumentParser:
    """Return the parser of one verb."""
    parser = _Parser(program, description=VERBS[verb])
    _add_arguments(parser, verb)
    parser.set_defaults(verb=verb)
    return parser


def _add_stock(parser: ArgumentParser) -> Any:
    """Add the options that Sanic's own client has, too; return their group."""
    group = parser.add_argument_group("connection")
    group.add_argument(
        "-H", "--host", default=SUPPRESS, help="host, HOST:PORT or URL of the inspector [localhost]"
    )
    group.add_argument("-p", "--port", type=_port, default=SUPPRESS, help="its port [6457]")
    group.add_argument("-s", "--secure", action="store_true", default=SUPPRESS, help="connect by TLS")
    group.add_argument(
        "-k",
        "--api-key",
        metavar="KEY",
        default=SUPPRESS,
        help="its key; other users may see it in the list of processes: better set SANIC_INSPECTOR_API_KEY",
    )
    group.add_argument("--raw", dest="json", action="store_true", default=SUPPRESS, help="the same as --json")
    return group


def _add_connection(parser: ArgumentParser) -> None:
    connection = _add_stock(parser)
    connection.add_argument("--unix", metavar="PATH", default=SUPPRESS, help="unix socket of the inspector")
    group = parser.add_argument_group("output and time")
    group.add_argument(
        "--json", action="store_true", default=SUPPRESS, help="print the result of the server as JSON"
    )
    group.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=seconds,
        default=SUPPRESS,
        help="longest time to wait for the answer [30], or for the end of the operation [no limit]",
    )


def _add_arguments(parser: ArgumentParser, verb: str) -> None:
    _add_connection(parser)
    if verb == "restart":
        parser.add_argument("names", nargs="+", metavar="NAME", help="worker, such as Sanic-Server-0-0")
    if verb == "stacks":
        parser.add_argument("name", metavar="NAME", help="process, such as Sanic-Server-0-0")
    if verb == "scale":
        parser.add_argument(
            "replicas", type=_replicas, metavar="N", help="number of workers, or a change of it: +1, -1"
        )
    if verb == "operation":
        parser.add_argument("id", metavar="ID", help="operation, as `operations` lists it")
    if verb in ("reload", "restart"):
        parser.add_argument(
            "--zero-downtime",
            action="store_true",
            help="start each new process before the old one is stopped",
        )
    if verb in ("reload", "restart", "scale", "upgrade", "operation"):
        parser.add_argument(
            "--wait", action="store_true", help="wait for the end of the operation, and say how it ended"
        )
    if verb == "events":
        parser.add_argument("-f", "--follow", action="store_true", help="go on with new events as they come")
        parser.add_argument(
            "--since",
            type=_since,
            default=0,
            metavar="START",
            help="10m, 2h or 1d ago; the events after a number; or a time in ISO 8601 [all that are kept]",
        )
        parser.add_argument("-n", "--limit", type=_whole, metavar="N", help="show the last N events [all]")
    if verb == "top":
        parser.add_argument(
            "-i",
            "--interval",
            type=_interval,
            default=1.0,
            metavar="SECONDS",
            help="time between two updates, from 0.2 to 60 [1]",
        )


def _own_command(verb: str, rest: Sequence[str], program: str) -> dict[str, Any]:
    """Return the options of a user's own command, and its arguments by the conventions of Sanic's client."""
    cut = rest.index("--") if "--" in rest else len(rest)
    parser = _Parser(f"{program} {verb}", add_help=False)
    _add_stock(parser)
    options, unknown = parser.parse_known_args(rest[:cut])
    arguments: dict[str, Any] = {}
    positional = []
    for arg in unknown:
        if not arg.startswith("--"):
            positional.append(arg)
        elif "=" in arg:
            key, _, value = arg[2:].partition("=")
            arguments[key] = value
        else:
            arguments[arg.removeprefix("--no-").lstrip("-").replace("-", "_")] = not arg.startswith("--no-")
    if positional := [*positional, *rest[cut + 1 :]]:
        arguments["args"] = positional
    return {**vars(options), "arguments": arguments}


def _port(text: str) -> int:
    port = _whole(text)
    if not 0 < port < 65536:
        raise ArgumentTypeError(f"cannot be {text}: it takes a port, from 1 to 65535")
    return port


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ArgumentTypeError(f"cannot be {text!r}: it takes a whole number")
    return int(text)


def _interval(text: str) -> float:
    interval = seconds(text)
    if not 0.2 <= interval <= 60:
        raise ArgumentTypeError(f"cannot be {text}: it takes a number of seconds from 0.2 to 60")
    return interval


def _replicas(text: str) -> int | str:
    if not re.fullmatch(r"[+-]?[0-9]+", text):
        raise ArgumentTypeError(
            f"cannot be {text!r}: it takes a number of workers, or a change such as +1 or -1"
        )
    return text if text[0] in "+-" else int(text)


def _since(text: str) -> Since:
    try:
        return parse_since(text)
    except ValueError:
        message = f"cannot be {text!r}: it takes 10m, 2h or 1d, the number of an event, or a time in ISO 8601"
        raise ArgumentTypeError(message) from None
