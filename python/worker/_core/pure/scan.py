"""Scans files for changes, in plain Python: every scan covers everything.

The stub of the native core documents the public names; the comments in this file give reasons.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import threading
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any, Final, final

__all__ = ["Scanner"]

_IN_USE = "the scanner is in use: it is for one thread at a time"
# The default rules.
_IGNORED = (("(^|/)__pycache__/?$", True),)
# A file of this name marks its directory as a virtual environment or a cache.
_MARKS = frozenset((b"pyvenv.cfg", b"CACHEDIR.TAG"))
# File systems of the kernel. They hold no files of users, and grow with the machine.
_KERNEL = ("/proc", "/sys")

# The state of a file: mtime in ns, size, inode. Anything else counts only by its existence; the entries of a
# directory have stamps of their own.
_Stamp = tuple[int, ...]
_DIRECTORY: Final[_Stamp] = ()
_OTHER: Final[_Stamp] = (0,)


@dataclass(slots=True)
class _Folder:
    """A directory: its identity, and the stamps of its entries, by name.

    ``links`` are the names of its symbolic links. ``marked`` tells whether it has a mark, so that everything
    below it is ignored.
    """

    identity: tuple[int, int]
    stamps: dict[bytes, _Stamp] = field(default_factory=dict)
    links: set[bytes] = field(default_factory=set)
    marked: bool = False


@final
class Scanner:
    def __init__(
        self,
        roots: Iterable[str | os.PathLike[str]],
        ignored: Iterable[tuple[str, bool]] | None = None,
        settle: float = 2.0,
        since: float | None = None,
    ) -> None:
        # Every scan covers everything, so nothing needs to settle.
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
        self._kernel = _kernel_devices()
        # Paths of directories end with a slash here, so that a name appended to one is the path of an entry.
        self._roots = [os.path.join(_checked(root), b"") for root in roots]
        self._folders: dict[bytes, _Folder] = {}
        # Directories that are not walked now, but may be later: they are known by another path, did not
        # exist, or could not be listed.
        self._waiting: set[bytes] = set()
        self._files: dict[bytes, _Stamp | None] = {}
        # The directories that the current walk has seen, and those with a mark.
        self._seen: set[tuple[int, int]] = set()
        self._marked: set[bytes] = set()
        # Files that were recent at the first scan.
        self._recent: set[bytes] = set()
        self._has_scanned = False

    def watch(self, files: Iterable[str | os.PathLike[str]]) -> None:
        paths = [*map(_checked, files)]
        with self._alone():
            for path in paths:
                if path not in self._files:
                    self._files[path] = self._stamp(path, None)

    def scan(self, paths: Iterable[str | os.PathLike[str]] | None = None) -> list[str]:
        for path in paths or ():
            _checked(path)
        with self._alone():
            watched, self._recent = self._recent, set()
            before = self._table()
            self._walk()
            now = self._table()
            differing = {path for path in before.keys() | now.keys() if before.get(path) != now.get(path)}
            # The creation or removal of a marked directory is no change, either.
            changed = differing if self._has_scanned else self._recent
            changed = {path for path in changed if self._counts(path) and path + b"/" not in self._marked}
            files = self._changed_files()
            changed |= files if self._has_scanned else watched
            self._has_scanned, self._since_ns, self._recent = True, None, set()
            return [*map(os.fsdecode, sorted(changed))]

    def folders(self) -> list[str]:
        with self._alone():
            return [os.fsdecode(path[:-1] or path) for path in sorted(self._folders)]

    def links(self) -> list[str]:
        with self._alone():
            folders = sorted(self._folders.items())
            return [os.fsdecode(path + name) for path, folder in folders for name in sorted(folder.links)]

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

    def _table(self) -> dict[bytes, _Stamp]:
        """Return the stamps of all entries of the directories, by path."""
        folders = self._folders.items()
        return {path + name: stamp for path, folder in folders for name, stamp in folder.stamps.items()}

    def _changed_files(self) -> set[bytes]:
        """Check the single files; return those that have changed."""
        known = self._files.copy()
        self._files = {path: self._stamp(path, stamp) for path, stamp in known.items()}
        return {path for path, stamp in known.items() if self._files[path] != stamp}

    def _walk(self) -> None:
        """Visit each directory once, preferably by its known path, otherwise by one without links."""
        known, self._folders, self._seen, self._marked = self._folders, {}, set(), set()
        later = self._visit(known, known)
        for root in self._roots:
            later += self._try_again(root)
        later, self._waiting = sorted({*later, *self._waiting}), set()
        while later:
            for path in self._try_again(heappop(later)):
                heappush(later, path)
        self._folders = {path: folder for path, folder in self._folders.items() if self._counts(path)}
        self._waiting = set(filter(self._counts, self._waiting))

    def _visit(self, paths: Iterable[bytes], known: Mapping[bytes, _Folder]) -> list[bytes]:
        """Visit directories and the new ones below them; return the new directories that are links."""
        links: list[bytes] = []
        while paths:
            visits = [(path, known.get(path), self._read(path, known.get(path))) for path in sorted(paths)]
            # Of two paths to one directory, the path that had it before comes first and keeps it.
            visits.sort(key=lambda visit: _is_another(*visit[1:]))
            paths = []
            for path, before, folder in visits:
                last = folder or before
                if last is not None and last.marked:
                    self._marked.add(path)
                if folder is None or folder.identity in self._seen:
                    self._waiting.add(path)
                    continue
                self._seen.add(folder.identity)
                self._folders[path] = folder
                for name, stamp in folder.stamps.items():
                    if stamp == _DIRECTORY and (before is None or before.stamps.get(name) != _DIRECTORY):
                        (links if name in folder.links else paths).append(path + name + b"/")
        return links

    def _try_again(self, path: bytes) -> list[bytes]:
        """Visit a directory that could not be walked before, or was reached by a link."""
        if path in self._folders:
            return []
        links = self._visit([path], {})
        parent, name = os.path.split(path[:-1])
        folder = self._folders.get(os.path.join(parent, b""))
        if folder is None or folder.stamps.get(name) != _DIRECTORY:
            self._waiting.discard(path)
        return links

    def _read(self, path: bytes, known: _Folder | None) -> _Folder | None:
        """Return a directory as it is now; as it was if that is unknown; ``None`` if there is none."""
        try:
            about = os.stat(path or b".")
            folder = _Folder((about.st_dev, about.st_ino))
            if about.st_dev in self._kernel or (known is None and folder.identity in self._seen):
                return None
            root = path[: _longest(self._roots, path)]
            with os.scandir(path or b".") as entries:
                for entry in entries:
                    if entry.name in _MARKS and path != root:
                        return _Folder(folder.identity, marked=True)
                    with suppress(OSError):
                        is_directory = entry.is_dir(follow_symlinks=False)
                        if not self._is_ignored(path[len(root) :] + entry.name + b"/" * is_directory):
                            self._note(folder, path, entry, is_directory, known)
            return folder
        except OSError as exc:
            return None if _is_gone(exc) else known

    def _note(
        self,
        folder: _Folder,
        path: bytes,
        entry: os.DirEntry[bytes],
        is_directory: bool,
        known: _Folder | None,
    ) -> None:
        if entry.is_symlink():
            folder.links.add(entry.name)
        before = known.stamps.get(entry.name) if known is not None else None
        stamp = _DIRECTORY if is_directory else self._stamp(path + entry.name, before)
        if stamp is not None:
            folder.stamps[entry.name] = stamp

    def _stamp(self, path: bytes, known: _Stamp | None) -> _Stamp | None:
        """Return the stamp of a file now; the former one if that is unknown; ``None`` if there is no file."""
        try:
            about = os.stat(path)
        except OSError as exc:
            return None if _is_gone(exc) else known
        if stat.S_ISDIR(about.st_mode):
            return _DIRECTORY
        if not stat.S_ISREG(about.st_mode) or about.st_dev in self._kernel:
            return _OTHER
        if self._since_ns is not None and about.st_ctime_ns >= self._since_ns:
            self._recent.add(path)
        return about.st_mtime_ns, about.st_size, about.st_ino

    def _is_ignored(self, path: bytes) -> bool:
        """Return whether the rules ignore a path; that of a directory ends with a slash."""
        # A newline must not end a match. Bytes that are not text are one character, as in the native core.
        text = path.decode(errors="replace").replace("\n", "\ufffd")
        last = next((rule for rule in reversed(self._ignored) if rule[0].search(text)), None)
        return last is not None and last[1]

    def _counts(self, path: bytes) -> bool:
        """Return whether a path is not below a marked directory; a root inside such a directory counts."""
        return _longest(self._roots, path) >= _longest(self._marked, path[:-1])


def _longest(folders: Iterable[bytes], path: bytes) -> int:
    """Return the length of the innermost of these directories above a path; 0 if there is none."""
    return max((len(folder) for folder in folders if path.startswith(folder)), default=0)


def _is_another(one: _Folder | None, other: _Folder | None) -> bool:
    return one is not None and other is not None and one.identity != other.identity


def _kernel_devices() -> set[int]:
    """Return the devices of the file systems of the kernel."""
    devices = set()
    for path in _KERNEL:
        with suppress(OSError):
            devices.add(os.stat(path).st_dev)
    # Without such file systems, the paths are ordinary directories.
    return devices - {os.stat("/").st_dev}


def _is_gone(error: OSError) -> bool:
    """Return whether an error means that the path does not exist, and not that it is inaccessible."""
    return error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def _checked(path: str | os.PathLike[str]) -> bytes:
    path = os.fspath(path)
    if not isinstance(path, str):
        raise TypeError(f"no path: {path!r}")
    encoded = os.fsencode(path)
    if b"\0" in encoded:
        raise ValueError("embedded null byte")
    return encoded


def _file_of(module: object) -> str | None:
    try:
        path = module.__file__  # type: ignore[attr-defined]
    except Exception:  # an object in place of a module may raise any error
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
