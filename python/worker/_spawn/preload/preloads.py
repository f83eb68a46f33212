"""The preload processes of this main process: the one that forks workers, and those before and after it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from worker._spawn.preload.process import PreloadError, PreloadProcess

if TYPE_CHECKING:
    # For programs that freeze this package: they read imports.
    import worker._child.preload.sources  # noqa: F401

__all__ = ["Preloads", "preloads"]

# The modules that a worker imports before its application, or that its start uses.
FRAMEWORK = (
    "sanic",
    "worker.integration",
    "worker.inspector",
    "worker.serve",
    "worker._child.preload.application",
    "worker._child.preload.sources:keep",
    "uvloop",
    "argparse",
    "multiprocessing.forkserver",
    "multiprocessing.popen_forkserver",
    "multiprocessing.resource_tracker",
    "multiprocessing.shared_memory",
    "runpy",
)
# It looks at the names in all modules. In each child, that would copy their pages.
INSTALL = "worker.integration:install"


class Preloads:
    """The preload processes of this main process.

    Workers are forked from the *current* one. The *next* one imports new code, and then takes the place of
    the current one. The *previous* one is kept until the code of the current one is proven to start. A
    *retired* one forks no more, and ends with the last of its children, whose exit codes only it knows.

    Attributes:
        current: The current one, ready or not; ``None`` if there is none.
        next: The one that is to take its place; ``None`` if there is none.
        previous: The one before the current one; ``None`` if the current one is proven.
        on_failure: Called when the current one has failed and was dropped.
        installs: Whether a child installs this package before it imports anything of the application.
    """

    def __init__(self) -> None:
        self.current: PreloadProcess | None = None
        self.next: PreloadProcess | None = None
        self.previous: PreloadProcess | None = None
        self.on_failure: Callable[[PreloadProcess, PreloadError], None] | None = None
        self.installs = False
        self._retired: list[PreloadProcess] = []

    def __iter__(self) -> Iterator[PreloadProcess]:
        return (one for one in (self.current, self.next, self.previous, *self._retired) if one is not None)

    def start(self) -> PreloadProcess:
        """Start a preload process as the current one, if there is none of use; return the current one.

        Raises:
            PreloadError: It could not be started.
        """
        try:
            if self.current is not None and self.current.outdated():
                self.drop(self.current)
        except OSError as error:
            raise PreloadError(str(error)) from error
        if self.current is None:
            self.current = make(installs=self.installs)
        return self.current

    def start_next(self) -> PreloadProcess:
        """Start the next preload process, in place of one that is the next one already.

        Raises:
            PreloadError: It could not be started.
        """
        self.drop(self.next)
        self.next = make(installs=self.installs)
        return self.next

    def promote(self) -> None:
        """Let the next one take the place of the current one, even if there is no next one.

        The current one is kept as the previous one. If it is not proven either, the previous one stays.
        """
        if self.previous is None:
            self.previous, self.current = self.current, None
        self.drop(self.current)
        self.current, self.next = self.next, None

    def prove(self) -> None:
        """Drop the previous one: the code of the current one starts."""
        self.drop(self.previous)

    def roll_back(self) -> None:
        """Let the previous one be the current one again: the code of the current one does not start."""
        if self.previous is not None:
            self.drop(self.current)
            self.current, self.previous = self.previous, None

    def ready(self, wait: float = 0.0) -> PreloadProcess | None:
        """Return the preload process that can fork now; ``None`` if there is none.

        Args:
            wait (float): How long to wait until it is ready, seconds. Defaults to 0.

        Raises:
            PreloadError: The current one has ended, or its application cannot be used.
        """
        return self.current if self.current is not None and self.current.update(wait) else None

    def fail(self, error: PreloadError) -> None:
        """Fork no more from the current one, because it does not work."""
        failed = self.current
        if failed is not None:
            self.drop(failed)
            if self.on_failure is not None:
                self.on_failure(failed, error)

    def drop(self, process: PreloadProcess | None) -> None:
        """Fork no more from a preload process. It ends with the last of its children."""
        for name in ("current", "next", "previous"):
            if process is not None and getattr(self, name) is process:
                setattr(self, name, None)
                self._retired.append(process)
        self.clear()

    @property
    def has_unused(self) -> bool:
        """Whether one has no children any more and forks no more."""
        return bool(self._unused())

    def clear(self) -> None:
        """End the retired ones that are of no use any more."""
        for process in self._unused():
            self._retired.remove(process)
            process.stop()

    def _unused(self) -> list[PreloadProcess]:
        return [one for one in self._retired if one.has_ended() or not one.has_forks()]

    def interrupt(self) -> None:
        """End the wait for one because a stop was requested; for a signal handler."""
        for process in self:
            process.interrupt()

    def reset(self) -> None:
        """Kill all of them."""
        for process in [*self]:
            process.stop()
        self._forget()

    def leave(self) -> None:
        """Leave them alone in a forked copy of the main process, which is not their parent."""
        for process in self:
            process.leave()
        self._forget()

    def _forget(self) -> None:
        self.current = self.next = self.previous = None
        self._retired.clear()


def make(*, installs: bool = False) -> PreloadProcess:
    """Start a preload process.

    Args:
        installs (bool): Whether it installs this package. Defaults to ``False``.

    Raises:
        PreloadError: It could not be started.
    """
    modules = [*FRAMEWORK, *([INSTALL] if installs else [])]
    # The modules that the application has requested for this, if multiprocessing is imported at all.
    if forkserver := sys.modules.get("multiprocessing.forkserver"):
        # Without the script that was run: the children would keep its present version after a change.
        modules += [name for name in forkserver._forkserver._preload_modules if name != "__main__"]
    return PreloadProcess(modules)


preloads = Preloads()
os.register_at_fork(after_in_child=preloads.leave)
