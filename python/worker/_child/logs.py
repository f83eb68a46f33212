"""Sets up the log of a child as the installed Sanic does, and opens its files anew after a rotation."""

from __future__ import annotations

import logging
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from typing import Any

from sanic.log import error_logger

__all__ = ["label_log", "on_reopen", "open_files", "read_variables", "reopen_files", "setup_logging"]


def label_log() -> None:
    """Let the log lines of this process begin with its label, if another process imported the formatter."""
    formatters = sys.modules.get("sanic.logging.formatter")
    if formatters is not None:
        formatters.AutoFormatter.IDENT = os.environ.get("SANIC_WORKER_IDENTIFIER") or "Main "


def read_variables() -> None:
    """Let Sanic's formatter have the values that it would read from the environment when it is imported."""
    label_log()
    formatters = sys.modules.get("sanic.logging.formatter")
    if formatters is not None:
        # The main process of Sanic sets the variable when it configures its log.
        formatters.AutoFormatter.LOG_EXTRA = os.environ.get("SANIC_LOG_EXTRA", "true").lower() == "true"


def setup_logging(app: Any) -> None:
    """Configure the log output of a worker, as Sanic 24.12 and later do."""
    try:
        module = import_module("sanic.logging.setup")
    except ModuleNotFoundError:
        return
    module.setup_logging(app.state.is_debug, app.config.NO_COLOR, app.config.LOG_EXTRA)


def reopen_files() -> int:
    """Let the handlers of :mod:`logging` go on in the files that have the names of theirs by now.

    A handler keeps its stream: the descriptor under it becomes that of the new file. So no record is lost,
    and no lock is needed. A signal handler could not wait for one, as it may have interrupted the holder.

    Returns:
        int: The number of files.
    """
    count = 0
    for fd, path in _files():
        # Not truncated in any mode of the handler: the file may not have been renamed.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        try:
            opened = os.open(path, flags, 0o666)
        except OSError as error:
            error_logger.error("Cannot reopen the log file %s: %s", path, error.strerror)
            continue
        os.dup2(opened, fd, inheritable=False)
        os.close(opened)
        count += 1
    return count


def open_files() -> list[int]:
    """Return the descriptors of the files that the handlers of :mod:`logging` write to."""
    return [fd for fd, _ in _files()]


def _files() -> Iterator[tuple[int, str]]:
    """Yield the descriptor and the path of each log file."""
    for handler in _handlers():
        stream = getattr(handler, "stream", None)
        if isinstance(handler, logging.FileHandler) and stream is not None:
            # The stream may be closed, or be that of a terminal or a pipe.
            with suppress(OSError, ValueError):
                if stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                    yield stream.fileno(), handler.baseFilename


def _handlers() -> set[logging.Handler]:
    # The list has handlers that no logger has, such as the target of a queue. A configuration empties it.
    listed = (reference() for reference in [*logging._handlerList])  # type: ignore[attr-defined]
    found = {handler for handler in listed if handler is not None}
    for logger in [logging.root, *logging.root.manager.loggerDict.values()]:
        found.update(getattr(logger, "handlers", ()))
    return found


def on_reopen(signum: int, frame: Any) -> None:
    """Reopen the log files of this child; the handler of its SIGUSR1."""
    reopen_files()
