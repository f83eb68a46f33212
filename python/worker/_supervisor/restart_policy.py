"""Decides whether and when an exited process is replaced: restart policy, backoff, restart intensity."""

from __future__ import annotations

import errno
import math
from collections import Counter
from collections.abc import Iterable

from worker._child.signals import name_of
from worker._core.record import Record
from worker.constants import NAME_LIMIT, NEVER, ON_FAILURE, excerpt
from worker.settings import Settings

__all__ = ["Decision", "Exit", "backoff", "decide", "describe_exit_code", "summarize", "why_not_started"]

# A backoff is longer or shorter by this fraction: processes that exit together do not start together.
JITTER = 0.2

OUT_OF_MEMORY = " (out of memory)"
# Stands for a kill for want of memory after `min_uptime` of service, among the exits in a row.
KILLED_IN_SERVICE = f"SIGKILL{OUT_OF_MEMORY} in service"
# A larger exponent of the backoff overflows; by then any limit is reached.
MAX_EXPONENT = 60

# Remedies for a process that the system refuses to start.
REMEDIES = {
    errno.EMFILE: "raise the limit of open files of the main process (ulimit -n)",
    errno.ENFILE: "raise the limit of open files of the system (sysctl fs.file-max)",
    errno.EAGAIN: "raise the limit of processes (ulimit -u, or pids.max of the cgroup)",
    errno.ENOMEM: "free some memory, or raise its limit",
}


class Exit(Record):
    """The exit of a process.

    Attributes:
        slot: The name of the slot.
        pid: Its pid; ``None`` if there was no process.
        code: Its exit code, negative for a signal; ``None`` if it is unknown.
        started_at: The time of its start, on the clock of the supervisor, seconds.
        lifetime: How long it had run, seconds.
        ready_for: How long it had been ready, seconds; ``None`` if it never was.
        error: Why its start failed, as far as it is known; empty if it is not.
        others_left: Whether another process of the same slot has not exited yet.
        has_run: Whether there was a process: ``False`` if the main process could not start it.
        oom: Whether the kernel has killed it for want of memory.
    """

    slot: str
    pid: int | None
    code: int | None
    started_at: float = 0.0
    lifetime: float = 0.0
    ready_for: float | None = None
    error: str = ""
    others_left: bool = False
    has_run: bool = True
    oom: bool = False

    @property
    def status(self) -> str:
        """Its exit code or signal in words: ``exit code 1``, ``SIGKILL (out of memory)``."""
        return describe_exit_code(self.code) + (OUT_OF_MEMORY if self.oom else "")

    @property
    def process(self) -> str:
        """Its name and pid: ``Sanic-Server-0-0 [4250]``."""
        name = excerpt(self.slot, NAME_LIMIT)
        return name if self.pid is None else f"{name} [{self.pid}]"

    @property
    def signal_name(self) -> str | None:
        """The name of the signal that ended it; ``None`` without one."""
        return describe_exit_code(self.code) if self.code is not None and self.code < 0 else None

    @property
    def is_address_in_use(self) -> bool:
        """Whether it could not bind an address that another process has bound."""
        return self.error.startswith("EADDRINUSE")

    def __str__(self) -> str:
        if not self.has_run:
            return f"{self.process} could not be started: {self.error}"
        if self.oom:
            how = "was killed by the kernel for want of memory (SIGKILL)"
        elif self.code is not None and self.code < 0:
            how = f"was killed by {describe_exit_code(self.code)}"
        else:
            how = f"exited with {'an unknown code' if self.code is None else f'code {self.code}'}"
        if self.ready_for is None:
            when = f"before it was ready ({self.lifetime:.1f} s)"
        else:
            when = f"after {self.lifetime:.1f} s"
        error = f": {self.error.rstrip('.')}" if self.error else ""
        return f"{self.process} {how} {when}{error}"


class Decision(Record):
    """The consequence of an exit.

    Attributes:
        delay: The time until the next process is started, seconds; ``inf``: none is started.
        failed: Whether the slot has failed because of its exits in a row.
        reason: The consequence and its reason: the sentence after that of the exit.
        exits: The exits in a row from now on.
    """

    delay: float
    failed: bool
    reason: str
    exits: tuple[str, ...] = ()


def describe_exit_code(code: int | None) -> str:
    """Return an exit code (as ``Process.exitcode`` has it) in words: ``exit code 1``, ``SIGKILL``."""
    if code is None:
        return "an unknown exit code"
    return f"exit code {code}" if code >= 0 else name_of(-code)


def summarize(exits: Iterable[str]) -> str:
    """Return exits in words, equal ones once: ``exit code 3, 5 times; SIGKILL``."""
    counts = Counter(exits)
    return "; ".join(exit if count == 1 else f"{exit}, {count} times" for exit, count in counts.items())  # noqa: A001


def why_not_started(error: BaseException) -> str:
    """Return why the main process could not start a process, with a remedy if there is one."""
    remedy = REMEDIES.get(error.errno or 0) if isinstance(error, OSError) else None
    return f"{excerpt(error)} ({remedy})" if remedy else excerpt(error) or type(error).__name__


def backoff(failures: int, settings: Settings) -> float:
    """Return the delay before the next start after a number of failures in a row, seconds, without jitter.

    Args:
        failures (int): The number, from 1 on.
        settings (Settings): The limits.
    """
    doubled = settings.backoff_initial * 2.0 ** min(failures - 1, MAX_EXPONENT)
    return min(doubled, _longest_backoff(settings))


def _longest_backoff(settings: Settings) -> float:
    # One of the two may be the default.
    return max(settings.backoff_initial, settings.backoff_max)


def decide(
    exits: tuple[str, ...],
    exit: Exit,  # noqa: A002
    policy: str,
    settings: Settings,
    chance: float,
    *,
    absence: str = "",
) -> Decision:
    """Decide whether and when the next process is started after an exit.

    Args:
        exits (tuple[str, ...]): The exits in a row before this one.
        exit (Exit): The exit.
        policy (str): ``always``, ``on-failure`` or ``never``.
        settings (Settings): The limits.
        chance (float): A random number from 0 to 1, for the jitter.
        absence (str): The effect of its absence in words, for a process that goes on at the longest backoff
            after ``max_consecutive_failures`` exits in a row. Defaults to none: it is FAILED then.
    """
    # The policy applies to processes that ran. One that could not be started has to be tried again.
    if exit.has_run and (policy == NEVER or (policy == ON_FAILURE and exit.code == 0)):
        return Decision(math.inf, False, f"Not restarting it (restart policy: {policy}).", exits)
    is_stable = exit.ready_for is not None and exit.ready_for >= settings.min_uptime
    if is_stable and not exit.oom:
        return Decision(0.0, False, "Restarting it now.")
    limit = settings.max_consecutive_failures
    # Failures and kills for want of memory after a long service count apart: the latter make no slot FAILED.
    row = [one for one in exits if (one == KILLED_IN_SERVICE) == is_stable]
    if is_stable:
        row = row[-MAX_EXPONENT:]
    exits = (*row, KILLED_IN_SERVICE if is_stable else exit.status if exit.has_run else "not started")
    count, delay = len(exits), backoff(len(exits), settings)
    jitter = 1 + JITTER * (2 * chance - 1)
    if is_stable:
        # The memory is scarce: another process at once would only be the next one to be killed.
        reason = f"Restarting it in {delay * jitter:.2f} s (kill {count} in a row)."
        return Decision(delay * jitter, False, reason, exits)
    if count < limit:
        delay *= jitter
        tally = f"failure {count} of {limit} in a row"
        return Decision(delay, False, f"Restarting it in {delay:.2f} s ({tally}).", exits)
    if absence:
        exits, longest = exits[-limit:], _longest_backoff(settings)
        reason = (
            f"Restarting it in {longest * jitter:.2f} s, after {limit} failures or more in a row "
            f"({summarize(exits)}). {absence}"
        )
        return Decision(longest * jitter, False, reason, exits)
    failures = "1 failure" if count == 1 else f"{count} failures in a row"
    reason = (
        f"Not restarting it: {failures} ({summarize(exits[-limit:])}) before {settings.min_uptime:g} s of "
        "service. It is FAILED until a restart or scale command."
    )
    return Decision(math.inf, True, reason, exits)
