"""Watches the files of an application, and requests a restart when one changes."""

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
from worker._reload.file_events import CLOCK_TICK, FileEvents, absolute, resolved, shared_directories
from worker._reload.names import shown
from worker._reload.outputs import Outputs
from worker.loader import AppLoader

__all__ = ["Reloader"]

# The largest number of paths that a restart reports to the workers. The removal of 100,000 files must make
# one restart, and a message that is too long would be dropped.
MAX_REPORTED = 1_000
# Without events, a full scan follows the last one after this multiple of its duration. A lost event then
# delays a change, and full scans cost next to nothing.
FULL_SCAN_FACTOR = 5_000


class Reloader:
    """Runs in a process of its own, and restarts all workers when a file changes.

    It watches the sources of all modules that the application has imported, the given directories, and the
    directory of the application's own package, except for ignored files (:mod:`worker._reload.ignore`). A
    file has changed if it was created or removed, or if its time of modification, size or inode differs. A
    newly imported module is no change. File events say when and which paths to scan. Where they are
    incomplete, everything is scanned every ``interval``. Changes that follow each other within
    :attr:`DEBOUNCE` are one. If a subclass replaces :meth:`files`, :meth:`python_files` or
    :meth:`check_file`, the reloader calls these instead, file by file, every ``interval``.

    The application's ``reload_process_start`` and ``reload_process_stop`` listeners run once,
    ``before_reload_trigger`` and ``after_reload_trigger`` (this one with ``changed``, a set of paths as
    ``str``) around each request to restart. A listener that fails is logged and ends nothing.

    Args:
        publisher (Publisher): The sending end of the control channel.
        interval (float): The time from one scan to the next, seconds. 0 stands for :attr:`INTERVAL`.
        reload_dirs (Collection[Path]): Directories to watch, with everything below them.
        app_loader (AppLoader): Loads the application.
    """

    handles_stop_itself = True
    """It sets handlers of its own for a stop (:mod:`worker._spawn.processes`)."""
    restart_policy = "always"
    """It is replaced when it exits (:meth:`worker.manager.WorkerManager.manage`)."""
    is_reloader = True
    absence = "No file change is noticed until it runs."
    """While it runs, a change may repair servers that do not start."""
    INTERVAL = 1.0
    """The default time from one scan to the next, seconds."""
    DEBOUNCE = 0.05
    """How long no file may change before the workers are restarted, seconds."""
    MAX_DEBOUNCE = 0.5
    """How long to wait for that at most, seconds."""

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
        # Held until stop(). Of all objects that a thread can wait for, a signal handler may release only a
        # lock. It cannot be pickled, so the process that waits for it makes it.
        self._watching: Lock | None = None
        self._scanner: Scanner | None = None
        self._file_events: FileEvents | None = None
        self._outputs: Outputs | None = None
        self._is_warned = False
        # The files and the number of the modules at the last scan; for the first scan, the time from which
        # on a change counts.
        self._modules: set[str] = set()
        self._imported = 0
        self._counts_from = 0.0
        # When to scan everything again, on the monotonic clock.
        self._full_scan_at = 0.0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_watching": None, "_scanner": None, "_file_events": None, "_outputs": None}

    def __call__(self) -> None:
        """Load the application and watch until :meth:`stop` is called, by SIGINT and SIGTERM among others.

        Raises:
            Exception: The error of loading the application.
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
        self._file_events = FileEvents(roots, self.DEBOUNCE, lambda: not self.run)
        self._outputs = Outputs(bootstrap.current_state(), roots, patterns)
        mtimes: dict[str | Path, float] = {}
        loop = new_event_loop()
        try:
            _trigger(app, loop, "reload_process_start")
            self._counts_from, paths = time.time() - CLOCK_TICK, None
            while self.run:
                changed = self._check_each(mtimes) if self._is_replaced else self._gather(paths)
                if changed and self.run:
                    self._announce(app, loop, changed)
                paths = self._wait()
            _trigger(app, loop, "reload_process_stop")
        finally:
            self._file_events.close()
            loop.close()

    def stop(self, *_: Any) -> None:
        """End the watch at once. It accepts, and ignores, the arguments of a signal handler."""
        self.run = False
        if self._watching is not None:
            with suppress(RuntimeError):  # it is called a second time
                self._watching.release()

    def reload(self, reloaded_files: str) -> None:
        """Request a restart of all workers.

        Args:
            reloaded_files (str): The changed paths, joined by commas, for the workers. The watch passes the
                first 1,000 of them.

        Raises:
            OSError: The main process is gone (``ConnectionError``), or the connection is closed.
        """
        send(self._publisher, f"__ALL_PROCESSES__:{reloaded_files}")

    def files(self) -> Iterator[str | Path]:
        """Iterate over the watched files: :meth:`python_files`, then everything below each directory.

        A directory that cannot be read, or is removed meanwhile, is skipped.
        """
        return chain(self.python_files(), chain.from_iterable(map(_below, self.reload_dirs)))

    def python_files(self) -> Iterator[str]:
        """Iterate over the source files of all modules that are imported in this process.

        For a module in an archive, it is the archive. Two modules of one file yield it twice.
        """
        self._scanner = self._scanner or Scanner(self.reload_dirs)
        # Another thread may import meanwhile.
        yield from self._scanner.module_files(list(sys.modules.values()))

    @staticmethod
    def check_file(filename: str | Path, mtimes: MutableMapping[Any, float]) -> bool:
        """Return whether a file is newer than at the last check.

        Args:
            filename (str | Path): The file.
            mtimes (MutableMapping): File to time of last modification, seconds; it is updated. A file that it
                lacks counts as unchanged.

        Raises:
            OSError: There is no such file, or it is inaccessible.
        """
        return Scanner.check_file(filename, mtimes)

    @property
    def _is_replaced(self) -> bool:
        own = vars(self)
        return any(name in own or getattr(type(self), name) is not theirs for name, theirs in _OWN.items())

    def _wait(self) -> set[str] | None:
        """Wait until the next scan; return the paths to scan, ``None`` for everything."""
        assert self._watching is not None and self._file_events is not None
        if self._is_replaced or self._file_events.polling:
            self._watching.acquire(timeout=self.interval)
            return None
        paths: set[str] | None = set()
        # A new import ends the wait, too: its file has to be watched.
        while self.run and paths == set() and len(sys.modules) == self._imported:
            left = self._full_scan_at - time.monotonic()
            paths = self._file_events.wait(min(left, self.INTERVAL)) if left > 0 else None
        return paths

    def _gather(self, paths: set[str] | None) -> set[str]:
        """Scan, and after a change again until no file has changed for a while; return all changes."""
        assert self._watching is not None and self._file_events is not None
        # The time before the scan: a change during it, or while the machine is busy, was not seen.
        seen, changed = time.time(), self._look(paths)
        first = {path: _changed_at(path) for path in changed}
        deadline = time.monotonic() + self.MAX_DEBOUNCE
        while changed and self.run and time.monotonic() < deadline and seen - _last(changed) < self.DEBOUNCE:
            if self._file_events.polling:
                self._watching.acquire(timeout=self.DEBOUNCE)
                paths = None
            else:
                paths = self._file_events.wait(self.DEBOUNCE)
            seen = time.time()
            changed |= self._look(paths)
            first = {**{path: _changed_at(path) for path in changed}, **first}
        assert self._outputs is not None
        # A later look may have found out that an earlier change was output.
        changed -= self._outputs.among(changed, self._modules)
        return changed - self._outputs.found_by(first, self._modules)

    def _look(self, paths: set[str] | None) -> set[str]:
        """Scan the paths of events, or everything; return the paths that have changed."""
        assert self._scanner is not None and self._file_events is not None
        began = time.monotonic()
        self._imported = len(sys.modules)
        modules = self._modules = set(self.python_files())
        self._scanner.watch(modules)
        changed = self._scanner.scan(paths)
        if self._counts_from:
            # Modules count if they have changed since this process was started: workers may have imported an
            # older version. Other files that the start itself has written are no change.
            since, self._counts_from = self._counts_from, 0.0
            changed = [path for path in changed if path in modules or _changed_at(path) >= since]
        if paths is None:
            self._full_scan_at = began + max(self.interval, FULL_SCAN_FACTOR * (time.monotonic() - began))
        # In directories that were not watched until now, a change may have had no event.
        while self.run and self._file_events.cover(self._scanner, modules):
            changed += self._scanner.scan()
            if time.monotonic() > began + self.MAX_DEBOUNCE:
                self._full_scan_at = 0.0
                break
        if self._file_events.degraded_reason:
            self._full_scan_at = min(self._full_scan_at, began + self.interval)
            self._warn_degraded(self._file_events.degraded_reason)
        # A path in a directory is reported resolved, that of a module as the module has it.
        reported = {path if path in modules else resolved(path) for path in changed}
        assert self._outputs is not None
        return reported - self._outputs.among(reported, modules)

    def _warn_degraded(self, reason: str) -> None:
        """Log, once, why everything is scanned all the time."""
        if not self._is_warned:
            text = "Reloader: file events do not tell everything (%s). Scanning all files every %g s."
            logger.warning(text, reason, self.interval)
        self._is_warned = True

    def _check_each(self, mtimes: MutableMapping[Any, float]) -> set[str]:
        changed = set()
        for filename in self.files():
            if not self.run:
                break
            # Python itself writes there, when the workers import edited modules again.
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
            self.reload(encoded_files(names[:MAX_REPORTED]))
        except ConnectionError:
            logger.debug("Monitor process has already exited.")
            self.stop()
        else:
            _trigger(app, loop, "after_reload_trigger", changed=changed)


# Kept here, as these attributes of the class may be replaced.
_OWN = {name: getattr(Reloader, name) for name in ("files", "python_files", "check_file")}


def _last(paths: Iterable[str]) -> float:
    """Return when the last of these paths changed, seconds since 1970."""
    return max(map(_changed_at, paths))


def _changed_at(path: str) -> float:
    """Return when a path, or its nearest existing parent, last changed, seconds since 1970."""
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
        # A script has run it.
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
