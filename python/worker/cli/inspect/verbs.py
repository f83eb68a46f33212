"""The verbs of the client: each sends its request and prints the result."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

from worker.cli.inspect import events, operations
from worker.cli.inspect.client import Answer, Client
from worker.cli.inspect.exits import CommandError, ExitCode
from worker.cli.inspect.text import UNKNOWN, duration, harmless, one_line, size

__all__ = ["run"]

Options = Mapping[str, Any]
# Where the stacks of a process come from.
WAYS = {
    "interpreter": "as its interpreter tells",
    "faulthandler": "as faulthandler tells: C code holds the GIL",
    "kernel": "as the kernel tells: the process answers no questions",
}


def run(client: Client, options: Options) -> ExitCode:
    """Run the verb of a command.

    Raises:
        CommandError: The request or its operation did not succeed.
    """
    verb: str = options["verb"]
    if "arguments" in options:
        return _own_command(client, options)
    return RUN[verb](client, options)


def _ps(client: Client, options: Options) -> ExitCode:
    status = client.get("/status")
    if options.get("json"):
        return _print_json(status)
    from worker.cli.inspect import table, workers

    console = table.console()
    console.print(table.ps(workers.sorted_rows(workers.rows(status), "name"), console.width))
    return ExitCode.DONE


def _preload(preload: Mapping[str, Any] | None) -> str | None:
    if preload is None:
        return None
    return f"{preload['depth']} [{preload['pid']}], {'ready' if preload['ready'] else 'starting'}"


def _status(client: Client, options: Options) -> ExitCode:
    status = client.get("/status")
    if options.get("json"):
        return _print_json(status)
    server = status["server"]
    state = f"{size(server['state_bytes'])} of {size(server['state_max_bytes'])}"
    facts = {
        "application": f"{server['app']} [{server['pid']}]",
        "version": f"sanic-worker {server['version']} ({server['core']} core), Sanic {server['sanic']}",
        "uptime": duration(server["uptime"]),
        "workers": f"{server['workers_ready']} of {server['workers_wanted']} ready",
        "restarts": server["restarts"],
        "backlog": server["backlog"],
        "preload": _preload(server.get("preload")),
        "state": state,
    }
    for name, value in facts.items():
        print(f"{name:<12} {UNKNOWN if value is None else one_line(value)}")
    for operation in status["operations"]:
        print(f"{'operation':<12} {operations.outcome(operation)}")
    return ExitCode.DONE


def _top(client: Client, options: Options) -> ExitCode:
    if options.get("json") or not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise CommandError("top needs a terminal; `ps` and `ps --json` do not", ExitCode.USAGE)
    from worker.cli.inspect import top

    return top.run(client, options["interval"])


def _reload(client: Client, options: Options) -> ExitCode:
    return _operate(client, options, {"zero_downtime": True} if options["zero_downtime"] else {})


def _restart(client: Client, options: Options) -> ExitCode:
    return _operate(client, options, {"names": options["names"], "zero_downtime": options["zero_downtime"]})


def _scale(client: Client, options: Options) -> ExitCode:
    return _operate(client, options, {"replicas": options["replicas"]})


def _operate(client: Client, options: Options, arguments: dict[str, Any]) -> ExitCode:
    """Send an action that creates an operation; wait for its end if asked to."""
    path = f"/{options['verb']}"
    if not options.get("wait"):
        # An answer of the stock form names the operation in a header only.
        prefer = "respond-async" if options.get("json") else ""
        return _print_answer(client.request("POST", path, arguments, prefer=prefer), options)
    operation = client.request("POST", path, arguments, prefer="respond-async").result
    if not isinstance(operation, dict) or "id" not in operation:
        message = "The inspector has no operations to wait for: the server is older than the command"
        raise CommandError(message, ExitCode.FAILED)
    return _wait(client, options, operation["id"])


def _operation(client: Client, options: Options) -> ExitCode:
    if options["wait"]:
        return _wait(client, options, options["id"])
    operation = client.get(operations.path_of(options["id"]))
    if options.get("json"):
        _print_json(operation)
    else:
        print(operations.outcome(operation))
    return ExitCode.FAILED if operation["status"] == "failed" else ExitCode.DONE


def _wait(client: Client, options: Options, operation_id: str) -> ExitCode:
    as_json = bool(options.get("json"))
    operation = operations.wait(client, operation_id, options.get("deadline"), shows=not as_json)
    if as_json:
        _print_json(operation)
    code = operations.exit_code(operation)
    if code is not ExitCode.DONE:
        raise CommandError(operations.outcome(operation), code)
    if not as_json:
        print(operations.outcome(operation))
    return code


def _operations(client: Client, options: Options) -> ExitCode:
    found = client.get("/operations")
    if options.get("json"):
        return _print_json(found)
    from worker.cli.inspect import table

    console = table.console()
    console.print(table.operations_table(found["operations"], console.width))
    return ExitCode.DONE


def _events(client: Client, options: Options) -> ExitCode:
    since, limit, as_json = options["since"], options["limit"], options.get("json")
    show = _print_json if as_json else _event_printer()
    if options["follow"]:
        for event in events.follow(client, since, limit):
            show(event)
            sys.stdout.flush()
        return ExitCode.DONE
    found = events.read(client, since, limit)
    for one in [found] if as_json else found["events"]:
        show(one)
    return ExitCode.DONE


def _event_printer() -> Callable[[events.Event], Any]:
    if not sys.stdout.isatty():
        return lambda event: print(events.line(event))
    from worker.cli.inspect import table

    console = table.console()
    return lambda event: console.print(
        events.line(event), style=events.style(event), markup=False, soft_wrap=True
    )


def _stacks(client: Client, options: Options) -> ExitCode:
    found = client.request("POST", "/stacks", {"name": options["name"]}).result
    if options.get("json"):
        return _print_json(found)
    about = [f"{one_line(found['name'])} [{found['pid']}], {WAYS.get(found['way'], found['way'])}"]
    if found["debugger"]:
        about.append(f"a debugger is at work in it: {one_line(found['debugger'])}")
    print("; ".join(about))
    return _print_text(f"\n{found['text']}", end="")


def _without_arguments(client: Client, options: Options) -> ExitCode:
    return _operate(client, options, {})


def _metrics(client: Client, options: Options) -> ExitCode:
    return _print_text(client.request("GET", "/metrics").body.decode(), end="")


def _info(client: Client, options: Options) -> ExitCode:
    return _print_json(client.get("/"))


def _own_command(client: Client, options: Options) -> ExitCode:
    path = "/" + quote(options["verb"], safe="")
    return _print_answer(client.request("POST", path, options["arguments"]), options)


def _print_answer(answer: Answer, options: Options) -> ExitCode:
    """Print a result: text as text, anything else as JSON, and the operation that it belongs to."""
    result = answer.result
    if options.get("json"):
        return _print_json(result)
    if isinstance(result, str):
        _print_text(result)
    elif result is not None:
        _print_json(result)
    if answer.location:
        name = one_line(answer.location.rpartition("/")[2])
        print(f"Requested as operation {name}")
    return ExitCode.DONE


def _print_text(text: str, end: str = "\n") -> ExitCode:
    """Print text of a server: into a file as it is, and in a terminal without characters that steer it."""
    print(harmless(text) if sys.stdout.isatty() else text, end=end)
    return ExitCode.DONE


def _print_json(result: Any) -> ExitCode:
    print(json.dumps(result))
    return ExitCode.DONE


RUN: dict[str, Callable[[Client, Options], ExitCode]] = {
    "ps": _ps,
    "top": _top,
    "status": _status,
    "reload": _reload,
    "restart": _restart,
    "scale": _scale,
    "events": _events,
    "operations": _operations,
    "operation": _operation,
    "stacks": _stacks,
    "shutdown": _without_arguments,
    "upgrade": _without_arguments,
    "metrics": _metrics,
    "info": _info,
}
