"""The titles of processes: the text that ``ps`` shows in place of a command line.

A title takes the place of the command line in memory, and is cut to its length. ``setproctitle`` would also
use the memory of the environment behind it, but then ``/proc/<pid>/environ`` would be lost.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress

__all__ = ["PRELOAD", "STATE_PROCESS", "set_title", "title_of"]

PREFIX = "sanic-worker:"
PRELOAD = f"{PREFIX} preload process"
STATE_PROCESS = f"{PREFIX} state process"

# Limits the title to the memory of the command line. `setproctitle` reads it once, at its first call.
LIMIT = "SPT_NOENV"

# The command line since a title was set, in this process or in the one that it was forked from.
_shown: bytes | None = None


def title_of(name: str, application: str) -> str:
    """Return the title of a process; characters that could steer the terminal of ``ps`` are escaped.

    Args:
        name (str): The name of its slot.
        application (str): The application, as it was named on the command line, or by its own name.
    """
    title = " ".join(filter(None, (PREFIX, name, application)))
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in title)


def set_title(title: str) -> None:
    """Let ``ps`` show a title for this process, cut to the length of its command line.

    A title that code of the user has set stays. So does the name of the process (``/proc/<pid>/comm``).
    Without ``setproctitle``, or without ``/proc``, nothing happens.
    """
    global _shown
    # The text cannot be encoded, or has a NUL.
    with suppress(ImportError, OSError, ValueError):
        own = b"".join(os.fsencode(argument) + b"\0" for argument in sys.orig_argv)
        if _command_line() != (own if _shown is None else _shown):
            return
        import setproctitle

        name = setproctitle.getthreadtitle()
        before = os.environ.get(LIMIT)
        os.environ[LIMIT] = "yes"
        try:
            setproctitle.setproctitle(title)
        finally:
            if before is None:
                del os.environ[LIMIT]
            else:
                os.environ[LIMIT] = before
        setproctitle.setthreadtitle(name)
        _shown = _command_line()


def _command_line() -> bytes:
    with open("/proc/self/cmdline", "rb", buffering=0) as file:
        return file.read()
