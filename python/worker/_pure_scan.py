"""What has changed among files, in plain Python.

The stub of the native core documents what is offered here; the comments in this file say why.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, final

__all__ = ["Scanner"]

_PATH = getattr(os, "O_PATH", 0) | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
_IN_USE = "the scanner is in use: it is for one thread at a time"

# What tells one state of a file from another: mtime in ns, size, inode. Of a directory it is what is
# in it that counts, and that is looked at on its own.
_Stamp = tuple[int, int, int]
_DIRECTORY: Final[_Stamp] = (0, 0, 0)


@dataclass(slots=True)
class _Entry:
    """A name in a directory; no stamp if it is out of reach, as a link to nowhere is."""

    is_directory: bool = False
    is_link: bool = False
    stamp: _Stamp | None = None


class _State(NamedTuple):
    """Which directory it is, and when it last changed: a time that nobody can set."""

    identity: tuple[int, int]
    changed: int


@dataclass(slots=True)
class _Folder:
    """What is known of a directory. No state: it has not been listed yet.

    ``settled`` says whether it will have another time of change when it changes again.
    """

    state: _State | None = None
    settled: bool = False
    entries: dict[str, _Entry] = field(default_factory=dict)


@dataclass(slots=True)
class _Visit:
    """A look at a directory, and what it brought to light.

    ``changed`` are paths that came, went, or are not what they were; ``below`` directories that are not
    known yet, and whether a link leads there; ``before`` the paths that were known of another directory,
    if it was another one that was there before.
    """

    path: str
    folder: _Folder
    changed: list[str] = field(default_factory=list)
    below: list[tuple[str, bool]] = field(default_factory=list)
    before: list[str] | None = None

    def paths(self) -> list[str]:
        """Return the paths of what is there."""
        return [self.path + name for name, entry in self.folder.entries.items() if entry.stamp is not None]

    def merge(self, entries: dict[str, _Entry]) -> None:
        """Take over a new list of entries, with the stamps of those that are known."""
        known, self.folder.entries = self.folder.entries, entries
        for name, entry in entries.items():
            if name in known:
                entry.stamp = known.pop(name).stamp
            if entry.is_directory:
                self.note(name, entry, _DIRECTORY)
        for name, entry in known.items():
            self.note(name, entry, None)

    def look(self, fd: int, name: str, entry: _Entry) -> None:
        """Look what it is like now. Where that cannot be told, it is as it was."""
        try:
            about = os.stat(name, dir_fd=fd)
        except OSError as exc:
            if _is_gone(exc):
                self.note(name, entry, None)
        else:
            stamp = about.st_mtime_ns, about.st_size, about.st_ino
            self.note(name, entry, _DIRECTORY if stat.S_ISDIR(about.st_mode) else stamp)

    def note(self, name: str, entry: _Entry, stamp: _Stamp | None) -> None:
        """Keep its stamp, and whether that is a change."""
        if entry.stamp != stamp:
            entry.stamp = stamp
            self.changed.append(self.path + name)
            if stamp == _DIRECTORY:
                self.below.append((self.path + name + "/", entry.is_link))


class _Sweep:
    """What one sweep has come to so far."""

    def __init__(self) -> None:
        self.changed: list[str] = []
        self.seen: set[tuple[int, int]] = set()
        self.links: set[str] = set()


@final
class Scanner:
    def __init__(
        self,
        roots: Iterable[str | os.PathLike[str]],
        ignored: Iterable[str] | None = None,
        settle: float = 2.0,
    ) -> None:
        if not 0 <= settle < 1e9:
            raise ValueError("settle has to be a number of seconds from 0 on")
        self._turn = threading.Lock()
        self._ignored = frozenset(map(_checked, ("__pycache__",) if ignored is None else ignored))
        self._settle_ns = int(settle * 1e9)
        # The path of a directory ends with a slash here: what is put behind it is the path of an entry.
        self._roots = [os.path.join(_checked(root), "") for root in roots]
        self._folders: dict[str, _Folder] = {}
        # Directories that are not walked, but may be next time: what is there is known by another
        # path, or was gone, or could not be listed.
        self._waiting: set[str] = set()
        self._files: dict[str, _Visit] = {}
        self._swept = False

    def watch(self, files: Iterable[str | os.PathLike[str]]) -> None:
        paths = [*map(_checked, files)]
        with self._alone():
            for path in paths:
                folder, name = _split(path)
                visit = self._files.setdefault(folder, _Visit(folder, _Folder()))
                if name not in visit.folder.entries:
                    visit.folder.entries[name] = entry = _Entry()
                    with suppress(OSError), _opened(folder) as fd:
                        visit.look(fd, name, entry)
                        visit.changed = []

    def scan(self) -> list[str]:
        with self._alone():
            sweep = _Sweep()
            known, self._folders = self._folders, {}
            self._visit(known, sweep)
            for root in self._roots:
                self._try_again(root, sweep)
            candidates, self._waiting = self._waiting, set()
            while candidates := candidates | sweep.links:
                sweep.links = set()
                path = min(candidates, key=os.fsencode)
                candidates.remove(path)
                self._try_again(path, sweep)
            self._look_at_files(sweep)
            changed, self._swept = (sweep.changed if self._swept else []), True
            return sorted(set(changed), key=os.fsencode)

    def module_files(self, modules: Iterable[object]) -> list[str]:
        return [path for path in map(_file_of, modules) if path]

    @staticmethod
    def check_file(filename: str | os.PathLike[str], mtimes: MutableMapping[Any, float]) -> bool:
        mtime = os.stat(filename).st_mtime
        known = mtimes.get(filename)
        if known is None or mtime > known:
            mtimes[filename] = mtime
            return known is not None
        return False

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._turn.acquire(blocking=False):
            raise RuntimeError(_IN_USE)
        try:
            yield
        finally:
            self._turn.release()

    def _visit(self, batch: dict[str, _Folder], sweep: _Sweep) -> None:
        """Visit directories, and those that come to light below them, and keep what is learnt."""
        while batch:
            visits = [
                self._look_at_folder(path, batch[path], sweep) for path in sorted(batch, key=os.fsencode)
            ]
            # The one that was here first stays, whoever has come to be the same.
            visits.sort(key=lambda visit: visit.before is not None)
            batch = {}
            for visit in visits:
                for below, is_link in self._settle(visit, sweep):
                    if is_link:
                        sweep.links.add(below)
                    else:
                        batch[below] = _Folder()

    def _settle(self, visit: _Visit, sweep: _Sweep) -> list[tuple[str, bool]]:
        """Keep what a visit has taught; return the directories that came to light."""
        state = visit.folder.state
        if state is not None and state.identity in sweep.seen:
            sweep.changed += visit.before or ()
        else:
            sweep.changed += visit.changed
            if state is not None:
                sweep.seen.add(state.identity)
                self._folders[visit.path] = visit.folder
                return visit.below
        self._waiting.add(visit.path)
        return []

    def _try_again(self, path: str, sweep: _Sweep) -> None:
        """Visit a directory that could not be walked before, or was reached by a link."""
        if path in self._folders:
            return
        self._visit({path: _Folder()}, sweep)
        parent, name = _split(path[:-1])
        entry = self._folders.get(parent, _Folder()).entries.get(name)
        if entry is None or entry.stamp != _DIRECTORY:
            self._waiting.discard(path)

    def _look_at_folder(self, path: str, folder: _Folder, sweep: _Sweep) -> _Visit:
        visit = _Visit(path, folder)
        now = time.time_ns()
        try:
            with _opened(path) as fd:
                about = os.fstat(fd)
                state = _State((about.st_dev, about.st_ino), about.st_ctime_ns)
                if folder.state is None and state.identity in sweep.seen:
                    return visit
                if folder.state != state or not folder.settled:
                    entries = self._list(fd)
                    if folder.state is not None and folder.state.identity != state.identity:
                        visit.before = visit.paths()
                    visit.merge(entries)
                    folder.state = state
                    folder.settled = state.changed <= now - self._settle_ns
                for name, entry in folder.entries.items():
                    if not entry.is_directory:
                        visit.look(fd, name, entry)
        except OSError as exc:
            if _is_gone(exc):
                visit.changed = visit.paths()
                folder.state = None
        return visit

    def _list(self, fd: int) -> dict[str, _Entry]:
        entries = {}
        listed = os.open(".", os.O_RDONLY | os.O_CLOEXEC, dir_fd=fd)
        try:
            with os.scandir(listed) as names:
                for name in names:
                    if name.name not in self._ignored:
                        is_directory = name.is_dir(follow_symlinks=False)
                        entries[name.name] = _Entry(is_directory, name.is_symlink())
        finally:
            os.close(listed)
        return entries

    def _look_at_files(self, sweep: _Sweep) -> None:
        for visit in self._files.values():
            try:
                with _opened(visit.path) as fd:
                    for name, entry in visit.folder.entries.items():
                        visit.look(fd, name, entry)
            except OSError as exc:
                if _is_gone(exc):
                    for name, entry in visit.folder.entries.items():
                        visit.note(name, entry, None)
            sweep.changed += visit.changed
            visit.changed = []


@contextmanager
def _opened(path: str) -> Iterator[int]:
    fd = os.open(path or "./", _PATH)
    try:
        yield fd
    finally:
        os.close(fd)


def _is_gone(error: OSError) -> bool:
    """Whether it says that there is nothing, rather than that it cannot be told."""
    return error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def _checked(path: str | os.PathLike[str]) -> str:
    path = os.fspath(path)
    if b"\0" in os.fsencode(path):
        raise ValueError("embedded null byte")
    return path


def _split(path: str) -> tuple[str, str]:
    slash = path.rfind("/") + 1
    return path[:slash], path[slash:]


def _file_of(module: object) -> str | None:
    try:
        path = module.__file__  # type: ignore[attr-defined]
    except Exception:  # what stands in for a module may raise anything when it is asked
        return None
    if not isinstance(path, str):
        return None
    while not _is_file(path):
        parent = os.path.dirname(path)
        if parent == path:
            return None
        path = parent
    return path[:-1] if path.endswith((".pyc", ".pyo")) else path


def _is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False
