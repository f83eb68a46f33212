"""A preload process knows which files have changed since it imported them, and how it has ended."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from support.running import until

from worker._spawn.preload.process import PreloadError, PreloadProcess


@pytest.fixture
def imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "imported_in_advance.py"
    file.write_text("X = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return file


def changes_its_size(file: Path) -> None:
    file.write_text("X = 10\n")


def changes_its_time(file: Path) -> None:
    os.utime(file, ns=(1, 1))


def is_replaced(file: Path) -> None:
    before = file.stat()
    copy = file.with_suffix(".new")
    copy.write_text(file.read_text())
    os.utime(copy, ns=(before.st_atime_ns, before.st_mtime_ns))
    copy.replace(file)


@pytest.mark.parametrize("change", [changes_its_size, changes_its_time, is_replaced, os.unlink])
def test_a_change_of_an_imported_file_is_found(change: Callable[[Path], None], imported: Path) -> None:
    process = PreloadProcess(["imported_in_advance"])
    try:
        until(process.update, "the imports")
        assert process.changed_file() == ""
        change(imported)
        assert process.changed_file() == str(imported)
    finally:
        process.stop()


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("import os; os.kill(os.getpid(), 9)", "it was killed by SIGKILL"),
        ("import os; os._exit(3)", "it exited with code 3"),
    ],
)
def test_the_error_tells_how_it_ended(code: str, text: str, imported: Path) -> None:
    imported.write_text(code)
    process = PreloadProcess(["imported_in_advance"])
    try:
        with pytest.raises(PreloadError, match=f"{text} before it was ready"):
            until(process.update, "its end")
    finally:
        process.stop()


def test_a_signal_to_all_processes_of_a_service_does_not_end_it(imported: Path) -> None:
    process = PreloadProcess(["imported_in_advance"])
    try:
        until(process.update, "the imports")
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(process.pid, signum)
        # It obeys after that.
        assert process.changed_file() == "" and not process.has_ended()
    finally:
        process.stop()
