"""Values of ``app.m.state``: of any type, written by any process."""

from __future__ import annotations

import os
from pathlib import Path
from signal import SIGKILL

import pytest

from .harness import Server

pytestmark = pytest.mark.native


def test_forks_write_and_values_that_hang_do_not_block_the_stop(tmp_path: Path) -> None:
    with Server.run("apps.scribbling:app", cwd=tmp_path, workers=2) as server:
        server.wait_ready()
        forks = [server.get("/fork") for _ in range(3)]
        assert all(one["seen"] == one["fork"] for one in forks)
        assert {one["fork"] for one in forks} >= set(server.get("/seen"))
        # The main process reads the entry of an exited worker, and its leftovers.
        pid = server.get("/hang")["pid"]
        os.kill(pid, SIGKILL)
        server.wait_line(rf"\[{pid}\] was killed by SIGKILL")
        assert server.stop() == 0
        assert "Worker shutdown timed out" not in server.log()
