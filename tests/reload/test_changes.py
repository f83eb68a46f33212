"""A real reloader reports changes of each kind only: on both cores, with and without events."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.cores import CORES
from support.watching import Watching, make_site

from .test_scanner import OLD, write

pytestmark = pytest.mark.slow

# Patterns that the settings of these reloaders add.
PATTERNS = "*.css,/ignored: pattern/build,!kept.log"


def replace(path: Path, mtime: int = OLD) -> None:
    """Put another file in its place, in one step, as editors do."""
    aside = path.parent / ".a.py.swp"
    write(aside, "xy", mtime)
    aside.replace(path)


def relink(link: Path, target: str) -> None:
    link.unlink()
    link.symlink_to(target)


def new_environment(root: Path) -> None:
    write(root / "env" / "pyvenv.cfg")
    write(root / "env" / "lib" / "n.py")
    shutil.rmtree(root / "env of its own")


def build(root: Path) -> None:
    """Make the files with which each case begins."""
    for name in ("a.py", "b.py", "below/c.py", "below/deep/d.py", "node_modules/m/m.js", ".git/HEAD"):
        write(root / name)
    write(root / ".venv" / "pyvenv.cfg")
    write(root / "env of its own" / "pyvenv.cfg")
    write(root / "env of its own" / "lib" / "e.py")
    write(root / "__pycache__" / "a.pyc")
    write(outside(root) / "o.py")
    (root / "link").symlink_to(outside(root) / "o.py")
    (root / "linked").symlink_to(outside(root))
    (root / "nowhere").symlink_to(late(root))


def outside(root: Path) -> Path:
    return root.parent.parent / "outside" / root.name


def late(root: Path) -> Path:
    """Return a path that does not exist yet, and that a link points to."""
    return outside(root).parent / f"late {root.name}"


ODD = ("a:b,c%", " ", "new\nline\r", "\udcff\udc80", "100%25", "ü")
Change = Callable[[Path], Any]
CHANGES: dict[str, tuple[Change, set[str]]] = {
    "edited": (lambda root: write(root / "a.py", "xx", OLD + 1), {"a.py"}),
    "edited deep down": (lambda root: write(root / "below/deep/d.py", "xx", OLD + 1), {"below/deep/d.py"}),
    "created": (lambda root: write(root / "n.py"), {"n.py"}),
    "deleted": (lambda root: (root / "a.py").unlink(), {"a.py"}),
    "file renamed": (lambda root: (root / "a.py").rename(root / "z.py"), {"a.py", "z.py"}),
    "directory renamed": (
        lambda root: (root / "below").rename(root / "z"),
        {"below", "below/c.py", "below/deep", "below/deep/d.py", "z", "z/c.py", "z/deep", "z/deep/d.py"},
    ),
    "directory created": (lambda root: write(root / "n/m/n.py"), {"n", "n/m", "n/m/n.py"}),
    "directory deleted": (lambda root: shutil.rmtree(root / "below/deep"), {"below/deep", "below/deep/d.py"}),
    "replaced": (lambda root: replace(root / "a.py", OLD + 1), {"a.py"}),
    "replaced by an older file": (lambda root: replace(root / "below/c.py", OLD - 10**9), {"below/c.py"}),
    "mtime set back": (lambda root: os.utime(root / "a.py", ns=(OLD, OLD - 1)), {"a.py"}),
    "same mtime, other size": (lambda root: write(root / "a.py", "xx"), {"a.py"}),
    "same mtime, other inode": (lambda root: replace(root / "a.py"), {"a.py"}),
    "link retargeted": (lambda root: relink(root / "link", "a.py"), {"link"}),
    "behind a linked directory": (lambda root: write(outside(root) / "n.py"), {"linked/n.py"}),
    "what a link leads to": (lambda root: write(outside(root) / "o.py", "xx"), {"linked/o.py"}),
    "link that led nowhere": (
        lambda root: write(late(root)),
        {"nowhere"},
    ),
    "extension": (lambda root: write(root / "below/fast.so"), {"below/fast.so"}),
    "template": (lambda root: write(root / "below/deep/page.html"), {"below/deep/page.html"}),
    "odd names": (lambda root: [write(root / name) for name in ODD], {*ODD}),
    "what is ignored elsewhere": (lambda root: write(root / "kept.log"), {"kept.log"}),
}
NO_CHANGES: dict[str, Change] = {
    "read": lambda root: (root / "a.py").read_text(),
    "permissions": lambda root: (root / "a.py").chmod(0o600),
    "compiled": lambda root: write(root / "__pycache__" / "b.cpython-311.pyc"),
    "compiled for the first time": lambda root: write(root / "below" / "__pycache__" / "c.cpython-311.pyc"),
    "compiled the old way": lambda root: write(root / "a.pyc"),
    "vim": lambda root: [write(root / name) for name in (".a.py.swp", ".a.py.swx", "4913", "a.py~")],
    "emacs": lambda root: [write(root / "#a.py#"), (root / ".#a.py").symlink_to("me@here.1:2")],
    "others": lambda root: [write(root / name) for name in ("a.py___jb_tmp___", ".goutputstream-X", "x.tmp")],
    "git": lambda root: [write(root / ".git" / name) for name in ("HEAD", "index.lock", "objects/00/11")],
    "a new repository": lambda root: write(root / "below" / ".git" / "HEAD"),
    "environment": lambda root: write(root / ".venv" / "lib" / "n.py"),
    "environment of another name": lambda root: write(root / "env of its own" / "lib" / "e.py", "xx"),
    "new environment": new_environment,
    "node_modules": lambda root: write(root / "node_modules" / "m" / "m.js", "xx"),
    "ignored: pattern": lambda root: [write(root / "below/a.css"), write(root / "build" / "n.py")],
}


@pytest.fixture(scope="module", params=[(core, way) for core in CORES for way in ("events", "scanning")])
def watching(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watching]:
    core, way = request.param
    home = tmp_path_factory.mktemp("watching")
    make_site(home, "from . import part\n")
    write(home / "site_of_mine" / "part.py", "")
    write(home / "site_of_mine" / "page.html")
    for name in (*CHANGES, *NO_CHANGES):
        build(home / "watched" / name)
    for name in CHANGES:
        build(home / "once" / "watched" / name)
    build(home / "roots" / "one")
    write(home / "watched" / "fence" / "fence")
    (home / "watched" / "built").mkdir()
    dirs = [home / name for name in ("watched", "once/watched", "roots/one", "late/root")]
    environment = {"SANIC_WORKER_RELOAD_IGNORE": PATTERNS}
    if way == "scanning":
        environment["WATCHFILES_FORCE_POLLING"] = "1"
    watching = Watching(
        core, home, *dirs, interval=3600 if way == "events" else 0.05, environment=environment
    )
    yield watching
    assert watching.close() == 0
    assert watching.told[-1] == "stop"
    assert watching.told.count("start") == watching.told.count("stop") == 1


class Case:
    """A directory of a case, and the reports about it."""

    def __init__(self, watching: Watching, name: str) -> None:
        self.watching = watching
        self.home = watching.log.parent
        self.root = self.home / name
        self.known = 0

    @property
    def reports(self) -> list[set[str]]:
        """Return the new reports about this directory."""
        here = (f"{self.root}/", f"{outside(self.root)}/", str(late(self.root)))
        told = [{path for path in paths if path.startswith(here)} for paths in self.watching.reloads]
        return [*filter(None, told)][self.known :]

    def settle(self) -> None:
        """Wait until all changes so far are reported."""
        fence = self.home / "watched" / "fence" / f"{len(self.watching.reloads)}"
        write(fence)
        self.watching.until(lambda: str(fence) in self.watching.changed)

    def has_reported(self, *names: str) -> None:
        """Wait until these are reported, all at once, and nothing else."""
        paths = {str(self.root / name) for name in names}
        self.watching.until(lambda: paths <= set().union(*self.reports))
        self.settle()
        assert self.reports == ([paths] if paths else [])
        self.known += len(self.reports)


@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_is_reported(watching: Watching, kind: str) -> None:
    case = Case(watching, f"watched/{kind}")
    change, names = CHANGES[kind]
    with watching.unaware():
        change(case.root)
    paths = {os.path.realpath(case.root / name) for name in names}
    watching.until(lambda: paths <= watching.changed)
    assert case.reports == [paths]


@pytest.fixture(scope="module")
def idle(watching: Watching) -> Watching:
    """Make a directory in which everything has happened that is no change."""
    for kind, change in NO_CHANGES.items():
        with watching.unaware():
            change(Case(watching, f"watched/{kind}").root)
    Case(watching, "watched").settle()
    return watching


@pytest.mark.parametrize("kind", NO_CHANGES)
def test_an_operation_that_is_no_change_is_not_reported(idle: Watching, kind: str) -> None:
    assert Case(idle, f"watched/{kind}").reports == []


def test_no_change_is_reported_twice(idle: Watching) -> None:
    cases = {kind: Case(idle, f"once/watched/{kind}") for kind in CHANGES}
    for kind, case in cases.items():
        with idle.unaware():
            CHANGES[kind][0](case.root)
    Case(idle, "watched").settle()
    assert {kind: len(case.reports) for kind, case in cases.items()} == dict.fromkeys(CHANGES, 1)


def test_a_root_that_is_deleted_and_created_again(watching: Watching) -> None:
    case = Case(watching, "roots/one")
    gone = {str(case.root / name) for name in ("a.py", "below", "below/deep/d.py", "link", "linked/o.py")}
    with watching.unaware():
        shutil.rmtree(case.root)
    watching.until(lambda: gone <= watching.changed)
    case.settle()
    case.known = len(case.reports)
    for content in ("x", "xx"):
        with watching.unaware():
            write(case.root / "a.py", content)
        case.has_reported("a.py")


def test_a_root_that_is_created_later(watching: Watching) -> None:
    case = Case(watching, "late/root")
    with watching.unaware():
        write(case.root / "a.py")
    case.has_reported("a.py")
    # The directory above the root goes along with it.
    with watching.unaware():
        shutil.rmtree(case.root.parent)
    case.has_reported("a.py")
    with watching.unaware():
        write(case.root / "b.py")
    case.has_reported("b.py")


def test_changes_in_the_package_of_the_application(watching: Watching) -> None:
    case = Case(watching, "site_of_mine")
    for name in ("part.py", "page.html"):
        with watching.unaware():
            write(case.root / name, "# another\n")
        case.has_reported(name)
    with watching.unaware():
        write(case.root / "__pycache__" / "part.cpython-311.pyc")
        write(case.root / "new" / "page.html")
    case.has_reported("new", "new/page.html")


def test_an_edit_of_a_module_imported_later_is_reported(watching: Watching) -> None:
    """The import is no change; an edit is one, in any directory."""
    case = Case(watching, "elsewhere")
    module = case.root / "imported_late.py"
    write(module, "")
    write(case.home / "watched" / "imported_late.import", str(case.root))
    case.has_reported()
    case.settle()
    with watching.unaware():
        write(module, "x = 1")
    case.has_reported(module.name)
    with watching.unaware():
        replace(module)
    case.has_reported(module.name)


def test_many_files_at_once_are_one_reload(watching: Watching) -> None:
    """As in a switch of branches: files change, appear and disappear, in directories that appear and
    disappear.
    """
    case = Case(watching, "watched/many")
    edited, gone, new = ([f"{name}/{number}.py" for number in range(100)] for name in ("a/b", "c", "d/e"))
    for name in (*edited, *gone):
        write(case.root / name)
    case.settle()
    case.known = len(case.reports)
    with watching.unaware():
        shutil.rmtree(case.root / "c")
        for name in (*edited, *new):
            write(case.root / name, "xx")
    case.has_reported(*edited, *gone, *new, "c", "d", "d/e")


def test_changes_in_an_ignored_directory_are_not_reported(watching: Watching) -> None:
    case = Case(watching, "watched/built")
    for number in range(500):
        write(case.root / "node_modules" / f"{number % 50}" / f"{number}.js")
    case.has_reported()
