"""Starts the main process that is to take the place of this one."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial

from worker._child.descriptors import STANDARD, close_all, inheritable
from worker._child.signals import at_default, blocked, original_mask

__all__ = ["start_successor"]


def start_successor(
    environment: Mapping[str, str], directory: str, fds: Sequence[int], *, is_orphan: bool
) -> int:
    """Start the command by which this process was started once more, in its session and process group.

    The interpreter is that of the same path, which may be a new one by now.

    Args:
        environment (Mapping[str, str]): Its environment.
        directory (str): Its working directory.
        fds (Sequence[int]): The descriptors that it gets, as the numbers from 3 on. It has no others above 2.
        is_orphan (bool): Whether it is a child of the process that collects orphans, and not of this one.

    Returns:
        int: Its pid.

    Raises:
        OSError: It could not be started.
    """
    start = partial(_start, environment, directory, fds)
    return _start_orphan(start) if is_orphan else start()


def _start(environment: Mapping[str, str], directory: str, fds: Sequence[int]) -> int:
    command = [sys.executable or "/proc/self/exe", *sys.orig_argv[1:]]
    first = len(STANDARD)
    numbers = range(first, first + len(fds))
    # A descriptor may have the number that another one gets, so all are moved out of the way first.
    free = max(*fds, *numbers) + 1
    actions: list[tuple[int, ...]] = [(os.POSIX_SPAWN_CLOSE, fd) for fd in inheritable() if fd not in fds]
    actions += [(os.POSIX_SPAWN_DUP2, fd, free + index) for index, fd in enumerate(fds)]
    for index, number in enumerate(numbers):
        actions.append((os.POSIX_SPAWN_DUP2, free + index, number))
        actions.append((os.POSIX_SPAWN_CLOSE, free + index))
    actions += [(os.POSIX_SPAWN_CLOSE, fd) for fd in fds if fd not in numbers]
    with _inside(directory):
        return os.posix_spawn(
            command[0],
            command,
            environment,
            file_actions=actions,
            setsigmask=original_mask(),
            setsigdef=at_default(),
        )


@contextmanager
def _inside(directory: str) -> Iterator[None]:
    """Be in a directory while a program is started, which inherits it."""
    here = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.chdir(directory)
        yield
    finally:
        os.fchdir(here)
        os.close(here)


def _start_orphan(start: Callable[[], int]) -> int:
    """Start a program in a child that ends at once; return the pid of the program."""
    reader, writer = os.pipe()
    with warnings.catch_warnings(), blocked():
        # The child makes system calls only, so the threads that it lacks hold nothing that it needs.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            child = os.fork()
        except OSError:
            close_all(reader, writer)
            raise
        if child == 0:
            _tell(writer, start)
    os.close(writer)
    with open(reader) as pipe:
        found = int(pipe.read() or 0)
    with suppress(ChildProcessError):
        os.waitpid(child, 0)
    if found <= 0:
        raise OSError(-found, os.strerror(-found))
    return found


def _tell(writer: int, start: Callable[[], int]) -> None:
    """Write a pid, or the negative number of an error, and end the process."""
    try:
        os.write(writer, str(start()).encode())
    except OSError as error:
        os.write(writer, str(-(error.errno or 0)).encode())
    finally:
        os._exit(0)
