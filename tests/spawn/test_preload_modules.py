"""The modules that a preload process imports, and the functions that it calls."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from worker._spawn.preload.process import PreloadProcess

MODULE = """
from pathlib import Path

def note():
    Path(__file__).with_name("noted").touch()

def fail():
    raise RuntimeError("this release is too old")
"""


def test_a_preload_process_calls_functions_before_it_forks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.py").write_text(MODULE)
    # The import system ignores the object: no text of it can be sent.
    monkeypatch.setattr(sys, "path", [object(), str(tmp_path), *sys.path])
    process = PreloadProcess(["missing", "missing:function", "notes:fail", "notes:note"])
    try:
        assert process.update(timeout=30.0)
        assert (tmp_path / "noted").exists()
    finally:
        process.stop()
