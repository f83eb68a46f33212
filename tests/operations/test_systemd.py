"""The units of the documentation under a real systemd, in a root of its own."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import worker

# Each of them waits for all others.
pytestmark = [pytest.mark.operations, pytest.mark.timeout(1200)]

HERE = Path(__file__).parent / "systemd"
DOCS = Path(__file__).parent.parent.parent / "docs" / "deploy"
PACKAGE = Path(worker.__file__).parent.parent
# The exit code of the sandbox where it cannot work.
UNABLE = 77


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    """Run one sandbox at a time: all have the network and the control groups of the machine, and one port."""
    with open(Path(tempfile.gettempdir()) / "sanic-worker-systemd.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.mark.parametrize(
    "case", ["verify", "life", "hang", "exits", "limits", "activation", "user", "upgrade"]
)
def test_the_units_work(case: str, tmp_path: Path) -> None:
    """See the functions of these names in ``systemd/cases.py``."""
    for path in (*HERE.glob("*.py"), *DOCS.glob("sanic-worker.*")):
        shutil.copy(path, tmp_path)
    (tmp_path / "sandbox.target").write_text("[Unit]\nDescription=The sandbox\n")
    hidden = [path for path in (PACKAGE, sys.executable) if str(path).startswith(("/tmp/", "/run/"))]
    if hidden:
        pytest.skip(f"the sandbox has a /tmp and a /run of its own, which hide {hidden[0]}")
    inside = [sys.executable, "/etc/systemd/system/cases.py", case, sys.executable, str(PACKAGE)]
    done = subprocess.run(
        [HERE / "sandbox", tmp_path, *inside], capture_output=True, text=True, timeout=280, check=False
    )
    if done.returncode == UNABLE:
        pytest.skip("systemd cannot be booted here: that takes root, overlayfs and Debian's package systemd")
    assert done.returncode == 0, done.stdout + done.stderr
