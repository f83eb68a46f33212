"""File events of the kernel, received by ``watchfiles``: the paths that may have changed."""

from __future__ import annotations

import os
import re
import sys
import sysconfig
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from tempfile import gettempdir
from time import monotonic
from typing import TYPE_CHECKING

from worker._core import Scanner
from worker.constants import excerpt

if TYPE_CHECKING:
    from watchfiles._rust_notify import RustNotify

__all__ = ["CLOCK_TICK", "FileEvents", "absolute", "resolved", "shared_directories"]

# By how much the clock of a file system may lag behind, in seconds.
CLOCK_TICK = 0.02

# File systems without events for changes by other machines, or by the host of a container.
SILENT = re.compile(
    r"(nfs|nfs4|cifs|smb3|smbfs|afs|ceph|lustre|gfs2|ocfs2|9p|virtiofs|vboxsf|prl_fs|vmhgfs|fakeowner|fuse\..*)$"
)
MOUNTS = "/proc/self/mountinfo"
INOTIFY = "/proc/sys/fs/inotify"
# Events may have been dropped if the queue was not read for this time, seconds, or has this many paths.
STALL = 0.5
MANY = 1_000
# The smallest number of watches to advise.
WATCHES = 524_288

Identity = tuple[int, int]


@dataclass(slots=True)
class _Directory:
    """A directory to be watched.

    Attributes:
        path: The absolute path by which it is watched.
        folder: The path by which the scanner walks it, so that every name in it matters; else ``None``.
        names: Other names in it that matter, each with the paths that may have changed with it.
    """

    path: str
    folder: str | None = None
    names: dict[str, set[str]] | None = None

    def paths(self, name: str) -> set[str]:
        """Return the paths that may have changed after an event for a name in it."""
        walked = set() if self.folder is None else {os.path.join(self.folder, name)}
        return walked | (self.names or {}).get(name, set())

    def all_paths(self) -> set[str]:
        """Return the paths that may have changed after an event for the directory itself."""
        walked = set() if self.folder is None else {self.folder}
        return walked.union(*(self.names or {}).values())


def absolute(path: str) -> str:
    """Return the absolute form of a path; the path itself if the working directory is gone."""
    with suppress(OSError):
        return os.path.abspath(path)
    return path


def resolved(path: str) -> str:
    """Return a path without links and relative parts, as far as they can be resolved.

    A link may be removed or replaced between two system calls. The target of a link in ``/proc`` may be
    hidden. Python follows a chain of links that is too long for any system call.
    """
    folder, rest = absolute(path), ""
    while True:
        try:
            return os.path.join(os.path.realpath(folder), rest).rstrip(os.sep) or os.sep
        except (OSError, RecursionError):
            folder, name = os.path.split(folder)
            rest = os.path.join(name, rest)
            if not name:
                return absolute(path)


class FileEvents:
    """Reports paths to scan, not changes: a lost or late event delays a change, and has no other effect.

    There is one watch, not recursive. It covers the directories that a scanner walks, those of single files,
    and those in which a root or the target of a link may appear or vanish.

    Args:
        roots (Collection[str]): The roots of the scanner.
        step (float): How often the queue of events is read, seconds.
        is_stopped (Callable[[], bool]): Whether to return from a wait at once.

    Attributes:
        degraded_reason: Why some changes have no events, in words; empty if all changes have them.
        polling: Whether there are no events at all.
    """

    def __init__(self, roots: Collection[str], step: float, is_stopped: Callable[[], bool]) -> None:
        self._roots = roots
        self._step_ms = round(1000 * step)
        self._ticks = _Ticks(is_stopped)
        self._notify: RustNotify | None = None
        self._watched: dict[str, Identity] = {}
        self._directories: dict[str, _Directory] = {}
        # The input from which the directories were made: they stay valid while it is the same.
        self._basis: tuple[Collection[str], ...] = ()
        # Links and roots: an event for one of them makes the directories invalid.
        self._pivots: set[str] = set()
        self._is_forced = _is_polling_forced()
        self.degraded_reason = "WATCHFILES_FORCE_POLLING is set" if self._is_forced else ""

    @property
    def polling(self) -> bool:
        return self._notify is None

    def cover(self, scanner: Scanner, files: Collection[str]) -> bool:
        """Watch the directories and files that matter now.

        Args:
            scanner (Scanner): Walks the directories.
            files (Collection[str]): The single files that it scans.

        Returns:
            bool: Whether a directory is watched that was not before, and may have changed without an event.
        """
        if self._is_forced:
            return False
        # Events that were dropped before the scan do not matter.
        self._ticks.begin()
        basis = (scanner.folders(), scanner.links(), files)
        if basis == self._basis:
            return False
        self._basis = basis
        directories, reason = self._needed(*basis)
        self._directories = {directory.path: directory for directory in directories.values()}
        wanted = {directory.path: identity for identity, directory in directories.items()}
        if wanted.items() <= self._watched.items():
            return False
        self._watched = wanted
        self.degraded_reason = self._watch([*self._directories]) or reason
        self._ticks.begin()
        return not self.polling

    def wait(self, timeout: float) -> set[str] | None:
        """Wait for events.

        Args:
            timeout (float): How long at most, seconds.

        Returns:
            set[str] | None: The paths that may have changed, as the scanner knows them; empty after the
                timeout or a stop. ``None``: any path may have changed.
        """
        assert self._notify is not None
        try:
            # A timeout of 0 means none.
            events = self._notify.watch(1, self._step_ms, max(1, round(1000 * timeout)), self._ticks)
        except (RuntimeError, OSError):
            # A name that is not UTF-8, for example. The watch does not recover from it.
            self._forget()
            return None
        names = {name for _, name in events} if isinstance(events, set) else set()
        paths = set().union(*map(self._paths_of, names))
        if paths & self._pivots:
            self._basis = ()
        # The kernel keeps a limited number of events, and watchfiles does not report dropped ones.
        return None if self._ticks.have_stalled or len(names) > MANY else paths

    def close(self) -> None:
        """End the watch."""
        if self._notify is not None:
            self._notify.close()
            self._notify = None

    def _paths_of(self, name: str) -> set[str]:
        """Return the paths to scan after an event for an absolute path."""
        paths: set[str] = set()
        own = self._directories.get(name)
        if own is not None:
            # Its watch may be gone with it.
            self._watched.pop(name, None)
            self._basis = ()
            paths |= own.all_paths()
        parent, base = os.path.split(name)
        if parent in self._directories:
            paths |= self._directories[parent].paths(base)
        return paths

    def _forget(self) -> None:
        self.close()
        self._watched, self._basis = {}, ()

    def _needed(
        self, folders: Collection[str], links: Collection[str], files: Collection[str]
    ) -> tuple[dict[Identity, _Directory], str]:
        """Return the directories in which an event may matter, and why one of them has no events."""
        directories: dict[Identity, _Directory] = {}
        reason = ""
        mounts = _Mounts()
        found: dict[str, _Directory | None] = {}

        def directory_at(path: str) -> _Directory | None:
            nonlocal reason
            if path in found:
                return found[path]
            found[path] = None
            with suppress(OSError):
                about = os.stat(path)
                undecodable = _undecodable(path)
                reason = reason or mounts.degraded_reason(path, about.st_dev) or undecodable
                if not undecodable:
                    identity = about.st_dev, about.st_ino
                    found[path] = directories.setdefault(identity, _Directory(path))
            return found[path]

        def watch_name(path: str, scanned: str) -> None:
            """Watch for the creation and removal of a path, or of its nearest existing parent."""
            parent, own = os.path.split(path)
            directory = directory_at(parent)
            while directory is None and parent != os.path.dirname(parent):
                parent, own = os.path.split(parent)
                directory = directory_at(parent)
            if directory is not None:
                directory.names = directory.names or {}
                directory.names.setdefault(own, set()).add(scanned)

        for folder in folders:
            path = absolute(folder)
            directory = directory_at(folder if path == folder else path)
            if directory is not None:
                directory.folder = folder
        linked = [path for path in files if os.path.islink(path)]
        for path in (*self._roots, *files):
            watch_name(absolute(path), path)
        for path in (*links, *linked, *filter(os.path.islink, self._roots)):
            watch_name(resolved(path), path)
        self._pivots = {*links, *linked, *self._roots}
        return directories, reason

    def _watch(self, paths: list[str]) -> str:
        """Replace the watch; return why it is incomplete, in words."""
        self.close()
        try:
            self._notify = _notify(paths, tolerant=True)
        except (RuntimeError, OSError) as error:
            # The next scan tries again: the resource may be available then.
            self._forget()
            return f"{error}; {_advice('max_user_instances', 1024)}, or more open files (ulimit -n), would do"
        # A tolerant watch skips directories that it cannot read, and also those that the kernel refuses to
        # watch. One more watch, which is not tolerant, shows whether the kernel refuses.
        try:
            _notify(["/"], tolerant=False).close()
        except OSError:
            return (
                f"not all of {len(paths)} directories can be watched; "
                f"{_advice('max_user_watches', max(WATCHES, 2 * len(paths)))} would do, or "
                "patterns of files to ignore (SANIC_WORKER_RELOAD_IGNORE)"
            )
        except RuntimeError:
            pass
        return ""


class _Ticks:
    """The stop event of a watch, which asks for :meth:`is_set` at each read of the queue.

    Attributes:
        have_stalled: Whether the queue was not read for too long since the last scan.
    """

    def __init__(self, is_stopped: Callable[[], bool]) -> None:
        self._is_stopped = is_stopped
        self._late = 0.0
        self.have_stalled = False

    def begin(self) -> None:
        """Begin a new measurement."""
        self._late, self.have_stalled = monotonic() + STALL, False

    def is_set(self) -> bool:
        now = monotonic()
        if now > self._late:
            self.have_stalled = True
        self._late = now + STALL
        return self._is_stopped()


def _notify(paths: list[str], *, tolerant: bool) -> RustNotify:
    # Imported here, so that no other process loads it.
    from watchfiles._rust_notify import RustNotify

    return RustNotify(paths, False, False, 0, False, tolerant)


class _Mounts:
    """The types of the mounted file systems, by device number."""

    def __init__(self) -> None:
        self._kinds: dict[int, str] = {}
        if sys.platform != "linux":
            return
        with suppress(OSError, ValueError, IndexError), open(MOUNTS, "rb") as mounts:
            for line in mounts:
                before, _, after = line.partition(b" - ")
                major, minor = before.split()[2].split(b":")
                self._kinds[os.makedev(int(major), int(minor))] = os.fsdecode(after.split()[0])

    def degraded_reason(self, path: str, device: int) -> str:
        """Return why changes at a path have no events, in words; empty if they have."""
        kind = self._kinds.get(device, "")
        if SILENT.match(kind):
            return f"{excerpt(path)} is on a file system that does not tell of all changes ({kind})"
        return ""


def _undecodable(path: str) -> str:
    try:
        path.encode()
    except UnicodeEncodeError:
        return f"{excerpt(os.fsencode(path))} is no UTF-8 and cannot be watched"
    return ""


def _advice(limit: str, number: int) -> str:
    present = ""
    with suppress(OSError, ValueError), open(f"{INOTIFY}/{limit}", encoding="ascii") as file:
        present = f" (it is {int(file.read())})"
    return f"`sysctl fs.inotify.{limit}={number}`{present}"


def _is_polling_forced() -> bool:
    # As watchfiles reads it.
    forced = os.environ.get("WATCHFILES_FORCE_POLLING", "")
    return bool(forced) and forced.lower() not in ("false", "disable", "disabled")


def shared_directories() -> set[str]:
    """Return directories that no application owns as a whole: the root, home, temporary and library ones."""
    shared = {os.sep, os.path.expanduser("~"), *sysconfig.get_paths().values()}
    # gettempdir() fails if no temporary directory can be written to.
    with suppress(OSError):
        shared.add(gettempdir())
    return set(map(resolved, shared))
