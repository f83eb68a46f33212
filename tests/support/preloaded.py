"""A preload process with an application, and children of it."""

from __future__ import annotations

import sys
from importlib import import_module
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from worker._spawn.preload import process as preload_process
from worker._spawn.preload.application import described
from worker._spawn.preload.preloads import preloads
from worker._spawn.preload.process import PreloadProcess, readable
from worker._spawn.processes import factory
from worker.loader import AppLoader


def load(folder: Path, monkeypatch: pytest.MonkeyPatch, **modules: str) -> PreloadProcess:
    """Return the current preload process, with the module ``front``; ``a__b`` is the module ``a.b``."""
    for name, text in modules.items():
        path = folder / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    # However slow the machine is, no child is spawned because the preload process was.
    monkeypatch.setattr(preload_process, "ANSWER_TIMEOUT", 30.0)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder), str(folder / "site-packages")])
    process = preloads.start()
    process.load(described(AppLoader("front:app")))
    assert readable(process.fileno(), 30)
    return process


def show(writer: Connection) -> None:
    """Send the result of ``front.show()``; the target of a child."""
    writer.send(import_module("front").show())


def run(start_method: str = "spawn") -> tuple[bool, Any, int | None]:
    """Return of one child whether it was forked from the preload process, its result and its exit code."""
    reader, writer = Pipe(duplex=False)
    process = factory(get_context(start_method))(
        name="Sanic-Server-0-0", target=show, args=[writer], daemon=True
    )
    with reader:
        with writer:
            process.start()
        try:
            result = reader.recv()
        except EOFError:
            result = None
        process.join(15)
        is_forked, code = process.is_preloaded, process.exitcode
        process.close()
    return is_forked, result, code
