"""After any operations on a tree of files, both cores report the changes that a full scan finds.

The native one also does so where hints tell it the paths.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from support.cores import CORES, MODULES

pytestmark = [pytest.mark.skipif(len(CORES) < 2, reason="one core alone is asked for"), pytest.mark.slow]

EXAMPLES = int(os.environ.get("PARITY_EXAMPLES", "300")) // 8
MARK = "CACHEDIR.TAG"
NAMES = ["a", "b", "c.py", "__pycache__", MARK, "ü", "\udcff"]
names = st.sampled_from(NAMES)
RULES = [("(^|/)__pycache__/?$", True)]
MORE_RULES = [("^a/b/", True), ("c[.]py$", True), ("^b/c[.]py$", False), ("^.$", True), ("^a$", False)]
paths = st.lists(names, min_size=1, max_size=4).map(lambda parts: os.path.join(*parts))
times = st.integers(-(10**12), 10**12)


def look(root: str) -> dict[str, Any]:
    """Return all entries below, without following links to directories: path to identity."""
    found: dict[str, Any] = {}
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in folders:
            found[os.path.join(folder, name)] = "folder"
        for name in files:
            if name != "__pycache__":
                with suppress(OSError):
                    about = os.stat(os.path.join(folder, name))
                    stamp = about.st_mtime_ns, about.st_size, about.st_ino
                    found[os.path.join(folder, name)] = stamp
    return found


def marked(root: str) -> set[str]:
    """Yield directories that bear a mark, whose contents are passed over; a link may lead there."""
    below = (os.path.join(folder, name) for folder, names, _ in os.walk(root) for name in names)
    return {f"{path}/" for path in below if os.path.lexists(os.path.join(path, MARK))}


class Histories(RuleBasedStateMachine):
    """Operations on files, with a scan by both cores wherever hypothesis wants one."""

    @initialize(settle=st.sampled_from([0.0, 2.0]), inner=st.booleans(), ignored=st.booleans())
    def begin(self, settle: float, inner: bool, ignored: bool) -> None:
        self.home = tempfile.mkdtemp()
        self.root = os.path.join(self.home, "root")
        self.outside = os.path.join(self.home, "outside")
        os.mkdir(self.root)
        os.mkdir(self.outside)
        roots = [self.root, os.path.join(self.root, "a")] if inner else [self.root]
        rules = [*RULES, *MORE_RULES] if ignored else RULES
        scanners = [import_module(MODULES[name]).Scanner for name in CORES]
        self.cores = [scanner(roots, rules, settle) for scanner in scanners]
        self.hinted = import_module("worker._native").Scanner(roots, rules, settle)
        self.watched: set[str] = set()
        self.settled = settle == 2.0 and not ignored
        self.before: dict[str, Any] = {}
        self.told: set[str] = set()
        self.marked: set[str] = set()
        assert [core.scan() for core in (*self.cores, self.hinted)] == [[], [], []]

    def teardown(self) -> None:
        if hasattr(self, "cores"):
            self.look_at_all()
        shutil.rmtree(self.home, ignore_errors=True)

    def path(self, name: str, outside: bool = False) -> Path:
        return Path(self.outside if outside else self.root, name)

    @rule(name=paths, content=st.sampled_from(["", "x", "xx"]), outside=st.booleans())
    def write(self, name: str, content: str, outside: bool) -> None:
        with suppress(OSError):
            self.path(name, outside).parent.mkdir(parents=True, exist_ok=True)
            self.path(name, outside).write_text(content)

    @rule(name=paths, mtime=times)
    def touch(self, name: str, mtime: int) -> None:
        with suppress(OSError):
            os.utime(self.path(name), ns=(mtime, mtime))

    @rule(name=paths)
    def make_directory(self, name: str) -> None:
        with suppress(OSError):
            self.path(name).mkdir(parents=True)

    @rule(name=paths)
    def delete(self, name: str) -> None:
        with suppress(OSError):
            path = self.path(name)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    @rule(one=paths, other=paths, outside=st.booleans())
    def rename(self, one: str, other: str, outside: bool) -> None:
        with suppress(OSError):
            self.path(one).rename(self.path(other, outside))

    @rule(name=paths, to=paths, outside=st.booleans())
    def link(self, name: str, to: str, outside: bool) -> None:
        with suppress(OSError):
            self.path(name).parent.mkdir(parents=True, exist_ok=True)
            self.path(name).symlink_to(self.path(to, outside))

    @rule(name=paths)
    def link_in_circles(self, name: str) -> None:
        with suppress(OSError):
            self.path(name).symlink_to(self.root)

    @rule(name=paths, kind=st.sampled_from(["pipe", "/dev/null", "/proc/self/fd", "/proc/1/exe"]))
    def make_what_is_no_file(self, name: str, kind: str) -> None:
        with suppress(OSError):
            if kind == "pipe":
                os.mkfifo(self.path(name))
            else:
                self.path(name).symlink_to(kind)

    @rule(name=paths)
    def watch(self, name: str) -> None:
        for core in (*self.cores, self.hinted):
            core.watch([str(self.path(name, True))])

    @rule(names=st.lists(paths, min_size=1, max_size=3))
    def look_at_some(self, names: list[str]) -> None:
        """Reported changes are removed: none may be reported twice."""
        self.marked |= marked(self.root)
        self.told |= set(self.hinted.scan([str(self.path(name)) for name in names]))

    @rule()
    def root_goes(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    @rule()
    def root_returns(self) -> None:
        os.makedirs(self.root, exist_ok=True)

    @rule()
    def look_at_all(self) -> None:
        one, other = [core.scan() for core in self.cores]
        assert one == other
        assert [core.folders() for core in self.cores] == [self.cores[0].folders()] * 2
        assert [core.links() for core in self.cores] == [self.cores[0].links()] * 2
        self.told |= set(self.hinted.scan())
        now = look(self.root)
        self.marked |= marked(self.root)
        if self.settled:
            # With a clock this coarse a directory is always listed, so that nothing can be missed.
            changed = {
                path for path in now.keys() | self.before.keys() if now.get(path) != self.before.get(path)
            }
            passed_over = {path for path in changed if f"{path}/".startswith(tuple(self.marked))}
            assert changed - passed_over <= set(one)
            assert changed - passed_over <= self.told
        self.before, self.told, self.marked = now, set(), marked(self.root)


Histories.TestCase.settings = settings(max_examples=EXAMPLES, stateful_step_count=30, deadline=None)
TestScannerParity = pytest.mark.timeout(300)(Histories.TestCase)
