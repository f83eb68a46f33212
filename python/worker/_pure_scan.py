"""What has changed among files, in plain Python.

The stub of the native core documents what is offered here; the comments in this file say why.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeVar, final

__all__ = ["Scanner"]

_PATH = getattr(os, "O_PATH", 0) | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
_IN_USE = "the scanner is in use: it is for one thread at a time"
# What is passed over where nothing else is said.
_IGNORED = (("(^|/)__pycache__/?$", True),)
# What a directory holds, directly, that is none of its owner's work: a virtual environment, a cache.
_MARKS = frozenset(("pyvenv.cfg", "CACHEDIR.TAG"))

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

    ``settled`` says whether it will have another time of change when it changes again, ``marked`` whether it
    bears a mark.
    """

    state: _State | None = None
    settled: bool = False
    marked: bool = False
    entries: dict[str, _Entry] = field(default_factory=dict)


@dataclass(slots=True)
class _Visit:
    """A look at a directory, and what it brought to light.

    ``changed`` are paths that came, went, or are not what they were; ``below`` directories that are not
    known yet, and whether a link leads there; ``before`` the paths that were known of another directory,
    if it was another one that was there before; ``recent`` files that have changed since then; ``marked``
    says whether the directory bears a mark, and all that is below it is passed over.
    """

    path: str
    folder: _Folder
    changed: list[str] = field(default_factory=list)
    below: list[tuple[str, bool]] = field(default_factory=list)
    before: list[str] | None = None
    recent: list[str] = field(default_factory=list)
    marked: bool = False

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

    def look(self, fd: int, name: str, entry: _Entry, since_ns: int | None = None) -> None:
        """Look what it is like now. Where that cannot be told, it is as it was."""
        try:
            about = os.stat(name, dir_fd=fd)
        except OSError as exc:
            if _is_gone(exc):
                self.note(name, entry, None)
        else:
            if stat.S_ISDIR(about.st_mode):
                self.note(name, entry, _DIRECTORY)
                return
            if since_ns is not None and about.st_ctime_ns >= since_ns:
                self.recent.append(self.path + name)
            self.note(name, entry, (about.st_mtime_ns, about.st_size, about.st_ino))

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
        self.recent: list[str] = []
        self.seen: set[tuple[int, int]] = set()
        self.links: set[str] = set()
        self.marked: list[str] = []


@final
class Scanner:
    def __init__(
        self,
        roots: Iterable[str | os.PathLike[str]],
        ignored: Iterable[tuple[str, bool]] | None = None,
        settle: float = 2.0,
        since: float | None = None,
    ) -> None:
        if not 0 <= settle < 1e9:
            raise ValueError("settle has to be a number of seconds from 0 on")
        if since is not None and not 0 <= since < 1e19:
            raise ValueError("since has to be a time, seconds from 1970 on")
        self._turn = threading.Lock()
        try:
            rules = _IGNORED if ignored is None else ignored
            self._ignored = [(re.compile(pattern), verdict) for pattern, verdict in rules]
        except re.error as exc:
            raise ValueError(f"no regular expression: {exc}") from None
        self._since_ns = None if since is None else int(since * 1e9)
        self._settle_ns = int(settle * 1e9)
        # The path of a directory ends with a slash here: what is put behind it is the path of an entry.
        self._roots = [os.path.join(_checked(root), "") for root in roots]
        self._folders: dict[str, _Folder] = {}
        # Directories that are not walked, but may be next time: what is there is known by another
        # path, or was gone, or could not be listed.
        self._waiting: set[str] = set()
        self._files: dict[str, _Visit] = {}
        # Files that were recent when they were added.
        self._recent: list[str] = []
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
                        visit.look(fd, name, entry, self._since_ns)
                        self._recent += visit.recent
                        visit.changed, visit.recent = [], []

    def scan(self, hints: Iterable[str | os.PathLike[str]] | None = None) -> list[str]:
        looked_for = None if hints is None else [*map(_checked, hints)]
        with self._alone():
            if not self._swept:
                looked_for = None
            sweep = _Sweep()
            known, self._folders = _parted(self._folders, looked_for)
            sweep.seen = {folder.state.identity for folder in self._folders.values() if folder.state}
            self._visit(known, sweep)
            for root in self._roots:
                self._try_again(root, sweep)
            candidates, self._waiting = self._waiting, set()
            while candidates := candidates | sweep.links:
                sweep.links = set()
                path = min(candidates, key=os.fsencode)
                candidates.remove(path)
                self._try_again(path, sweep)
            self._look_at_files(_parted(self._files, looked_for)[0], sweep)
            if not self._swept:
                sweep.changed = sweep.recent + self._recent
                self._swept, self._since_ns, self._recent = True, None, []
            for marked in sweep.marked:
                self._pass_over(marked, sweep)
            return sorted(set(sweep.changed), key=os.fsencode)

    def folders(self) -> list[str]:
        with self._alone():
            return [path[:-1] or path for path in sorted(self._folders, key=os.fsencode)]

    def links(self) -> list[str]:
        with self._alone():
            links = [
                (path, name)
                for path, folder in self._folders.items()
                for name, entry in folder.entries.items()
                if entry.is_link
            ]
            return [path + name for path, name in sorted(links, key=lambda link: [*map(os.fsencode, link)])]

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

    def _pass_over(self, marked: str, sweep: _Sweep) -> None:
        """Forget what is below a directory that bears a mark, but for what is asked for by itself.

        That it comes or goes is no change.
        """
        inner = tuple(root for root in self._roots if root.startswith(marked))

        def stays(path: str) -> bool:
            return not path.startswith(marked) or path.startswith(inner)

        self._folders = {p: folder for p, folder in self._folders.items() if p == marked or stays(p)}
        self._waiting = set(filter(stays, self._waiting))
        sweep.changed = [path for path in sweep.changed if stays(path) and path != marked[:-1]]

    def _settle(self, visit: _Visit, sweep: _Sweep) -> list[tuple[str, bool]]:
        """Keep what a visit has taught; return the directories that came to light."""
        sweep.recent += visit.recent
        if visit.marked:
            sweep.marked.append(visit.path)
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
                    entries = self._list(visit, fd)
                    if visit.marked:
                        folder.entries = {}
                    if folder.state is not None and folder.state.identity != state.identity:
                        visit.before = visit.paths()
                    visit.merge(entries)
                    folder.state = state
                    folder.marked = visit.marked
                    folder.settled = state.changed <= now - self._settle_ns
                for name, entry in folder.entries.items():
                    if not entry.is_directory:
                        visit.look(fd, name, entry, self._since_ns)
        except OSError as exc:
            if _is_gone(exc):
                visit.changed, visit.marked = visit.paths(), folder.marked
                folder.state = None
        return visit

    def _list(self, visit: _Visit, fd: int) -> dict[str, _Entry]:
        """Return the entries by name, not looked at yet; none if the directory bears a mark."""
        entries = {}
        root = max((root for root in self._roots if visit.path.startswith(root)), key=len, default="")
        listed = os.open(".", os.O_RDONLY | os.O_CLOEXEC, dir_fd=fd)
        try:
            with os.scandir(listed) as names:
                for name in names:
                    if name.name in _MARKS and visit.path != root:
                        visit.marked = True
                        return {}
                    is_directory = name.is_dir(follow_symlinks=False)
                    below = visit.path[len(root) :] + name.name + "/" * is_directory
                    if not self._is_ignored(below):
                        entries[name.name] = _Entry(is_directory, name.is_symlink())
        finally:
            os.close(listed)
        return entries

    def _is_ignored(self, path: str) -> bool:
        """Return whether a path is passed over; a directory's ends with a slash."""
        # No part of a name ends it, and bytes that are no text are one character, as elsewhere.
        text = os.fsencode(path).decode(errors="replace").replace("\n", "\ufffd")
        last = next((rule for rule in reversed(self._ignored) if rule[0].search(text)), None)
        return last is not None and last[1]

    def _look_at_files(self, visits: Mapping[str, _Visit], sweep: _Sweep) -> None:
        for visit in visits.values():
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


_V = TypeVar("_V")


def _parted(known: dict[str, _V], hints: list[str] | None) -> tuple[dict[str, _V], dict[str, _V]]:
    """Return the directories that hints point at, and the others.

    A hint points at the directory that its path is in, and at all that are at or below the path.
    """
    if hints is None:
        return known, {}
    bare = [hint.removesuffix("/") for hint in hints]
    own, below = {_split(hint)[0] for hint in bare}, tuple(hint + "/" for hint in bare)
    hinted = {path for path in known if path in own or path.startswith(below)}
    return {path: known[path] for path in hinted}, {
        path: value for path, value in known.items() if path not in hinted
    }


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
