"""A preload process under test, its children, and what is done to it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from support.running import wait_for_end
from worker._spawn.preload.preloads import preloads
from worker._spawn.preload.process import PreloadProcess
from worker._spawn.processes import ManagedProcess, factory
from worker.settings import resolve

ONE = "Sanic-Server-0-0"


def ready() -> PreloadProcess:
    """Return the preload process, once it can fork."""
    process = preloads.start()
    assert process.update(30)
    return process


def exits(code: Any) -> None:
    raise SystemExit(code)


def kills_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def waits(gate: Connection) -> None:
    os.read(gate.fileno(), 1)


def start(target: Callable[..., None], *args: Any, method: str = "spawn", **kwargs: Any) -> ManagedProcess:
    process: ManagedProcess = factory(get_context(method), resolve({"graceful_timeout": 5}), is_server=True)(
        name=ONE, target=target, args=args, kwargs=kwargs, daemon=True
    )
    process.start()
    return process


def popen(process: ManagedProcess) -> Any:
    return process._popen  # type: ignore[attr-defined]


def end(process: ManagedProcess) -> int | None:
    process.join(15)
    assert not process.is_alive()
    code = process.exitcode
    process.close()
    return code


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_for_end(pid)


def children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def descriptors_of(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))
