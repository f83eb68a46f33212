"""Starts a program in a session of its own. It imports little: the command uses it before Sanic."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from worker._child.descriptors import inheritable
from worker._child.signals import REQUESTS, at_default, original_mask

__all__ = ["held_by_spawn", "start_program"]


def start_program(command: list[Any], fds: Iterable[int], variables: Mapping[str, str] | None = None) -> int:
    """Start a program in a session of its own, with the signal mask that the main process was started with.

    Args:
        command (list[str]): The interpreter and its arguments.
        fds (Iterable[int]): The only descriptors above 2 that the program has.
        variables (Mapping[str, str] | None): Additions to its environment. Defaults to none.

    Returns:
        int: The pid.

    Raises:
        OSError: The program could not be started.
    """
    passed = {*fds}
    # Duplicating a descriptor onto itself clears its close-on-exec flag, in the child alone: a program that
    # another thread starts meanwhile does not inherit it.
    actions: list[tuple[int, ...]] = [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in sorted(passed)]
    actions += [(os.POSIX_SPAWN_CLOSE, fd) for fd in inheritable() if fd not in passed]
    return os.posix_spawn(
        command[0],
        command,
        {**os.environ, **(variables or {})},
        file_actions=actions,
        setsid=_sets_session(),
        setsigmask=original_mask() | held_by_spawn(),
        setsigdef=at_default(),
    )


def held_by_spawn() -> frozenset[int]:
    """Return the signals that are blocked in a spawned child until it leads its session.

    There are none, unless CPython was built with a libc that cannot give the child its session. A signal to
    the group of the main process would then end the child half-way.
    """
    return frozenset() if _sets_session() else frozenset((signal.SIGINT, *REQUESTS)) - original_mask()


@cache
def _sets_session() -> bool:
    """Return whether this CPython can start a program in a session of its own."""
    try:
        os.posix_spawn("/", ["/"], {}, setsid=True)
    except NotImplementedError:
        return False
    except OSError:
        # The expected error: a directory cannot be run.
        pass
    return True
