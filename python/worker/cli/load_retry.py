"""Retries an application that cannot be loaded: waits for a change of a file, and restarts the command."""

from __future__ import annotations

import os
import signal
import sys
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from traceback import walk_tb
from typing import NoReturn

from sanic.log import error_logger
from watchfiles import watch

from worker._reload.file_events import CLOCK_TICK, resolved, shared_directories
from worker.loader import AppLoader

__all__ = ["wait_and_begin_anew"]

# Changes within this time are one, milliseconds.
DEBOUNCE = 50
# How often files are also checked, milliseconds. A change before the watch is ready has no event.
INTERVAL = 1000


def wait_and_begin_anew(loader: AppLoader, error: BaseException, since: float) -> NoReturn:
    """Wait until a file changes that may repair an application, then run the command again from its start.

    It watches the files that the error names, and the directory of the application's own package.

    Args:
        loader (AppLoader): The loader that has failed.
        error (BaseException): Its error.
        since (float): The time of the attempt, seconds since 1970.

    Raises:
        SystemExit: Exit code 0, at SIGINT or SIGTERM.
    """
    stopped = threading.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: stopped.set())
    error_logger.error("The application cannot be loaded. Waiting for the next file change.")
    files = [*_files(error), *_modules(loader)]
    roots = {resolved(os.path.dirname(file)) for file in files} or {os.getcwd()}
    for changed in watch(
        *roots,
        debounce=DEBOUNCE,
        rust_timeout=INTERVAL,
        yield_on_timeout=True,
        recursive=not roots & shared_directories(),
        stop_event=stopped,
        raise_interrupt=False,
    ):
        if changed or any(_changed_at(file) > since - CLOCK_TICK for file in files):
            break
    if stopped.is_set():
        sys.exit(0)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _files(error: BaseException) -> Iterator[str]:
    """Yield the files that an error and its causes name, except for those of installed packages."""
    installed = tuple(os.path.join(path, "") for path in sysconfig.get_paths().values())
    at: BaseException | None = error
    while at is not None:
        names = [frame.f_code.co_filename for frame, _ in walk_tb(at.__traceback__)]
        if isinstance(at, SyntaxError) and at.filename:
            names.append(at.filename)
        paths = [os.path.abspath(name) for name in names if Path(name).is_file()]
        yield from (path for path in paths if not path.startswith(installed))
        at = at.__cause__ or at.__context__


def _modules(loader: AppLoader) -> Iterator[str]:
    """Yield the files of the application's outermost package, and of its module."""
    for name in {loader.module_name.partition(".")[0], loader.module_name}:
        # The fault of the application may make this fail, too.
        with suppress(Exception):
            spec = find_spec(name)
            if spec is not None and spec.origin is not None:
                yield spec.origin


def _changed_at(file: str) -> float:
    with suppress(OSError):
        return os.stat(file).st_ctime
    return 0.0
