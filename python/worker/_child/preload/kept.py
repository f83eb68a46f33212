"""Gives each forked child what an import of the application of its own would have given it.

A fork copies the state of random generators and shares the positions of open files.
"""

from __future__ import annotations

import fcntl
import os
import random
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import wraps
from typing import Any

from worker._child.preload.findings import Descriptor, is_reopenable

__all__ = ["Kept"]

# The functions by which an application chooses the state of a generator that its whole process uses.
SEEDING = {"random": ("seed", "setstate"), "numpy.random": ("seed", "set_state")}


class Kept:
    """Observes the import of the application, and puts things right in each child."""

    def __init__(self) -> None:
        # The modules whose generator the application has seeded.
        self._seeded: set[str] = set()
        self._made_uuid1 = False
        self._replaced: dict[tuple[str, str], tuple[Any, Any]] = {}
        self._state: Any = None
        self._files: list[Descriptor] = []

    def observe(self) -> None:
        """Observe the calls of the modules that are imported by now; called again after each import."""
        for module, names in SEEDING.items():
            for name in names if module in sys.modules else ():
                self._replace(module, name, self._on_seed)
        if "uuid" in sys.modules:
            self._replace("uuid", "_generate_time_safe", self._on_uuid1)

    def end(self, opened: Iterable[Descriptor]) -> None:
        """Observe no longer, and keep the state for the children.

        Args:
            opened (Iterable[Descriptor]): The descriptors that the import has opened.
        """
        for (module, name), (before, ours) in self._replaced.items():
            if vars(sys.modules[module]).get(name) is ours:
                setattr(sys.modules[module], name, before)
        if "random" in self._seeded:
            self._state = random.getstate()
        if self._made_uuid1:
            # A child finds it in no time then; by itself it might have to run a program.
            sys.modules["uuid"].getnode()
        for one in opened:
            with suppress(OSError):
                if is_reopenable(one):
                    self._files.append(one)

    def restore(self) -> None:
        """Put things right in a child, before it does anything else."""
        if self._state is not None:
            # CPython gives the generator another seed after each fork.
            random.setstate(self._state)
        if "numpy.random" in sys.modules and "numpy.random" not in self._seeded:
            sys.modules["numpy.random"].seed()
        if self._made_uuid1:
            # The children of the C library share its clock sequence. Python's own code chooses one each time.
            vars(sys.modules["uuid"])["_generate_time_safe"] = None
        for one in self._files:
            with suppress(OSError):
                _reopen(one.fd)

    def _replace(self, module: str, name: str, observed: Callable[[str, Any], Any]) -> None:
        before = getattr(sys.modules[module], name, None)
        if (module, name) not in self._replaced and before is not None:
            ours = observed(module, before)
            self._replaced[module, name] = before, ours
            setattr(sys.modules[module], name, ours)

    def _on_seed(self, module: str, before: Callable[..., Any]) -> Callable[..., Any]:
        # The application may keep this function: it goes on to work.
        @wraps(before)
        def seed(*args: Any, **kwargs: Any) -> Any:
            if any(value is not None for value in (*args[:1], *kwargs.values())):
                self._seeded.add(module)
            else:
                self._seeded.discard(module)
            return before(*args, **kwargs)

        return seed

    def _on_uuid1(self, module: str, before: Callable[[], Any]) -> Callable[[], Any]:
        def generate() -> Any:
            self._made_uuid1 = True
            return before()

        return generate


def _reopen(fd: int) -> None:
    """Open a file anew, with the same number, at the same position."""
    position = os.lseek(fd, 0, os.SEEK_CUR)
    opened = os.open(f"/proc/self/fd/{fd}", fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_CLOEXEC)
    try:
        os.lseek(opened, position, os.SEEK_SET)
        os.dup2(opened, fd, inheritable=os.get_inheritable(fd))
    finally:
        os.close(opened)
