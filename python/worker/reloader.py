"""Watches the files of an application, and asks for a restart when one changes."""

from __future__ import annotations

import os
import sys
from asyncio import AbstractEventLoop, new_event_loop
from collections.abc import Callable, Collection, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from signal import SIGINT, SIGTERM
from signal import signal as signal_func
from threading import Lock
from typing import Any

from sanic import Sanic
from sanic.log import error_logger, logger
from sanic.server.events import trigger_events

from worker._core import Scanner
from worker.loader import AppLoader
from worker.publisher import Publisher, send

__all__ = ["Reloader"]

# How many paths the workers are told at most: whoever removes a tree of 100,000 files wants one restart,
# and a message that is too long would be dropped.
TOLD = 1_000


class Reloader:
    """Runs in a process of its own, looks at all files every so often, and has all workers restarted.

    Watched are the source of every module that the application has imported, and everything in the
    directories given, but for what Python compiles (``__pycache__``). A file counts as changed when it came,
    went, or its time of modification, size or inode is another one; a module that is newly imported does
    not. Whoever replaces :meth:`files`, :meth:`python_files` or :meth:`check_file` is asked instead, file by
    file. The application's ``reload_process_start`` and ``reload_process_stop`` listeners run
    once, ``before_reload_trigger`` and ``after_reload_trigger`` (this one with ``changed``, a set of paths as
    ``str``) around each request to restart. A listener that fails is logged and ends nothing.

    Args:
        publisher (Publisher): The sending end of the pipe to the main process.
        interval (float): The time from one look to the next, seconds. 0 stands for :attr:`INTERVAL`.
        reload_dirs (Collection[Path]): Directories to watch as a whole, with all that is below them.
        app_loader (AppLoader): Loads the application, whose modules and listeners these are.
    """

    stops_once = True
    """It obeys the first signal to stop and ignores repeats (:mod:`worker.launch`)."""
    restart_policy = "always"
    """It is replaced when it dies (:meth:`worker.manager.WorkerManager.manage`)."""
    brings_changes = True
    """As long as it runs, servers that do not start may be repaired."""
    INTERVAL = 1.0
    """The time from one look to the next where none is given, seconds."""

    def __init__(
        self,
        publisher: Publisher,
        interval: float,
        reload_dirs: Collection[Path],
        app_loader: AppLoader,
    ) -> None:
        self._publisher = publisher
        self.interval = interval or self.INTERVAL
        self.reload_dirs = reload_dirs
        self.run = True
        self.app_loader = app_loader
        # Held until stop(), and waited for: of all that threads wait for, a lock is what a signal handler may
        # release. It cannot be pickled, so it is made where it is waited for.
        self._watching: Lock | None = None
        self._scanner: Scanner | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_watching": None, "_scanner": None}

    def __call__(self) -> None:
        """Load the application and watch until :meth:`stop` is called, by SIGINT and SIGTERM among others.

        Raises:
            Exception: Whatever loading the application raises.
        """
        app = self.app_loader.load()
        self._watching = Lock()
        self._watching.acquire()
        signal_func(SIGINT, self.stop)
        signal_func(SIGTERM, self.stop)
        self._scanner = Scanner(self.reload_dirs)
        mtimes: dict[str | Path, float] = {}
        loop = new_event_loop()
        try:
            _trigger(app, loop, "reload_process_start")
            while self.run:
                changed = self._sweep(mtimes)
                if changed and self.run:
                    self._announce(app, loop, changed)
                self._watching.acquire(timeout=self.interval)
            _trigger(app, loop, "reload_process_stop")
        finally:
            loop.close()

    def stop(self, *_: Any) -> None:
        """End the watch at once. It takes, and ignores, what a signal handler is given."""
        self.run = False
        if self._watching is not None:
            with suppress(RuntimeError):  # it is called a second time
                self._watching.release()

    def reload(self, reloaded_files: str) -> None:
        """Ask the manager to restart all workers.

        Args:
            reloaded_files (str): The paths that changed, joined by commas; the workers are told. (The watch
                tells the first 1,000 of them.)

        Raises:
            OSError: The main process is gone (``ConnectionError``), or the connection is closed.
        """
        send(self._publisher, f"__ALL_PROCESSES__:{reloaded_files}")

    def files(self) -> Iterator[str | Path]:
        """Iterate over what is watched: :meth:`python_files`, then all that is below each directory.

        A directory that cannot be read, or goes away meanwhile, is passed over.
        """
        return chain(self.python_files(), chain.from_iterable(map(_below, self.reload_dirs)))

    def python_files(self) -> Iterator[str]:
        """Iterate over the source files of all modules that are imported in this process.

        A module out of an archive counts as the archive; two modules of one file give it twice.
        """
        self._scanner = self._scanner or Scanner(self.reload_dirs)
        # Another thread may import meanwhile.
        yield from self._scanner.module_files(list(sys.modules.values()))

    @staticmethod
    def check_file(filename: str | Path, mtimes: MutableMapping[Any, float]) -> bool:
        """Return whether a file is newer than when it was last looked at.

        Args:
            filename (str | Path): The file.
            mtimes (MutableMapping): File to time of last modification, seconds; brought up to date. A file
                that it does not have yet counts as unchanged.

        Raises:
            OSError: There is no such file, or it is out of reach.
        """
        return Scanner.check_file(filename, mtimes)

    def _sweep(self, mtimes: MutableMapping[Any, float]) -> set[str]:
        """Look at everything, and return what has changed; ``mtimes`` is what :meth:`check_file` gets."""
        if self._scanner is None or any(map(self._is_replaced, _OWN)):
            return self._check_each(mtimes)
        modules = set(self.python_files())
        self._scanner.watch(modules)
        # What lies in a directory is told as what it resolves to, a module as it says itself.
        return {path if path in modules else os.path.realpath(path) for path in self._scanner.scan()}

    def _is_replaced(self, name: str) -> bool:
        return name in vars(self) or getattr(type(self), name) is not _OWN[name]

    def _check_each(self, mtimes: MutableMapping[Any, float]) -> set[str]:
        changed = set()
        for filename in self.files():
            if not self.run:
                break
            # Python itself writes there, when the workers import again what was edited.
            if "__pycache__" in os.fspath(filename):
                continue
            with suppress(OSError):
                if self.check_file(filename, mtimes):
                    changed.add(filename if isinstance(filename, str) else os.path.realpath(filename))
        return changed

    def _announce(self, app: Sanic[Any, Any], loop: AbstractEventLoop, changed: set[str]) -> None:
        _trigger(app, loop, "before_reload_trigger")
        try:
            self.reload(",".join(sorted(changed)[:TOLD]))
        except ConnectionError:
            logger.debug("Monitor process has already exited.")
            self.stop()
        else:
            _trigger(app, loop, "after_reload_trigger", changed=changed)


# As they are here, whatever becomes of the class.
_OWN = {name: getattr(Reloader, name) for name in ("files", "python_files", "check_file")}


def _below(directory: Path) -> Iterator[Path]:
    for root, directories, files in os.walk(directory):
        for name in chain(directories, files):
            yield Path(root, name)


def _trigger(app: Sanic[Any, Any], loop: AbstractEventLoop, event: str, **kwargs: Any) -> None:
    for listener in app.listeners.get(event, ()):
        with _logged(event, listener):
            trigger_events([listener], loop, app, **kwargs)


@contextmanager
def _logged(event: str, listener: Callable[..., Any]) -> Iterator[None]:
    try:
        yield
    except Exception:
        error_logger.exception("A listener of %s failed: %r", event, listener)
