"""Fakes with the interface of the real objects."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from worker.constants import ProcessState


class FakePublisher:
    """Keep sent messages. ``on_send`` is called with each message, before it is kept."""

    def __init__(self, on_send: Callable[[Any], None] | None = None) -> None:
        self.sent: list[Any] = []
        self.on_send = on_send

    def send(self, obj: Any, /) -> None:
        if self.on_send:
            self.on_send(obj)
        self.sent.append(obj)


class FakeProcess:
    """A worker process that records its restarts."""

    def __init__(self, name: str, state: ProcessState = ProcessState.ACKED, restartable: bool = True) -> None:
        self.name = name
        self.state = state
        self.restartable = restartable
        self.restarts: list[dict[str, Any]] = []

    def restart(self, **kwargs: Any) -> None:
        self.restarts.append(kwargs)


class OpenMailbox:
    """The mailbox of a supervisor at work, which reads nothing."""

    is_open = True

    def __init__(self) -> None:
        self.messages: list[Any] = []

    def post(self, message: Any) -> None:
        self.messages.append(message)


class FakeBase:
    """A simulated process of ``multiprocessing``."""

    made: list[FakeBase]
    on_start: Callable[[FakeBase], None] = staticmethod(lambda base: None)

    def __init__(self, **kwargs: Any) -> None:
        self.made.append(self)
        self.kwargs = kwargs
        self.pid: int | None = None
        self.exitcode: int | None = None
        self.environment: dict[str, str] = {}
        self.alive = False
        self.terminated = 0
        self.joined: list[float | None] = []

    def start(self) -> None:
        self.pid = 1_000_000 + len(self.made)
        self.alive = True
        names = ("SANIC_WORKER_NAME", "SANIC_WORKER_IDENTIFIER")
        self.environment = {name: os.environ[name] for name in names if name in os.environ}
        self.on_start(self)

    def is_alive(self) -> bool:
        if self.pid is None:
            raise AssertionError("can only test a child process")
        return self.alive

    def terminate(self) -> None:
        self.terminated += 1

    def join(self, timeout: float | None = None) -> None:
        self.joined.append(timeout)
