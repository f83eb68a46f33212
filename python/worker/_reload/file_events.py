"""Where something may have happened to files, as the kernel tells it through ``watchfiles``."""

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

__all__ = ["Hints", "absolute", "resolved", "shared_directories"]

# File systems that tell nothing of what others do: other machines, or the host of a container.
SILENT = re.compile(
    r"(nfs|nfs4|cifs|smb3|smbfs|afs|ceph|lustre|gfs2|ocfs2|9p|virtiofs|vboxsf|prl_fs|vmhgfs|fakeowner|fuse\..*)$"
)
MOUNTS = "/proc/self/mountinfo"
INOTIFY = "/proc/sys/fs/inotify"
# After how long without a look at the queue, seconds, or with how many paths, some may have been dropped.
STALL = 0.5
MANY = 1_000
# The first number of watches to advise.
WATCHES = 524_288

Identity = tuple[int, int]


@dataclass(slots=True)
class _Place:
    """A directory to be watched.

    Attributes:
        path: The absolute path by which it is watched.
        folder: The path by which the scanner walks it, if it does: whatever happens in it matters.
        names: What matters else, by the name in it, and what may have changed then.
    """

    path: str
    folder: str | None = None
    names: dict[str, set[str]] | None = None

    def hints(self, name: str) -> set[str]:
        """Return what may have changed if something has happened to a name in it."""
        walked = set() if self.folder is None else {os.path.join(self.folder, name)}
        return walked | (self.names or {}).get(name, set())

    def all_hints(self) -> set[str]:
        """Return what may have changed if something has happened to all of it."""
        walked = set() if self.folder is None else {self.folder}
        return walked.union(*(self.names or {}).values())


def absolute(path: str) -> str:
    """Return a path from the root on; as it is where the working directory is gone."""
    with suppress(OSError):
        return os.path.abspath(path)
    return path


def resolved(path: str) -> str:
    """Return a path without links and relative parts, as far as that can be told.

    A link may go, or be replaced, from one system call to the next; what one in ``/proc`` leads to may be
    secret; and of a chain of links that no system call would follow to its end, Python follows each.
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


class Hints:
    """Says where to look, never what has changed: an event that is lost or late costs time, and no more.

    There is one watch, not recursive, over the directories that a scanner walks, those of single files, and
    those in which a root, or what a link leads to, comes and goes.

    Args:
        roots (Collection[str]): The roots of the scanner.
        step (float): How often the queue of events is looked at, seconds.
        is_stopped (Callable[[], bool]): Whether to return from a wait at once.

    Attributes:
        gap: Why events do not tell everything, in words; empty where they do.
        is_blind: Whether there are no events at all.
    """

    def __init__(self, roots: Collection[str], step: float, is_stopped: Callable[[], bool]) -> None:
        self._roots = roots
        self._step_ms = round(1000 * step)
        self._ticks = _Ticks(is_stopped)
        self._notify: RustNotify | None = None
        self._watched: dict[str, Identity] = {}
        self._places: dict[str, _Place] = {}
        # What the places follow from: with all of it as it was, they are the same ones.
        self._basis: tuple[Collection[str], ...] = ()
        # Links and roots: places come and go with them.
        self._pivots: set[str] = set()
        self._is_forced = _is_polling_forced()
        self.gap = "WATCHFILES_FORCE_POLLING is set" if self._is_forced else ""

    @property
    def is_blind(self) -> bool:
        return self._notify is None

    def cover(self, scanner: Scanner, files: Collection[str]) -> bool:
        """Watch what matters now.

        Args:
            scanner (Scanner): What walks the directories.
            files (Collection[str]): The single files that it looks at.

        Returns:
            bool: Whether there is something that was not watched until now, and may have changed untold.
        """
        if self._is_forced:
            return False
        # Whatever was dropped before the files were looked at does not matter.
        self._ticks.begin()
        basis = (scanner.folders(), scanner.links(), files)
        if basis == self._basis:
            return False
        self._basis = basis
        places, gap = self._needed(*basis)
        self._places = {place.path: place for place in places.values()}
        wanted = {place.path: identity for identity, place in places.items()}
        if wanted.items() <= self._watched.items():
            return False
        self._watched = wanted
        self.gap = self._watch([*self._places]) or gap
        self._ticks.begin()
        return not self.is_blind

    def wait(self, timeout: float) -> set[str] | None:
        """Wait for events.

        Args:
            timeout (float): How long at most, seconds.

        Returns:
            set[str] | None: Paths, as the scanner knows them, that something may have happened to; none if it
                is over. ``None``: something may have happened anywhere.
        """
        assert self._notify is not None
        try:
            # It takes a timeout of 0 for none.
            events = self._notify.watch(1, self._step_ms, max(1, round(1000 * timeout)), self._ticks)
        except (RuntimeError, OSError):
            # A name that is no UTF-8, for one; it does not recover from it.
            self._forget()
            return None
        paths = {path for _, path in events} if isinstance(events, set) else set()
        hints = set().union(*map(self._hinted, paths))
        if hints & self._pivots:
            self._basis = ()
        # The kernel keeps only so many events, and nobody is told of those that were dropped.
        return None if self._ticks.have_stalled or len(paths) > MANY else hints

    def close(self) -> None:
        """Let go of the watch."""
        if self._notify is not None:
            self._notify.close()
            self._notify = None

    def _hinted(self, path: str) -> set[str]:
        hints: set[str] = set()
        own = self._places.get(path)
        if own is not None:
            # Perhaps its watch is gone with it.
            self._watched.pop(path, None)
            self._basis = ()
            hints |= own.all_hints()
        parent, name = os.path.split(path)
        if parent in self._places:
            hints |= self._places[parent].hints(name)
        return hints

    def _forget(self) -> None:
        self.close()
        self._watched, self._basis = {}, ()

    def _needed(
        self, folders: Collection[str], links: Collection[str], files: Collection[str]
    ) -> tuple[dict[Identity, _Place], str]:
        """Return the directories in which an event may matter, and which of them tells of none."""
        places: dict[Identity, _Place] = {}
        gap = ""
        mounts = _Mounts()
        found: dict[str, _Place | None] = {}

        def place_at(path: str) -> _Place | None:
            nonlocal gap
            if path in found:
                return found[path]
            found[path] = None
            with suppress(OSError):
                about = os.stat(path)
                flaw = _undecodable(path)
                gap = gap or mounts.silence(path, about.st_dev) or flaw
                if not flaw:
                    identity = about.st_dev, about.st_ino
                    found[path] = places.setdefault(identity, _Place(path))
            return found[path]

        def name(path: str, hint: str) -> None:
            """Watch for the coming and going of what is at a path, or of what it would be in."""
            parent, own = os.path.split(path)
            place = place_at(parent)
            while place is None and parent != os.path.dirname(parent):
                parent, own = os.path.split(parent)
                place = place_at(parent)
            if place is not None:
                place.names = place.names or {}
                place.names.setdefault(own, set()).add(hint)

        for folder in folders:
            path = absolute(folder)
            place = place_at(folder if path == folder else path)
            if place is not None:
                place.folder = folder
        linked = [path for path in files if os.path.islink(path)]
        for path in (*self._roots, *files):
            name(absolute(path), path)
        for path in (*links, *linked, *filter(os.path.islink, self._roots)):
            name(resolved(path), path)
        self._pivots = {*links, *linked, *self._roots}
        return places, gap

    def _watch(self, paths: list[str]) -> str:
        """Watch anew; return what stands in the way of it, in words."""
        self.close()
        try:
            self._notify = _notify(paths, tolerant=True)
        except (RuntimeError, OSError) as error:
            # To be tried again at the next look: what was short may be there again.
            self._forget()
            return f"{error}; {_advice('max_user_instances', 1024)}, or more open files (ulimit -n), would do"
        # It passes over what is out of its reach, and what the kernel refuses as well: of that only one more
        # watch tells.
        try:
            _notify(["/"], tolerant=False).close()
        except OSError:
            return (
                f"not all of {len(paths)} directories can be watched; "
                f"{_advice('max_user_watches', max(WATCHES, 2 * len(paths)))} would do, or patterns of what "
                "need not be watched (SANIC_WORKER_RELOAD_IGNORE)"
            )
        except RuntimeError:
            pass
        return ""


class _Ticks:
    """What is asked at every look at the queue whether to stop: ``is_set``, by the name of an event's.

    Attributes:
        have_stalled: Whether there was none for long since the last look at the files.
    """

    def __init__(self, is_stopped: Callable[[], bool]) -> None:
        self._is_stopped = is_stopped
        self._late = 0.0
        self.have_stalled = False

    def begin(self) -> None:
        """Start over."""
        self._late, self.have_stalled = monotonic() + STALL, False

    def is_set(self) -> bool:
        now = monotonic()
        if now > self._late:
            self.have_stalled = True
        self._late = now + STALL
        return self._is_stopped()


def _notify(paths: list[str], *, tolerant: bool) -> RustNotify:
    # No process but this one is to load it.
    from watchfiles._rust_notify import RustNotify

    return RustNotify(paths, False, False, 0, False, tolerant)


class _Mounts:
    """The file systems of this machine, by the number of the device."""

    def __init__(self) -> None:
        self._kinds: dict[int, str] = {}
        if sys.platform != "linux":
            return
        with suppress(OSError, ValueError, IndexError), open(MOUNTS, "rb") as mounts:
            for line in mounts:
                before, _, after = line.partition(b" - ")
                major, minor = before.split()[2].split(b":")
                self._kinds[os.makedev(int(major), int(minor))] = os.fsdecode(after.split()[0])

    def silence(self, path: str, device: int) -> str:
        """Return why what others do at a path is not told, in words; empty if it is."""
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
    # As watchfiles takes it.
    forced = os.environ.get("WATCHFILES_FORCE_POLLING", "")
    return bool(forced) and forced.lower() not in ("false", "disable", "disabled")


def shared_directories() -> set[str]:
    """Return directories that no application owns as a whole: the root, home, temporary and library ones."""
    shared = {os.sep, os.path.expanduser("~"), *sysconfig.get_paths().values()}
    # There need not be any that can be written to.
    with suppress(OSError):
        shared.add(gettempdir())
    return set(map(resolved, shared))
