"""Reopens the log files of all processes, after another program has renamed them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from sanic.log import logger

from worker._child.logs import reopen_files
from worker._child.signals import REOPEN
from worker._system.proc import catches

if TYPE_CHECKING:
    from worker._supervisor.child import ChildProcess

__all__ = ["reopen"]


def reopen(children: Iterable[ChildProcess]) -> None:
    """Reopen the log files of the main process, and let its children reopen theirs.

    Args:
        children (Iterable[ChildProcess]): The children. The signal would end one without a handler, which
            has only begun, and opens its files later. It is left out.
    """
    count, told = reopen_files(), 0
    for child in children:
        pid = child.base.pid
        if pid and catches(pid, REOPEN):
            with suppress(ProcessLookupError):
                os.kill(pid, REOPEN)
                told += 1
    logger.info("Received signal SIGUSR1. Reopened %d log files; told %d processes to do so.", count, told)
