"""Tells the main process that this server has reached a limit, so that a new process replaces it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import suppress
from random import SystemRandom
from time import monotonic
from typing import NamedTuple

from worker._system import cgroup, proc
from worker.settings import Settings

__all__ = ["Limits", "Reached", "Recycler", "draw", "judge"]

# The least time between two readings of the proportional memory, seconds: the kernel walks all pages for it.
PSS_PAUSE = 10.0


class Limits(NamedTuple):
    """The limits of one process; ``inf`` without one.

    Attributes:
        requests: The number of requests.
        lifetime: The time since the start, seconds.
        memory: The memory, bytes.
        memory_cause: The setting from which :attr:`memory` comes.
    """

    requests: float = math.inf
    lifetime: float = math.inf
    memory: float = math.inf
    memory_cause: str = "max_rss"


class Reached(NamedTuple):
    """A limit that was reached.

    Attributes:
        cause: The setting.
        value: The figure that has reached the limit: requests, seconds or bytes.
        limit: The limit of this process, in the same unit.
    """

    cause: str
    value: float
    limit: float


def draw(settings: Settings, chance: Callable[[], float], group_limit: Callable[[], int | None]) -> Limits:
    """Return the limits of one process.

    Args:
        settings (Settings): The settings of the manager.
        chance (Callable): Draws a number from 0 to 1, by which a limit is lowered.
        group_limit (Callable): Returns the memory limit of the control group, bytes, if there is one.
    """
    limits = Limits()
    if settings.max_requests is not None:
        lowered = settings.max_requests * (1 - settings.recycle_jitter * chance())
        limits = limits._replace(requests=max(1, round(lowered)))
    if settings.max_lifetime is not None:
        limits = limits._replace(lifetime=settings.max_lifetime * (1 - settings.recycle_jitter * chance()))
    if settings.max_rss is not None:
        limits = limits._replace(memory=settings.max_rss)
    if settings.max_memory_percent is not None and (most := group_limit()) is not None:
        share = most * settings.max_memory_percent / 100
        if share < limits.memory:
            limits = limits._replace(memory=share, memory_cause="max_memory_percent")
    return limits


def judge(
    limits: Limits, requests: int, age: float, rss: int, pss: Callable[[], int | None]
) -> Reached | None:
    """Return the limit that a process has reached; ``None`` if there is none.

    Args:
        limits (Limits): Its limits.
        requests (int): The requests that it has received.
        age (float): The time since its start, seconds.
        rss (int): Its resident memory, bytes.
        pss (Callable): Returns its proportional memory, bytes; ``None`` if it is unknown. Called only if the
            resident memory has reached the limit, which the proportional memory never exceeds.
    """
    if requests >= limits.requests:
        return Reached("max_requests", requests, limits.requests)
    if age >= limits.lifetime:
        return Reached("max_lifetime", age, limits.lifetime)
    if rss >= limits.memory:
        known = pss()
        used = rss if known is None else known
        if used >= limits.memory:
            return Reached(limits.memory_cause, used, limits.memory)
    return None


class Recycler:
    """Judges the calling server at each of its beats, until it has told the main process once.

    Args:
        settings (Settings): The settings of the manager.
        tell (Callable): Sends the limit that was reached; returns whether there was room for it.
    """

    def __init__(self, settings: Settings, tell: Callable[[str, float, float], bool]) -> None:
        # Not the generator that an application may seed: it would draw the same in each process.
        self._limits = draw(settings, SystemRandom().random, lambda: cgroup.own().memory_limit())
        self._tell = tell
        self._began = monotonic()
        self._next_pss = 0.0
        self._is_told = False

    def check(self, requests: int) -> None:
        """Tell the main process if a limit has been reached; ``requests`` have been received so far."""
        if self._is_told:
            return
        rss = 0 if self._limits.memory == math.inf else proc.rss_bytes(os.getpid()) or 0
        reached = judge(self._limits, requests, monotonic() - self._began, rss, self._pss)
        if reached is not None:
            # A main process that is gone replaces nothing.
            with suppress(OSError, ValueError):
                self._is_told = self._tell(*reached)

    def _pss(self) -> int | None:
        now = monotonic()
        if now < self._next_pss:
            return 0
        self._next_pss = now + PSS_PAUSE
        return proc.pss_bytes(os.getpid())
