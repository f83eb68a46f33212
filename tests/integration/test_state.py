"""What an application keeps in ``app.m.state``, whoever of it writes and whatever it is."""

from __future__ import annotations

import os
from pathlib import Path
from signal import SIGKILL

import pytest

from .harness import Server

pytestmark = pytest.mark.native


def test_forks_write_and_values_hang(tmp_path: Path) -> None:
    with Server.run("apps.scribbling:app", cwd=tmp_path, workers=2) as server:
        server.wait_ready()
        forks = [server.get("/fork") for _ in range(3)]
        assert all(one["seen"] == one["fork"] for one in forks)
        assert {one["fork"] for one in forks} >= set(server.get("/seen"))
        # Main looks at the entry of the one that dies, and at what is left of it when it has ended.
        pid = server.get("/hang")["pid"]
        os.kill(pid, SIGKILL)
        server.wait_line(rf"\[{pid}\] was killed by SIGKILL")
        assert server.stop() == 0
        assert "Worker shutdown timed out" not in server.log()
