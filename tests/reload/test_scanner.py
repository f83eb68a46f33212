"""The changes that the scanner reports, and the operations that are no changes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.cores import CORES

OLD = 1_000_000_000


def write(path: Path, content: str = "x", mtime_ns: int = OLD) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    os.utime(path, ns=(mtime_ns, mtime_ns))


def replace(path: Path, content: str = "x", mtime_ns: int = OLD) -> None:
    """Put another file in its place, in one step, as editors do."""
    write(path.parent.parent / "aside", content, mtime_ns)
    (path.parent.parent / "aside").replace(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Make a tree with one entry of each kind."""
    root = tmp_path / "root"
    for name in ("a.py", "b.py", "below/c.py", "below/deep/d.py", "empty/e.py"):
        write(root / name)
    (root / "empty" / "e.py").unlink()
    write(tmp_path / "outside" / "o.py")
    (root / "file-link").symlink_to(tmp_path / "outside" / "o.py")
    (root / "folder-link").symlink_to(tmp_path / "outside")
    (root / "nowhere").symlink_to(tmp_path / "missing")
    (root / "circle").symlink_to("circle")
    (root / "below" / "up").symlink_to("..")
    os.mkfifo(root / "pipe")
    (root / "__pycache__").mkdir()
    write(root / "__pycache__" / "a.pyc")
    return root


Change = Callable[[Path], Any]
CHANGES: dict[str, tuple[Change, set[str]]] = {
    "nothing": (lambda root: None, set()),
    "mtime forward": (lambda root: os.utime(root / "a.py", ns=(OLD, OLD + 1)), {"a.py"}),
    "mtime back": (lambda root: os.utime(root / "a.py", ns=(OLD, OLD - 1)), {"a.py"}),
    "mtime long ago": (lambda root: os.utime(root / "a.py", (-(10**9), -(10**9))), {"a.py"}),
    "size": (lambda root: write(root / "a.py", "xx"), {"a.py"}),
    "inode": (lambda root: replace(root / "a.py"), {"a.py"}),
    "older file": (lambda root: replace(root / "below/c.py", "x", OLD - 10**9), {"below/c.py"}),
    "content alone": (lambda root: write(root / "a.py", "y"), set()),
    "atime": (lambda root: os.utime(root / "a.py", ns=(OLD + 7, OLD)), set()),
    "mode": (lambda root: (root / "a.py").chmod(0o600), set()),
    "read": (lambda root: (root / "a.py").read_text(), set()),
    "new file": (lambda root: write(root / "n.py"), {"n.py"}),
    "new file deep down": (lambda root: write(root / "below/deep/n.py"), {"below/deep/n.py"}),
    "new empty file": (lambda root: write(root / "n.py", ""), {"n.py"}),
    "new directory": (lambda root: (root / "n").mkdir(), {"n"}),
    "new tree": (lambda root: write(root / "n/m/n.py"), {"n", "n/m", "n/m/n.py"}),
    "deleted": (lambda root: (root / "a.py").unlink(), {"a.py"}),
    "deleted tree": (
        lambda root: shutil.rmtree(root / "below"),
        {"below", "below/c.py", "below/up", "below/deep", "below/deep/d.py"},
    ),
    "deleted empty directory": (lambda root: (root / "empty").rmdir(), {"empty"}),
    "renamed": (lambda root: (root / "a.py").rename(root / "z.py"), {"a.py", "z.py"}),
    "renamed over": (lambda root: (root / "a.py").rename(root / "b.py"), {"a.py", "b.py"}),
    "moved": (lambda root: (root / "a.py").rename(root / "empty/a.py"), {"a.py", "empty/a.py"}),
    "renamed directory": (
        lambda root: (root / "below/deep").rename(root / "deep"),
        {"below/deep", "below/deep/d.py", "deep", "deep/d.py"},
    ),
    "swapped directories": (
        lambda root: (
            (root / "empty").rename(root / "aside"),
            (root / "below").rename(root / "empty"),
            (root / "aside").rename(root / "below"),
        ),
        {"below/c.py", "below/deep", "below/deep/d.py", "below/up"}
        | {"empty/c.py", "empty/deep", "empty/deep/d.py", "empty/up"},
    ),
    "file to directory": (
        lambda root: ((root / "a.py").unlink(), write(root / "a.py/n.py")),
        {"a.py", "a.py/n.py"},
    ),
    "directory to file": (
        lambda root: (shutil.rmtree(root / "below/deep"), write(root / "below/deep")),
        {"below/deep", "below/deep/d.py"},
    ),
    "link retargeted": (
        lambda root: ((root / "file-link").unlink(), (root / "file-link").symlink_to(root / "a.py")),
        {"file-link"},
    ),
    "link's target": (
        lambda root: write(root.parent / "outside/o.py", "xx"),
        {"file-link", "folder-link/o.py"},
    ),
    "behind a link": (lambda root: write(root.parent / "outside/n.py"), {"folder-link/n.py"}),
    "directory link retargeted": (
        lambda root: (
            write(root.parent / "elsewhere/o.py"),
            (root / "folder-link").unlink(),
            (root / "folder-link").symlink_to(root.parent / "elsewhere"),
        ),
        {"folder-link/o.py"},
    ),
    "directory link to a circle": (
        lambda root: ((root / "folder-link").unlink(), (root / "folder-link").symlink_to(root)),
        {"folder-link/o.py"},
    ),
    "link to nowhere comes true": (lambda root: write(root.parent / "missing"), {"nowhere"}),
    "link to nowhere comes true as a directory": (
        lambda root: write(root.parent / "missing/n.py"),
        {"nowhere", "nowhere/n.py"},
    ),
    "link to nowhere goes": (lambda root: (root / "nowhere").unlink(), set()),
    "new link to nowhere": (lambda root: (root / "n").symlink_to("missing"), set()),
    "new circle": (lambda root: (root / "below/deep/n").symlink_to("../.."), {"below/deep/n"}),
    "ignored": (lambda root: write(root / "__pycache__/n.pyc"), set()),
    "ignored anew": (lambda root: write(root / "below/__pycache__/n.pyc"), set()),
    "ignored file": (lambda root: write(root / "below/__pycache__"), set()),
    "pipe": (lambda root: os.mkfifo(root / "n"), {"n"}),
    "pipe instead of a file": (
        lambda root: ((root / "a.py").unlink(), os.mkfifo(root / "a.py")),
        {"a.py"},
    ),
    "pipe goes": (lambda root: (root / "pipe").unlink(), {"pipe"}),
    "pipe is written to": (lambda root: os.utime(root / "pipe", ns=(OLD, OLD)), set()),
    "what the kernel shows": (lambda root: (root / "n").symlink_to("/proc/self"), {"n"}),
    "root gone": (
        shutil.rmtree,
        {"a.py", "b.py", "below", "below/c.py", "below/deep", "below/deep/d.py", "below/up", "empty"}
        | {"file-link", "folder-link", "folder-link/o.py", "pipe"},
    ),
    "names": (
        lambda root: [write(root / name) for name in ("a:b,c%", " ", "new\nline", "\udcff\udc80", "ü")],
        {"a:b,c%", " ", "new\nline", "\udcff\udc80", "ü"},
    ),
}


@pytest.mark.parametrize("settle", [0.0, 2.0])
@pytest.mark.parametrize("kind", CHANGES)
def test_each_kind_of_change_is_found_once(core: ModuleType, root: Path, kind: str, settle: float) -> None:
    change, expected = CHANGES[kind]
    scanner = core.Scanner([root], settle=settle)
    assert scanner.scan() == []
    later(root)
    assert scanner.scan() == []
    later(root)
    change(root)
    found = scanner.scan()
    assert {os.path.relpath(path, root) for path in found} == expected
    assert found == sorted(set(found), key=os.fsencode)
    assert scanner.scan() == []


def later(root: Path) -> None:
    """Wait until the clock of the file system has moved on: later changes have another time."""
    probe = root.parent / "probe"
    probe.touch()
    began = probe.stat().st_ctime_ns
    while probe.stat().st_ctime_ns == began:
        probe.chmod(0o600)


def test_a_root_that_is_created_again(core: ModuleType, root: Path) -> None:
    scanner = core.Scanner([root / "below" / "deep"])
    scanner.scan()
    shutil.rmtree(root)
    file = root / "below" / "deep" / "d.py"
    assert scanner.scan() == [str(file)]
    assert scanner.scan() == []
    write(file)
    assert scanner.scan() == [str(file)]
    assert scanner.scan() == []


def test_a_root_that_does_not_exist_yet(core: ModuleType, tmp_path: Path) -> None:
    scanner = core.Scanner([tmp_path / "late"])
    assert scanner.scan() == []
    write(tmp_path / "late" / "a.py")
    assert scanner.scan() == [str(tmp_path / "late" / "a.py")]


def test_nested_roots_report_a_change_once(core: ModuleType, root: Path) -> None:
    scanner = core.Scanner([root / "below", root, str(root) + "/", root / "below" / "deep"])
    scanner.scan()
    write(root / "below" / "deep" / "d.py", "xx")
    assert scanner.scan() == [str(root / "below" / "deep" / "d.py")]


def test_a_directory_keeps_its_second_path_after_the_first_is_removed(core: ModuleType, root: Path) -> None:
    """A directory with two paths is then known by the other one."""
    (root / "zz-link").symlink_to(root / "below" / "deep")
    scanner = core.Scanner([root / "folder-link", root])
    scanner.scan()
    (root / "below" / "deep").rename(root.parent / "moved")
    (root / "zz-link").unlink()
    (root / "zz-link").symlink_to(root.parent / "moved")
    assert {os.path.relpath(path, root) for path in scanner.scan()} == {
        "below/deep",
        "below/deep/d.py",
        "zz-link/d.py",
    }
    write(root.parent / "moved" / "d.py", "xx")
    assert scanner.scan() == [str(root / "zz-link" / "d.py")]


def test_a_directory_that_is_created_again(core: ModuleType, root: Path) -> None:
    scanner = core.Scanner([root])
    scanner.scan()
    for content in ("xx", "xxx", "xxxx"):
        shutil.rmtree(root / "below")
        write(root / "below" / "c.py", content)
        assert str(root / "below" / "c.py") in scanner.scan()
    write(root / "below" / "c.py", "xxxxx")
    assert scanner.scan() == [str(root / "below" / "c.py")]


def test_relative_roots_report_relative_paths(
    core: ModuleType, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    for given, wanted in (("below", "below/c.py"), ("./below/", "./below/c.py"), ("", "below/c.py")):
        scanner = core.Scanner([given])
        scanner.scan()
        write(root / "below" / "c.py", "x" * len(wanted))
        assert scanner.scan() == [wanted]
        write(root / "below" / "c.py")


def test_ignored_paths_are_not_reported(core: ModuleType, root: Path) -> None:
    """The last rule that matches decides; a directory's path ends with a slash."""
    rules = [("^below/$", True), (r"(^|/)a\.", True), ("^empty/a", False), ("^b.py/", True), ("^new$", True)]
    scanner = core.Scanner([root], ignored=rules)
    scanner.scan()
    names = ("below/c.py", "below/new/n.py", "a.py", "b.py", "empty/a.py", "__pycache__/a.pyc", "new\n")
    for name in names:
        write(root / name, "xx")
    wanted = ["b.py", "empty/a.py", "new\n"]
    assert [os.path.relpath(path, root) for path in scanner.scan()] == wanted
    assert str(root / "below") not in scanner.folders()


def test_rules_apply_below_the_innermost_root(core: ModuleType, root: Path) -> None:
    """A directory that is named as a root is watched, even if a rule for its parent ignores it."""
    scanner = core.Scanner([root, root / "below"], ignored=[("^below/", True), ("^deep/", True)])
    scanner.scan()
    for name in ("below/c.py", "below/deep/d.py", "deep/n.py", "empty/deep/n.py"):
        write(root / name, "xx")
    found = {os.path.relpath(path, root) for path in scanner.scan()}
    assert found == {"below/c.py", "empty/deep", "empty/deep/n.py"}


@pytest.mark.parametrize("mark", ["pyvenv.cfg", "CACHEDIR.TAG"])
def test_marked_directories_are_ignored(core: ModuleType, root: Path, mark: str) -> None:
    write(root / "env" / mark)
    write(root / mark)
    scanner = core.Scanner([root, root / "below" / "deep"])
    scanner.scan()
    write(root / "env" / "lib" / "a.py")
    write(root / "a.py", "xx")
    assert scanner.scan() == [str(root / "a.py")]
    write(root / "below" / mark)
    write(root / "below" / "c.py", "xx")
    write(root / "below" / "deep" / "d.py", "xx")
    write(root / "late" / mark)
    assert scanner.scan() == [str(root / "below" / "deep" / "d.py")]
    (root / "below" / mark).unlink()
    assert str(root / "below" / "c.py") in scanner.scan()
    shutil.rmtree(root / "env")
    (root / "late").rename(root / "later")
    assert scanner.scan() == []


def test_a_watched_file_in_a_marked_directory_is_reported(core: ModuleType, root: Path) -> None:
    """For example, a module that is imported from a virtual environment."""
    write(root / "env" / "pyvenv.cfg")
    write(root / "env" / "a.py")
    scanner = core.Scanner([root])
    scanner.watch([root / "env" / "a.py"])
    scanner.scan()
    for content in ("xx", "xxx"):
        write(root / "env" / "a.py", content)
        write(root / "env" / "b.py", content)
        assert scanner.scan() == [str(root / "env" / "a.py")]


@pytest.mark.parametrize("target", ["/proc", "/proc/self", "/proc/self/fd", "/proc/1", "/sys"])
def test_proc_and_sys_are_not_scanned(core: ModuleType, root: Path, target: str) -> None:
    """It is as large as the machine: in /proc/self there is a link to the root of the file system."""
    (root / "kernel").symlink_to(target)
    scanner = core.Scanner([root], since=0.0)
    found = scanner.scan()
    assert not any(path.startswith(str(root / "kernel")) for path in [*found, *scanner.folders()])
    assert str(root / "kernel") in scanner.links()
    assert scanner.scan() == []


def test_the_first_scan_reports_recent_changes(core: ModuleType, root: Path) -> None:
    write(root.parent / "outside" / "other.py")
    (root / "below" / "up").unlink()
    later(root)
    since = (root.parent / "probe").stat().st_ctime
    later(root)
    write(root / "below" / "deep" / "d.py")
    write(root.parent / "outside" / "o.py")
    scanner = core.Scanner([root / "below"], since=since)
    scanner.watch([root.parent / "outside" / name for name in ("o.py", "other.py", "none.py")])
    found = {os.path.relpath(path, root.parent) for path in scanner.scan()}
    assert found == {"root/below/deep/d.py", "outside/o.py"}
    assert scanner.scan() == []


class TestHints:
    @pytest.fixture
    def native(self) -> ModuleType:
        """The native core obeys hints. To the pure one they only mean that it is time to scan."""
        if "native" not in CORES:
            pytest.skip("the pure core alone is asked for")
        return import_module("worker._native")

    @pytest.mark.parametrize(
        ("change", "hint", "expected"),
        [
            ("a.py", "a.py", {"a.py"}),
            ("a.py", "b.py", {"a.py"}),
            ("a.py", "below/c.py", set()),
            ("below/deep/d.py", "below", {"below/deep/d.py"}),
            ("below/deep/d.py", "below/", {"below/deep/d.py"}),
            ("below/deep/d.py", "below/c.py", set()),
            ("n/m/n.py", "n", {"n", "n/m", "n/m/n.py"}),
            ("folder-link/n.py", "folder-link/x", {"folder-link/n.py"}),
            ("below/c.py", "belo", set()),
            ("below/c.py", "elsewhere/c.py", set()),
        ],
    )
    def test_limit_the_scan_to_their_paths(
        self, native: ModuleType, root: Path, change: str, hint: str, expected: set[str]
    ) -> None:
        scanner = native.Scanner([root])
        scanner.scan()
        write(root / change, "xx")
        text = f"{root}/{hint}"
        assert {os.path.relpath(path, root) for path in scanner.scan([text])} == expected
        scanner.scan()
        assert scanner.scan([text]) == []

    def test_a_hinted_change_is_reported_once(self, core: ModuleType, root: Path) -> None:
        scanner = core.Scanner([root])
        scanner.watch([root / "below" / "c.py"])
        scanner.scan([])
        write(root / "below" / "deep" / "d.py", "xx")
        write(root / "below" / "c.py", "xx")
        wanted = [str(root / "below" / name) for name in ("c.py", "deep/d.py")]
        assert scanner.scan([root / "below"]) == wanted
        assert scanner.scan([root / "below"]) == scanner.scan() == []

    def test_changes_without_a_hint_are_found_by_the_next_full_scan(
        self, native: ModuleType, root: Path
    ) -> None:
        scanner = native.Scanner([root])
        scanner.watch([root.parent / "outside" / "o.py"])
        scanner.scan([])
        for path in (root / "a.py", root.parent / "outside" / "o.py"):
            write(path, "xx")
        assert scanner.scan([]) == []
        assert scanner.scan([root / "b.py"]) == [str(root / "a.py"), str(root / "file-link")]
        outside = str(root.parent / "outside" / "o.py")
        assert scanner.scan() == [outside, str(root / "folder-link" / "o.py")]

    def test_folders_and_links(self, core: ModuleType, root: Path) -> None:
        scanner = core.Scanner([str(root) + "/"])
        assert scanner.folders() == scanner.links() == []
        scanner.scan()
        folders = {os.path.relpath(path, root) for path in scanner.folders()}
        assert folders == {".", "below", "below/deep", "empty", "folder-link"}
        links = {os.path.relpath(path, root) for path in scanner.links()}
        assert links == {"file-link", "folder-link", "nowhere", "circle", "below/up"}


def test_without_a_root_no_change_is_found(core: ModuleType) -> None:
    assert core.Scanner([]).scan() == []


class TestSingleFiles:
    def test_each_kind_of_change_is_found(self, core: ModuleType, root: Path) -> None:
        scanner = core.Scanner([])
        changed, gone, late, same = (root / name for name in ("a.py", "b.py", "below/n.py", "below/c.py"))
        scanner.watch([str(path) for path in (changed, gone, late, same)])
        assert scanner.scan() == []
        os.utime(changed, ns=(OLD, OLD + 1))
        gone.unlink()
        write(late)
        assert scanner.scan() == [str(path) for path in (changed, gone, late)]
        assert scanner.scan() == []
        shutil.rmtree(root / "below")
        assert scanner.scan() == [str(same), str(late)]
        write(gone)
        assert scanner.scan() == [str(gone)]

    def test_a_watch_is_no_change(self, core: ModuleType, root: Path) -> None:
        scanner = core.Scanner([])
        scanner.watch([root / "a.py"])
        scanner.scan()
        scanner.watch([root / "a.py", root / "b.py"])
        assert scanner.scan() == []

    def test_a_repeated_watch_hides_no_change(self, core: ModuleType, root: Path) -> None:
        scanner = core.Scanner([])
        scanner.watch(map(str, [root / "a.py"]))
        scanner.scan()
        write(root / "a.py", "xx")
        scanner.watch(map(str, [root / "a.py"]))
        assert scanner.scan() == [str(root / "a.py")]

    def test_a_file_in_a_root_is_reported_once(self, core: ModuleType, root: Path) -> None:
        scanner = core.Scanner([root])
        scanner.watch([str(root / "a.py")])
        scanner.scan()
        write(root / "a.py", "xx")
        assert scanner.scan() == [str(root / "a.py")]

    def test_in_the_current_directory(
        self, core: ModuleType, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(root)
        scanner = core.Scanner([])
        scanner.watch(["a.py"])
        scanner.scan()
        write(root / "a.py", "xx")
        assert scanner.scan() == ["a.py"]
