"""Runs the ``sanic`` command of the installed Sanic on this manager, with a flag for each setting."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from argparse import SUPPRESS, ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partialmethod
from typing import Any, NoReturn

from sanic.log import error_logger, logger

from worker import serve, settings
from worker._core import core_info
from worker._system.errors import BeginError
from worker.cli import usage
from worker.cli.early import APP
from worker.cli.namesake import NamesakeAttributeError, NamesakeError, find, refusal, where
from worker.cli.program import PROGRAM
from worker.cli.target import describe, is_missing, names_file, wrong_argument
from worker.integration import apply_umask, end_with_server, install
from worker.loader import AppLoader, TargetError
from worker.settings.values import AUTO

__all__ = ["run"]

SINGLE_PROCESS = "--single-process"
# An application in a module of this package's name.
TARGET = re.compile(r"worker(\.\w+)*(:.*)?")


def run(args: list[str] | None = None, *, retries: bool = True) -> None:
    """Run Sanic's command.

    The flags of this package, one for each setting, are taken out before Sanic sees the rest.

    Args:
        args (list[str] | None): The arguments; ``None`` for those of the process.
        retries (bool): Wait for a change of a file where an application cannot be loaded, if it reloads.
            Defaults to ``True``.

    Raises:
        SystemExit: Exit code 2 for a mistake in the command, 1 for a failure, or the exit code of Sanic.
    """
    given = sys.argv[1:] if args is None else args
    if usage.is_asked_for(given):
        usage.show(given)
        return
    _refuse_namesake(given)
    install()
    end_with_server()
    given = _take_flags(given)
    if given in (["--version"], ["-v"]):
        info = core_info()
        print(f"{PROGRAM} {info.version}; {info.core} core")
    from sanic import __main__ as sanic

    if args is None:
        # Sanic reads these, too.
        sys.argv[1:] = given
    with _adapted_command(retries):
        sanic.main(None if args is None else given)  # type: ignore[no-untyped-call]


@contextmanager
def _adapted_command(retries: bool = True) -> Iterator[None]:
    """Let Sanic's command take more than a number of workers, and end each common mistake with one line."""
    from sanic.cli.app import SanicCLI

    command: Any = SanicCLI
    get_app, attach = command._get_app, command.attach

    def attach_ours(self: Any) -> None:
        attach(self)
        # Sanic's parser reads the option, so that its short form, abbreviations and conflicts stay.
        option = self.parser._option_string_actions.get("--workers")
        if option is not None:
            option.type = _take_workers

    command._get_app, command.attach = partialmethod(_get_app, retries), attach_ours
    for log in (logger, error_logger):
        log.addFilter(_is_other_error)
    try:
        yield
    except BaseException as error:
        # Sanic's clean-up may have failed after the error, or have ended with a message of its own.
        if failed := _begin_error(error):
            _fail(2 if failed.is_wrong_usage else 1, str(failed))
        raise
    finally:
        command._get_app, command.attach = get_app, attach
        for log in (logger, error_logger):
            log.removeFilter(_is_other_error)


def _get_app(command: Any, retries: bool, loader: AppLoader) -> Any:
    """Load the application for Sanic's command, of which this is a method."""
    _set_workers(command.args)
    if problem := wrong_argument(command.args):
        _fail(2, problem)
    began = time.time()
    if settings.find("preload") == APP:
        _preload(loader)
    try:
        return loader.load()
    except Exception as error:
        # Imported on use: a start needs it rarely.
        from worker.cli.load_retry import wait_and_begin_anew

        waits = retries and (command.args.auto_reload or command.args.dev)
        if waits and isinstance(error, TargetError) and loader.module_name in sys.modules:
            # A half-saved file has no application yet.
            print(f"{PROGRAM}: {describe(loader, error)}", file=sys.stderr)
            wait_and_begin_anew(loader, error, began)
        if isinstance(error, (NamesakeError, NamesakeAttributeError)):
            _fail(1, f"{where(error)}: {error}")
        if isinstance(error, TargetError) or names_file(loader) or is_missing(loader, error):
            _fail(2, describe(loader, error))
        serve.log_error(error, "Failed to run app: ")
        if waits:
            wait_and_begin_anew(loader, error, began)
        sys.exit(1)


def _preload(loader: AppLoader) -> None:
    """Let the preload process import the application at the same time as this process."""
    from worker._spawn.preload.application import load_early
    from worker._spawn.preload.process import PreloadError

    # The manager tries it again, and reports the reason.
    with suppress(PreloadError):
        load_early(loader)


def _take_workers(text: str) -> int | str:
    """Take the value of ``--workers`` as a setting; return a number as Sanic does, any other text as such."""
    try:
        settings.take_flags({"workers": text})
    except ValueError as error:
        _fail(2, str(error))
    # Beside --fast and --single-process, Sanic's parser accepts the number 1, which is its default.
    return int(text) if text.isdecimal() else text


def _set_workers(args: Any) -> None:
    """Give Sanic, and a factory of the application, the number of workers at the start."""
    if getattr(args, "fast", False):
        settings.take_flags({"workers": AUTO})
    try:
        resolved = settings.resolve({}).workers
    except ValueError as error:
        _fail(2, str(error))
    if isinstance(args.workers, str) and resolved is not None:
        args.workers = resolved.least


def _begin_error(error: BaseException | None) -> BeginError | None:
    while error is not None and not isinstance(error, BeginError):
        error = error.__cause__ or error.__context__
    return error


def _is_other_error(record: logging.LogRecord) -> bool:
    # An address that cannot be bound is reported in one line, at the end.
    return _begin_error(sys.exc_info()[1]) is None


def _fail(code: int, message: str) -> NoReturn:
    print(f"{PROGRAM}: {message}", file=sys.stderr)
    sys.exit(code)


def _take_flags(given: list[str]) -> list[str]:
    # Sanic's own flags must not be taken for abbreviations of ours.
    parser = ArgumentParser(PROGRAM, add_help=False, allow_abbrev=False, argument_default=SUPPRESS)
    usage.add_settings(parser)
    flags, rest = parser.parse_known_args(given)
    try:
        settings.take_flags(vars(flags))
        settings.resolve({})
        apply_umask()
    except ValueError as error:
        _fail(2, str(error))
    # Sanic's parser accepts abbreviations.
    if any(flag.startswith("--sin") and SINGLE_PROCESS.startswith(flag) for flag in rest):
        settings.warn_without_manager()
    return rest


def _refuse_namesake(given: list[str]) -> None:
    """Exit if the command names an application in another `worker` than this package."""
    for before, target in zip(["", *given], given, strict=False):
        # The value of an option has no colon.
        named = TARGET.fullmatch(target) and (":" in target or not before.startswith("-"))
        if named and (namesake := find(os.getcwd())):
            sys.exit(refusal(namesake))
