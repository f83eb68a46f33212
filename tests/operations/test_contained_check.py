"""`sanic-worker check` in a container: without root, and with nothing that can be written to."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from integration.tools import environment

from .contained import APPLICATION, UNSHARE, needs_namespaces
from .test_containers import NO_SHM, NO_TMP, NOBODY, OPENED, READ_ONLY

pytestmark = [pytest.mark.operations, pytest.mark.slow, needs_namespaces()]


def test_it_needs_neither_root_nor_a_place_to_write(tmp_path: Path) -> None:
    (tmp_path / "contained.py").write_text(APPLICATION)
    check = [*NOBODY, sys.executable, "-m", "worker", "check", "contained:app", "--get", "/whoami", "--json"]
    script = "\n".join(["set -e", OPENED, NO_SHM, NO_TMP, READ_ONLY, f"exec {shlex.join(check)}"])
    done = subprocess.run(
        [*UNSHARE, "sh", "-c", script],
        cwd=tmp_path,
        env=environment({"HOME": "/nonexistent"}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done
    report = json.loads(done.stdout)
    assert report["requests"][0]["ok"]
    # The machine may have been busy.
    assert [one for one in report["warnings"] if "blocked the event loop" not in one] == []
