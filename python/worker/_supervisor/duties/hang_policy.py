"""Decides whether a server hangs, and what of it: pure functions of its facts and of the clock."""

from __future__ import annotations

import math
from enum import Enum
from typing import NamedTuple

__all__ = ["Cause", "Facts", "Progress", "backoff", "cause", "deadline", "is_late", "next_look", "observe"]

# The time in which a server could not run extends its limit by this multiple of it, at most.
MAX_EXTENSION = 3
# The time from one failed replacement to the next attempt, at most, as a multiple of the limit.
MAX_BACKOFF = 16


class Cause(Enum):
    """The part of a server that hangs, from the whole process to its event loop.

    The name of a member in lower case is the name in events and metrics.
    """

    STOPPED = "a signal has stopped the process"
    FROZEN = "the control group of the process is frozen"
    UNINTERRUPTIBLE = "the main thread waits in the kernel, where no signal reaches it"
    NATIVE = "not even the native thread of the process answers"
    INTERPRETER = "C code keeps the GIL, so no other thread runs Python"
    LOOP = "one step of the event loop does not end: a blocking call, an endless loop or a deadlock"

    @property
    def label(self) -> str:
        """The name in events and metrics."""
        return self.name.lower()

    @property
    def obeys_no_stop(self) -> bool:
        """Whether a stop signal has no effect for certain."""
        return self is not Cause.LOOP


class Facts(NamedTuple):
    """The facts by which the cause of a hang is told, asked for at its end.

    Attributes:
        states: The states of the main thread in ``/proc``, when the server was asked and when it is judged.
        is_frozen: Whether its control group is frozen.
        native_answers: Whether its native thread has answered; ``None`` if it takes no questions.
        interpreter_answers: Whether a thread of its interpreter has answered; ``None`` likewise.
    """

    states: tuple[str, str]
    is_frozen: bool = False
    native_answers: bool | None = None
    interpreter_answers: bool | None = None


def cause(facts: Facts) -> Cause:
    """Return the cause of a hang: the first that holds, from the whole process to its event loop."""
    if facts.is_frozen:
        return Cause.FROZEN
    if facts.states[1] == "T":
        return Cause.STOPPED
    # A thread that reads files is seen in this state now and then.
    if facts.states == ("D", "D"):
        return Cause.UNINTERRUPTIBLE
    if facts.native_answers is False:
        return Cause.NATIVE
    return Cause.INTERPRETER if facts.interpreter_answers is False else Cause.LOOP


class Progress(NamedTuple):
    """The progress of a server, as the main process knows it at one look.

    Attributes:
        at: When that was; this and the other times on the monotonic clock, in seconds.
        beat: Its last beat.
        since: The time from which its limit counts: its last beat, or when the clocks have started anew.
        waited: How long it could not run since its start, in all: it waited for a CPU, or its quota was used
            up.
        lost: The part of that since ``since``, at most.
    """

    at: float
    beat: float
    since: float
    waited: float
    lost: float


def observe(
    before: Progress | None, at: float, beat: float, waited: float, *, starts_anew: bool = False
) -> Progress:
    """Return the progress of a server after one more look.

    Args:
        before (Progress | None): That of the last look; ``None`` at the first one.
        at (float): The time of this look.
        beat (float): The last beat of the server.
        waited (float): How long it could not run since its start, in all.
        starts_anew (bool): Whether its clock starts anew: the main process was away. Defaults to ``False``.
    """
    if starts_anew:
        return Progress(at, beat, at, waited, 0.0)
    has_beaten = before is None or beat > before.since
    since = beat if before is None or has_beaten else before.since
    # Some of the wait may have come before the last beat. It is no longer than the time since.
    from_ = since if before is None else max(since, before.at)
    more = max(0.0, min(waited - (0.0 if before is None else before.waited), at - from_))
    return Progress(at, beat, since, waited, more if before is None or has_beaten else before.lost + more)


def deadline(progress: Progress, limit: float) -> float:
    """Return the time from which a server hangs, unless it beats.

    Args:
        progress (Progress): Its progress.
        limit (float): The setting ``hang_timeout``, seconds.
    """
    return progress.since + limit + min(progress.lost, MAX_EXTENSION * limit)


def next_look(progress: Progress, limit: float, pause: float) -> float:
    """Return when to look at a server again, before the next look at all; ``inf`` if its beat is not late.

    Args:
        progress (Progress): Its progress.
        limit (float): The setting ``hang_timeout``, seconds.
        pause (float): The longest time from one beat to the next.
    """
    return deadline(progress, limit) if progress.at - progress.since > pause else math.inf


def is_late(planned: float, now: float, waited: float, suspended: float, tolerance: float) -> bool:
    """Return whether the main process was away: suspended, stopped or frozen, perhaps with all servers.

    A wait for a CPU is no absence: on an overloaded machine, hangs have to be found, too.

    Args:
        planned (float): When it was to look.
        now (float): When it looks.
        waited (float): How long it has waited for a CPU since the last look.
        suspended (float): How long the machine was suspended since the last look.
        tolerance (float): The delay that does not count.
    """
    return now - planned - waited > tolerance or suspended > tolerance


def backoff(attempts: int, limit: float) -> float:
    """Return the time until a replacement is tried again, seconds, after a number of failed attempts."""
    return float(limit * min(2 ** (attempts - 1), MAX_BACKOFF))
