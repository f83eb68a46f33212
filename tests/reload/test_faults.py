"""Any system call of a scan may fail, at any time: the reloader goes on, and reports each change."""

from __future__ import annotations

import errno
import inspect
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.cores import CORES
from support.watching import Watching, make_site

from worker import reloader
from worker._core import Scanner
from worker._reload.file_events import FileEvents, resolved
from worker._reload.names import shown
from worker._reload.outputs import Outputs

from .test_scanner import write

pytestmark = pytest.mark.slow

ERRORS = [
    *(
        errno.ENOENT,
        errno.EACCES,
        errno.EPERM,
        errno.ELOOP,
        errno.ENOTDIR,
        errno.EIO,
        errno.EMFILE,
        errno.ENFILE,
    ),
    *(errno.ENOSPC, errno.ENAMETOOLONG, errno.EINVAL, errno.ENOMEM, errno.ESTALE, errno.ESRCH, errno.ENXIO),
]
CALLS = ("stat", "lstat", "readlink", "scandir", "listdir", "getcwd", "fstat")


class Faults:
    """Make system calls of this process fail: the one with this number, or all from it on."""

    def __init__(self, patch: pytest.MonkeyPatch, error: int) -> None:
        self.error = error
        self.calls = 0
        self.first = self.last = 0
        for name in CALLS:
            patch.setattr(os, name, self._failing(getattr(os, name)))

    def _failing(self, call: Any) -> Any:
        def failing(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.first <= self.calls < self.last:
                raise OSError(self.error, os.strerror(self.error), *args[:1])
            return call(*args, **kwargs)

        return failing

    @contextmanager
    def at(self, first: int, count: int = 1) -> Iterator[None]:
        """Make the calls of these numbers, counted from now on, fail while the body runs."""
        self.calls, self.first, self.last = 0, first, first + count
        try:
            yield
        finally:
            self.first = self.last = 0


@pytest.fixture(params=ERRORS, ids=errno.errorcode.get)
def faults(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Faults:
    return Faults(monkeypatch, request.param)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Make a tree with files, links of each kind, and entries that are neither file nor directory."""
    root = tmp_path / "root"
    for name in ("a.py", "below/b.py", "below/deep/c.py"):
        write(root / name)
    write(tmp_path / "outside" / "o.py")
    os.mkfifo(root / "pipe")
    for name, target in (
        *(
            ("file", tmp_path / "outside" / "o.py"),
            ("folder", tmp_path / "outside"),
            ("nowhere", "gone/gone"),
        ),
        *(("self", "/proc/self"), ("fd", "/proc/self/fd"), ("circle", "circle"), ("null", "/dev/null")),
        *(("secret", "/proc/1/exe"), ("long", "x" * 300), ("file/", "a.py/b")),
    ):
        (root / f"link-to-{name.strip('/')}").unlink(missing_ok=True)
        (root / f"link-to-{name.strip('/')}").symlink_to(target)
    return root


def test_failing_calls_in_a_scan_hide_no_change(root: Path, faults: Faults) -> None:
    """A scan without faults in between finds all changes made meanwhile, once."""
    from worker._core import pure

    scanner = pure.Scanner([root])
    scanner.watch([root / "a.py", root / "below" / "b.py"])
    scanner.scan()
    faults.calls = 0
    scanner.scan()
    for number in range(1, faults.calls + 2):
        for count in (1, 1_000_000):
            with faults.at(number, count):
                found = {*scanner.scan()}
                (root / "a.py").write_text("x" * (number + 1 if count == 1 else 0))
                found |= {*scanner.scan()}
            assert str(root / "a.py") in found | {*scanner.scan()}
            assert scanner.scan() == []


def test_failing_calls_in_the_watch_are_retried(root: Path, faults: Faults) -> None:
    """The reloader watches all directories, as soon as it can see them."""
    scanner = Scanner([root])
    scanner.scan()
    folders, links = scanner.folders(), scanner.links()
    files = [str(root / "a.py"), str(root / "link-to-file")]
    watch = FileEvents([str(root), "relative"], 0.001, lambda: False)
    faults.calls = 0
    places, _ = watch._needed(folders, links, files)
    calls = faults.calls
    assert calls > 20
    for number in range(1, calls + 1):
        for count in (1, 1_000_000):
            with faults.at(number, count):
                watch._needed(folders, links, files)
            assert watch._needed(folders, links, files) == (places, "")
    with faults.at(1, 1_000_000):
        watch.cover(scanner, files)
    watch._basis = ()
    watch.cover(scanner, files)
    (root / "a.py").write_text("another")
    found = watch.wait(10)
    assert found is None or str(root / "a.py") in found
    watch.close()


def test_failing_calls_do_not_prevent_a_report(root: Path, faults: Faults) -> None:
    paths = [*map(str, root.iterdir()), str(root / "gone" / "gone")]
    with faults.at(1, 1_000_000):
        assert [resolved(path) for path in paths]
        assert reloader._last(paths) == 0.0
        outputs = Outputs({"X": {"pid": os.getppid()}}, [str(root)], ())
        assert outputs.among({*paths}, ()) == set()
        assert shown(paths)
        assert [*reloader._below(root)] == []
        assert reloader.shared_directories()


def test_an_unreadable_link_is_kept_in_a_resolved_path(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readlink = os.readlink

    def secret(path: str, **options: Any) -> str:
        if path.endswith("link-to-file"):
            raise PermissionError(errno.EACCES, "secret", path)
        return readlink(path, **options)

    (root.parent / "link").symlink_to(root)
    monkeypatch.setattr(os, "readlink", secret)
    assert resolved(f"{root.parent}/link/link-to-file/a//b/") == f"{root}/link-to-file/a/b"
    assert resolved("/") == "/"


def test_a_deleted_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert resolved("a/b") == "a/b"
    watch = FileEvents(["a"], 0.05, lambda: True)
    watch.cover(Scanner(["a"]), ["b"])
    watch.close()


@pytest.mark.parametrize("core", CORES)
def test_a_tree_with_entries_of_every_type(root: Path, core: str) -> None:
    """The reloader survives any entry, and any change of it, and notices an edit all the while."""
    home = root.parent
    make_site(home)
    # No system call would follow it to its end.
    chain = home / "chain"
    chain.mkdir()
    for number in range(1100):
        (chain / str(number)).symlink_to(str(number + 1))
    (root / "link-to-chain").symlink_to(chain / "0")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(root / "socket"))
        watching = Watching(core, home, root)
        try:
            for edits, folder in enumerate(("", "below", "below/deep"), 1):
                write(root / "a.py", "x" * edits, edits)
                known = len(watching.reloads)
                watching.until(lambda: str(root / "a.py") in set().union(*watching.reloads[known:]))  # noqa: B023
                if edits == 1:
                    for path in [*root.glob("link-*"), root / "pipe", root / "socket"]:
                        path.unlink()
                else:
                    (root / folder).chmod(0)
        finally:
            assert watching.close() == 0
        assert "Traceback" not in watching.log.read_text()


def test_trees_deeper_than_the_recursion_limit(
    core: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path may have more parts than Python would follow by recursion."""
    path = tmp_path.joinpath(*["d"] * 400)
    path.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    limit = sys.getrecursionlimit()
    scanner = core.Scanner([tmp_path])
    try:
        sys.setrecursionlimit(len(inspect.stack(0)) + 150)
        scanner.scan()
        assert len(scanner.folders()) == 401
        assert len([*reloader._below(tmp_path)]) == 400
        for _ in range(400):
            path.rmdir()
            path = path.parent
        found = scanner.scan()
        assert len(found) == 400
        assert reloader._last(found) == os.stat(tmp_path).st_ctime
    finally:
        sys.setrecursionlimit(limit)
