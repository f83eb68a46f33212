"""The preload process ends with the main process at any time, and with it all that an import has started."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from support.running import command, environment, wait_for_end

pytestmark = pytest.mark.slow

# It looks at nothing, and no signal but SIGKILL ends it.
HANGING = """
import os, signal, subprocess

started = subprocess.Popen(["sleep", "1000"], stdout=subprocess.DEVNULL)
print(os.getpid(), started.pid, flush=True)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
signal.pause()
"""
PROGRAM = """
import signal
from worker._spawn.preload import preloads

if __name__ == "__main__":
    preloads.FRAMEWORK = ["hanging"]
    preloads.preloads.start()
    signal.pause()
"""


def test_an_import_that_hangs_ends_with_the_main_process(tmp_path: Path) -> None:
    (tmp_path / "hanging.py").write_text(HANGING)
    options = {"cwd": tmp_path, "env": environment(), "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command(PROGRAM, cwd=tmp_path), **options) as main:
        assert main.stdout is not None
        pids = [int(pid) for pid in main.stdout.readline().split()]
        assert len(pids) == 2
        main.kill()
    for pid in pids:
        wait_for_end(pid)
