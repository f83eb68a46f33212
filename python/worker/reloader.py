"""Watches the files of an application, and asks for a restart when one changes."""

from __future__ import annotations

import os
import sys
import time
from asyncio import AbstractEventLoop, new_event_loop
from collections.abc import Collection, Iterable, Iterator, MutableMapping
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

from worker._child import bootstrap
from worker._control.send import Publisher, send
from worker._core import Scanner
from worker._core.messages import encoded_files
from worker._reload import ignore
from worker._reload.file_events import Hints, absolute, resolved, shared_directories
from worker._reload.names import shown
from worker._reload.outputs import Outputs
from worker.loader import AppLoader

__all__ = ["Reloader"]

# How many paths the workers are told at most: whoever removes a tree of 100,000 files wants one restart,
# and a message that is too long would be dropped.
TOLD = 1_000
# Where nothing has happened, all is looked at again when so many times as long has passed as the last such
# look took: an event that got lost is to cost time, and the look next to nothing.
SELDOM = 5_000
# By how much the clock of a file system may lag behind, seconds.
CLOCK_TICK = 0.02


class Reloader:
    """Runs in a process of its own, and has all workers restarted when a file changes.

    Watched are the source of every module that the application has imported, and everything in the
    directories given and in the application's own package, but for what is ignored
    (:mod:`worker._reload.ignore`). A file counts as changed when it came, went, or its time of modification,
    size or inode is another one; a module that is newly imported does not. File events say when and
    where to look; where they do not tell everything, all is looked at every ``interval``. Changes that follow
    each other within :attr:`QUIET` are one. A subclass that replaces :meth:`files`, :meth:`python_files` or
    :meth:`check_file` is asked instead, file by file, every ``interval``.

    The application's ``reload_process_start`` and ``reload_process_stop`` listeners run once,
    ``before_reload_trigger`` and ``after_reload_trigger`` (this one with ``changed``, a set of paths as
    ``str``) around each request to restart. A listener that fails is logged and ends nothing.

    Args:
        publisher (Publisher): The sending end of the pipe to the main process.
        interval (float): The time from one look to the next, seconds. 0 stands for :attr:`INTERVAL`.
        reload_dirs (Collection[Path]): Directories to watch as a whole, with all that is below them.
        app_loader (AppLoader): Loads the application, whose modules and listeners these are.
    """

    handles_stop_itself = True
    """It sets handlers of its own for a stop (:mod:`worker._spawn.processes`)."""
    restart_policy = "always"
    """It is replaced when it dies (:meth:`worker.manager.WorkerManager.manage`)."""
    is_reloader = True
    """As long as it runs, servers that do not start may be repaired."""
    INTERVAL = 1.0
    """The time from one look to the next where none is given, seconds."""
    QUIET = 0.05
    """How long nothing is to change before the workers are restarted, seconds."""
    PATIENCE = 0.5
    """How long that is waited for at most, seconds."""

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
        self._hints: Hints | None = None
        self._outputs: Outputs | None = None
        self._gap_told = False
        # The files of the modules, and how many modules there were, at the last look; and of the first one,
        # from when on a change counts.
        self._modules: set[str] = set()
        self._imported = 0
        self._counts_from = 0.0
        # When to look at everything again, on the monotonic clock.
        self._due = 0.0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_watching": None, "_scanner": None, "_hints": None, "_outputs": None}

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
        roots = [*map(os.fspath, self.reload_dirs), *_package(self.app_loader)]
        patterns = bootstrap.current_settings().reload_ignore
        rules = ignore.rules((*ignore.DEFAULTS, *patterns))
        self._scanner = Scanner(roots, rules, since=bootstrap.started_at())
        self._hints = Hints(roots, self.QUIET, lambda: not self.run)
        self._outputs = Outputs(bootstrap.current_state(), roots, patterns)
        mtimes: dict[str | Path, float] = {}
        loop = new_event_loop()
        try:
            _trigger(app, loop, "reload_process_start")
            self._counts_from, hints = time.time() - CLOCK_TICK, None
            while self.run:
                changed = self._check_each(mtimes) if self._is_replaced else self._gather(hints)
                if changed and self.run:
                    self._announce(app, loop, changed)
                hints = self._wait()
            _trigger(app, loop, "reload_process_stop")
        finally:
            self._hints.close()
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

    @property
    def _is_replaced(self) -> bool:
        own = vars(self)
        return any(name in own or getattr(type(self), name) is not theirs for name, theirs in _OWN.items())

    def _wait(self) -> set[str] | None:
        """Wait until it is time to look; return where, ``None`` for everywhere."""
        assert self._watching is not None and self._hints is not None
        if self._is_replaced or self._hints.is_blind:
            self._watching.acquire(timeout=self.interval)
            return None
        hints: set[str] | None = set()
        # What has been imported meanwhile is looked at as well.
        while self.run and hints == set() and len(sys.modules) == self._imported:
            left = self._due - time.monotonic()
            hints = self._hints.wait(min(left, self.INTERVAL)) if left > 0 else None
        return hints

    def _gather(self, hints: set[str] | None) -> set[str]:
        """Look, and if something changes, until nothing has for a while; return all that has."""
        assert self._watching is not None and self._hints is not None
        # What changes during a look, or while the machine is busy after it, has not been seen.
        seen, changed = time.time(), self._look(hints)
        first = {path: _changed_at(path) for path in changed}
        deadline = time.monotonic() + self.PATIENCE
        while changed and self.run and time.monotonic() < deadline and seen - _last(changed) < self.QUIET:
            if self._hints.is_blind:
                self._watching.acquire(timeout=self.QUIET)
                hints = None
            else:
                hints = self._hints.wait(self.QUIET)
            seen = time.time()
            changed |= self._look(hints)
            first = {**{path: _changed_at(path) for path in changed}, **first}
        assert self._outputs is not None
        # A later look may have found out that an earlier change was output.
        changed -= self._outputs.among(changed, self._modules)
        return changed - self._outputs.found_by(first, self._modules)

    def _look(self, hints: set[str] | None) -> set[str]:
        """Look at what the hints point at, or at everything; return what has changed."""
        assert self._scanner is not None and self._hints is not None
        began = time.monotonic()
        self._imported = len(sys.modules)
        modules = self._modules = set(self.python_files())
        self._scanner.watch(modules)
        changed = self._scanner.scan(hints)
        if self._counts_from:
            # All since the start of this process, when workers may have imported an older module. What else
            # the start itself has written is no change.
            since, self._counts_from = self._counts_from, 0.0
            changed = [path for path in changed if path in modules or _changed_at(path) >= since]
        if hints is None:
            self._due = began + max(self.interval, SELDOM * (time.monotonic() - began))
        # What has happened where nothing was watched yet, no event has told.
        while self.run and self._hints.cover(self._scanner, modules):
            changed += self._scanner.scan()
            if time.monotonic() > began + self.PATIENCE:
                self._due = 0.0
                break
        if self._hints.gap:
            self._due = min(self._due, began + self.interval)
            self._tell_gap(self._hints.gap)
        # What lies in a directory is told as what it resolves to, a module as it says itself.
        told = {path if path in modules else resolved(path) for path in changed}
        assert self._outputs is not None
        return told - self._outputs.among(told, modules)

    def _tell_gap(self, gap: str) -> None:
        """Say, once, why all files are looked at all the time."""
        if not self._gap_told:
            text = "Reloader: file events do not tell everything (%s). Scanning all files every %g s."
            logger.warning(text, gap, self.interval)
        self._gap_told = True

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
                    changed.add(filename if isinstance(filename, str) else resolved(str(filename)))
        return changed

    def _announce(self, app: Sanic[Any, Any], loop: AbstractEventLoop, changed: set[str]) -> None:
        names = sorted(changed)
        count = "1 file" if len(names) == 1 else f"{len(names)} files"
        logger.info("Reloader: %s changed (%s). Restarting the workers.", count, shown(names))
        _trigger(app, loop, "before_reload_trigger")
        if self._outputs is not None:
            self._outputs.request(time.time())
        try:
            self.reload(encoded_files(names[:TOLD]))
        except ConnectionError:
            logger.debug("Monitor process has already exited.")
            self.stop()
        else:
            _trigger(app, loop, "after_reload_trigger", changed=changed)


# As they are here, whatever becomes of the class.
_OWN = {name: getattr(Reloader, name) for name in ("files", "python_files", "check_file")}


def _last(paths: Iterable[str]) -> float:
    """When the last of these changed."""
    return max(map(_changed_at, paths))


def _changed_at(path: str) -> float:
    """When something last happened to it, or to what it was in, if that is gone."""
    while True:
        with suppress(OSError):
            return os.stat(path).st_ctime
        path, before = os.path.dirname(path), path
        if path == before:
            return 0.0


def _package(loader: AppLoader) -> list[str]:
    """Return the directory of the application's own package or module, if there is one."""
    name = loader.module_name
    if not name and loader.factory is not None:
        function = getattr(loader.factory, "func", loader.factory)
        name = getattr(function, "__module__", None) or ""
    if not name or name.partition(".")[0] == "sanic":
        # It was run from a script.
        name = "__main__"
    prefixes = [name[:end] for end, char in enumerate(name + ".") if char == "."]
    for file in (getattr(sys.modules.get(prefix), "__file__", None) for prefix in prefixes):
        if isinstance(file, str):
            directory = os.path.dirname(absolute(file))
            return [] if resolved(directory) in shared_directories() else [directory]
    return []


def _below(directory: Path) -> Iterator[Path]:
    pending = [os.fspath(directory)]
    while pending:
        with suppress(OSError), os.scandir(pending.pop()) as entries:
            for entry in entries:
                yield Path(entry.path)
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)


def _trigger(app: Sanic[Any, Any], loop: AbstractEventLoop, event: str, **kwargs: Any) -> None:
    for listener in app.listeners.get(event, ()):
        with _logged(event):
            trigger_events([listener], loop, app, **kwargs)


@contextmanager
def _logged(event: str) -> Iterator[None]:
    try:
        yield
    except Exception:
        error_logger.exception("Reloader: a %s listener failed. Continuing without it.", event)
