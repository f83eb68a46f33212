"""What becomes of a place whose process has died: pure functions of its life and of chance."""

from __future__ import annotations

import errno
import math
import signal
from dataclasses import dataclass, field

from worker._supervisor.rollout import Wish
from worker.constants import Phase
from worker.settings import Settings

__all__ = ["NEVER", "Death", "Life", "Verdict", "how_it_ended", "judge", "why_not_started"]

NEVER = "never"
ON_FAILURE = "on-failure"
# By how much of itself a backoff is longer or shorter, so that those who died together do not start together.
JITTER = 0.2

# What an operator can do about a process that the system refuses.
REMEDIES = {
    errno.EMFILE: "raise the limit of open files of the main process (ulimit -n)",
    errno.ENFILE: "raise the limit of open files of the system (sysctl fs.file-max)",
    errno.EAGAIN: "raise the limit of processes (ulimit -u, or pids.max of the cgroup)",
    errno.ENOMEM: "free some memory, or raise its limit",
}


@dataclass(frozen=True)
class Death:
    """The end of a process.

    Attributes:
        who: Its name and pid, in words.
        code: Its exit code, negative for a signal; ``None`` if nobody knows.
        started: When it was started, on the clock of main, seconds.
        lived: How long it had lived, seconds.
        served: How long it had been ready, seconds; ``None`` if it never was.
        error: What is known of why its start failed; empty if nothing.
        others: Whether another process has not left the same place yet.
        begun: Whether there was a process: ``False`` where the main process could not start it.
    """

    who: str
    code: int | None
    started: float = 0.0
    lived: float = 0.0
    served: float | None = None
    error: str = ""
    others: bool = False
    begun: bool = True

    def __str__(self) -> str:
        if not self.begun:
            return f"{self.who} could not be started: {self.error}"
        verb = "was killed by" if self.code is not None and self.code < 0 else "ended with"
        ready = " before it was ready," if self.served is None else ""
        error = f" ({self.error})" if self.error else ""
        return f"{self.who} {verb} {how_it_ended(self.code)}{ready} after {self.lived:.1f} s{error}"


@dataclass
class Life:
    """The life of a place in the table of processes.

    Attributes:
        phase: Where it stands.
        due: When the next process is to be started, on the monotonic clock; ``inf``: not by itself.
        exits: How the last processes ended that had not served for long, one after the other.
        restarts: How often the policy has replaced a process.
        displaced: Whether the newcomer took the turn of one that was not ready yet.
        wish: What the present process was started for, if somebody had asked for it.
        last_death: The last end of a process that no other has replaced yet.
    """

    phase: Phase = Phase.STOPPED
    due: float = math.inf
    exits: list[str] = field(default_factory=list)
    restarts: int = 0
    displaced: bool = False
    wish: Wish | None = None
    last_death: Death | None = None


@dataclass(frozen=True)
class Verdict:
    """What follows from a death.

    Attributes:
        delay: After how many seconds the next process is started; ``inf``: it is not.
        failed: Whether it is given up for its deaths in a row.
        why: The reason, in words that go on from how it ended.
    """

    delay: float
    failed: bool
    why: str


def how_it_ended(code: int | None) -> str:
    """An exit code (as ``Process.exitcode`` has it) in words: ``exit code 1``, ``SIGKILL``."""
    if code is None:
        return "an unknown exit code"
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def why_not_started(error: BaseException) -> str:
    """Return the reason why the main process could not start a process, and what can be done about it."""
    remedy = REMEDIES.get(error.errno or 0) if isinstance(error, OSError) else None
    return f"{error} ({remedy})" if remedy else str(error) or type(error).__name__


def judge(
    life: Life, death: Death, policy: str, settings: Settings, chance: float, *, endures: bool = False
) -> Verdict:
    """Decide what follows from a death, and take note of it.

    Args:
        life (Life): That of the place; its exits are brought up to date.
        death (Death): Its latest.
        policy (str): ``always``, ``on-failure`` or ``never``.
        settings (Settings): The limits.
        chance (float): A random number from 0 to 1, for the jitter.
        endures (bool): Never give it up: after ``max_consecutive_failures`` exits in a row, go on at the
            longest backoff. Defaults to ``False``.
    """
    # A policy is about processes that ran: one that was asked for and could not be started is still owed.
    if death.begun and (policy == NEVER or (policy == ON_FAILURE and death.code == 0)):
        return Verdict(math.inf, False, f"it is not started again (restart policy: {policy})")
    if death.served is not None and death.served >= settings.min_uptime:
        life.exits.clear()
        return Verdict(0.0, False, "it is started again at once")
    life.exits.append(how_it_ended(death.code) if death.begun else "not started")
    count = len(life.exits)
    # Beyond that the power has long reached any limit.
    longest = max(settings.backoff_initial, settings.backoff_max)
    delay = min(settings.backoff_initial * 2.0 ** min(count - 1, 60), longest)
    jitter = 1 + JITTER * (2 * chance - 1)
    limit = settings.max_consecutive_failures
    if count >= limit:
        exits = ", ".join(life.exits[-limit:])
        if endures:
            # They need not be kept for ever: the next one makes it as many again.
            del life.exits[:-limit]
            why = (
                f"death {limit} in a row or more ({exits}): it is started again in "
                f"{longest * jitter:.2f} s, and as often as it takes; until it runs no change is noticed"
            )
            return Verdict(longest * jitter, False, why)
        return Verdict(
            math.inf,
            True,
            f"death {count} in a row ({exits}) before it had served for {settings.min_uptime:g} s: it has "
            "FAILED, and is not started again until a restart or a scaling asks for it",
        )
    delay *= jitter
    tally = f"death {count} of {limit} in a row"
    return Verdict(delay, False, f"it is started again in {delay:.2f} s ({tally})")
