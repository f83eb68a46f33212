"""Directories appear and disappear as fast as they can beside real edits: each edit is reported."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import pytest
from support.cores import CORES
from support.running import until
from support.watching import Watching, make_site

pytestmark = pytest.mark.slow

# A short time in every run, a longer one in `make chaos`.
RUNS = [
    ("events", 1.0),
    *(pytest.param(way, 20.0, marks=pytest.mark.chaos) for way in ("events", "scanning")),
]
CHURN = """
import os, shutil, socket, sys
number = 0
while True:
    number += 1
    path = os.path.join(sys.argv[1], str(number % 7))
    os.makedirs(os.path.join(path, "a", "b"), exist_ok=True)
    inner = os.path.join(path, "a")
    open(os.path.join(inner, "c.py"), "w").close()
    targets = ("..", "../..", "b", "c.py", "gone", "l4", "/proc/self", "/proc/self/fd", "/proc/1/exe")
    for n, target in enumerate(targets):
        os.symlink(target, os.path.join(inner, f"l{n}"))
    os.mkfifo(os.path.join(inner, "pipe"))
    with socket.socket(socket.AF_UNIX) as listening:
        os.chdir(inner)
        listening.bind("socket")
        os.chdir("/")
    os.chmod(os.path.join(inner, "b"), 0)
    os.chmod(inner, 0o311)
    os.rename(path, path + "-")
    os.rename(path + "-/a/l2", path + "-/a/l3")
    os.chmod(path + "-/a", 0o755)
    shutil.rmtree(path + "-")
"""


@contextmanager
def churning(root: Path) -> Iterator[None]:
    """Make and remove directories while the body runs."""
    before = len(os.listdir(root))
    process = subprocess.Popen([sys.executable, "-c", CHURN, str(root)])
    try:
        until(lambda: len(os.listdir(root)) > before, "the first directory")
        yield
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("way", "seconds"), RUNS)
@pytest.mark.parametrize("core", CORES)
def test_edits_are_reported_while_directories_churn(
    tmp_path: Path, core: str, way: str, seconds: float
) -> None:
    make_site(tmp_path)
    root = tmp_path / "watched"
    root.mkdir()
    edited = root / "edited.py"
    edited.touch()
    environment = {"WATCHFILES_FORCE_POLLING": "1" if way == "scanning" else ""}
    watching = Watching(core, tmp_path, root, interval=0.2, environment=environment)
    edits = 0

    def is_reported() -> bool:
        return sum(str(edited) in told for told in watching.reloads) == edits

    with churning(root):
        deadline = monotonic() + seconds
        while edits < seconds or monotonic() < deadline:
            edits += 1
            (root / ".edited.py.swp").write_text("x" * edits)
            (root / ".edited.py.swp").replace(edited)
            watching.until(is_reported)
    assert watching.close() == 0
    assert watching.told.count("start") == 1
    assert "Traceback" not in watching.log.read_text()
    # The churn may have removed some of the files already.
    shutil.rmtree(root, ignore_errors=True)
