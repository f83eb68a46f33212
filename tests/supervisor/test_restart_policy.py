"""The restart policy decides on the exit of a process: a pure function, tested without a clock."""

from __future__ import annotations

import math
import signal
from typing import Any

import pytest

from worker._supervisor.restart_policy import Decision, Exit, decide, describe_exit_code, summarize
from worker.settings import Settings, resolve

# In the middle of the jitter: the backoff itself.
EVEN = 0.5


def settings(**given: Any) -> Settings:
    return resolve(given)


class Row:
    """The exits in a row of one slot."""

    def __init__(self) -> None:
        self.exits: tuple[str, ...] = ()

    def decide(self, *args: Any, **kwargs: Any) -> Decision:
        decision = decide(self.exits, *args, **kwargs)
        self.exits = decision.exits
        return decision


def delays(count: int, row: Row, **given: Any) -> list[float]:
    """The delays after so many exits in a row, one second after each process was ready."""
    limits = settings(**given)
    return [row.decide(Exit("X", 1, 1, ready_for=1.0), "always", limits, EVEN).delay for _ in range(count)]


class TestBackoff:
    def test_doubles_until_the_eighth_failure(self) -> None:
        row = Row()
        expected = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, math.inf]
        assert delays(8, row) == pytest.approx(expected)
        assert row.exits == ("exit code 1",) * 8

    def test_is_at_most_backoff_max(self) -> None:
        given = {"backoff_initial": 1, "backoff_max": 5, "max_consecutive_failures": 2000}
        found = delays(1999, Row(), **given)
        assert found[:4] == [1, 2, 4, 5]
        assert set(found[4:]) == {5}

    @pytest.mark.parametrize(("chance", "delay"), [(0.0, 0.08), (1.0, 0.12), (0.25, 0.09)])
    def test_varies_by_the_jitter(self, chance: float, delay: float) -> None:
        decision = decide((), Exit("X", 1, -9), "always", settings(), chance)
        assert decision.delay == pytest.approx(delay)
        assert decision.reason == f"Restarting it in {delay:.2f} s (failure 1 of 8 in a row)."

    def test_is_zero_after_min_uptime(self) -> None:
        row = Row()
        delays(7, row)
        stable = Exit("X", 1, -9, ready_for=10.0)
        assert row.decide(stable, "always", settings(), EVEN).delay == 0
        assert row.exits == ()
        assert delays(2, row) == pytest.approx([0.1, 0.2])

    def test_applies_just_below_min_uptime(self) -> None:
        almost = Exit("X", 1, -9, lifetime=60.0, ready_for=9.99)
        assert decide((), almost, "always", settings(), EVEN).delay == pytest.approx(0.1)

    def test_limits_come_from_the_settings(self) -> None:
        given = {"backoff_initial": 0.5, "max_consecutive_failures": 3, "min_uptime": 1.5}
        assert delays(3, Row(), **given) == [0.5, 1.0, math.inf]
        assert delays(3, Row(), **{**given, "min_uptime": 1.0}) == [0, 0, 0]

    def test_the_reason_names_the_exits_in_a_row(self) -> None:
        row = Row()
        limits = settings(max_consecutive_failures=3)
        for code in (1, -11):
            row.decide(Exit("X", 1, code), "always", limits, EVEN)
        decision = row.decide(Exit("X", 1, None), "always", limits, EVEN)
        assert decision.failed
        assert decision.reason == (
            "Not restarting it: 3 failures in a row (exit code 1; SIGSEGV; an unknown exit code) before 10 s "
            "of service. It is FAILED until a restart or scale command."
        )

    def test_stays_at_backoff_max_for_a_worker_that_never_fails(self) -> None:
        """It goes on at the longest backoff, says so, and does not keep all that has been."""
        row, limits = Row(), settings(max_consecutive_failures=3, backoff_initial=1, backoff_max=30)
        decisions = [
            row.decide(Exit("X", 1, code), "always", limits, EVEN, absence="It is missed.")
            for code in range(100)
        ]
        assert [decision.delay for decision in decisions] == [1, 2, *[30] * 98]
        assert not any(decision.failed for decision in decisions)
        assert row.exits == ("exit code 97", "exit code 98", "exit code 99")
        assert decisions[-1].reason == (
            "Restarting it in 30.00 s, after 3 failures or more in a row (exit code 97; exit code 98; exit "
            "code 99). It is missed."
        )
        assert row.decide(Exit("X", 1, 0), "never", limits, EVEN, absence="It is missed.").delay == math.inf

    @pytest.mark.parametrize(
        ("exits", "words"),
        [
            (["exit code 3"], "exit code 3"),
            (["exit code 3"] * 8, "exit code 3, 8 times"),
            (
                ["exit code 3"] * 4 + ["SIGKILL"] * 3 + ["exit code 3"],
                "exit code 3, 5 times; SIGKILL, 3 times",
            ),
            (["SIGKILL", "exit code 7", "exit code 7"], "SIGKILL; exit code 7, 2 times"),
        ],
    )
    def test_equal_exits_are_summarized(self, exits: list[str], words: str) -> None:
        assert summarize(exits) == words


class TestPolicy:
    @pytest.mark.parametrize(
        ("policy", "code", "again"),
        [
            ("always", 0, True),
            ("always", 1, True),
            ("on-failure", 0, False),
            ("on-failure", 1, True),
            ("on-failure", -15, True),
            ("on-failure", None, True),
            ("never", 0, False),
            ("never", -9, False),
        ],
    )
    def test_the_policy_decides_on_a_restart(self, policy: str, code: int | None, again: bool) -> None:
        decision = decide((), Exit("X", 1, code, ready_for=60.0), policy, settings(), EVEN)
        assert (decision.delay == 0) is again
        assert not decision.failed
        if not again:
            assert decision.delay == math.inf
            assert decision.reason == f"Not restarting it (restart policy: {policy})."

    def test_exits_are_not_counted_with_the_policy_never(self) -> None:
        row = Row()
        for _ in range(20):
            assert not row.decide(Exit("X", 1, 1), "never", settings(), EVEN).failed
        assert row.exits == ()


class TestDescriptions:
    def test_of_every_exit_code(self) -> None:
        assert [describe_exit_code(code) for code in range(256)] == [
            f"exit code {code}" for code in range(256)
        ]

    def test_of_every_signal(self) -> None:
        names = {number: number.name for number in signal.Signals}
        for number in range(1, signal.NSIG):
            assert describe_exit_code(-number) == names.get(number, f"signal {number}")  # type: ignore[call-overload]

    @pytest.mark.parametrize(
        ("exit_", "words"),
        [
            (Exit("X", 1, 3, lifetime=1.25, ready_for=1.0), "X [1] exited with code 3 after 1.2 s"),
            (Exit("X", 1, -9, lifetime=0.3), "X [1] was killed by SIGKILL before it was ready (0.3 s)"),
            (
                Exit("X", 1, None, lifetime=2, error="ImportError: no."),
                "X [1] exited with an unknown code before it was ready (2.0 s): ImportError: no",
            ),
        ],
    )
    def test_of_an_exit(self, exit_: Exit, words: str) -> None:
        assert str(exit_) == words


class TestOutOfMemory:
    """A process that the kernel has killed for want of memory."""

    def killed(self, ready_for: float | None) -> Exit:
        return Exit("X", 1, -9, lifetime=20.0, ready_for=ready_for, oom=True)

    def test_is_not_replaced_at_once_after_a_long_service(self) -> None:
        row = Row()
        found = [row.decide(self.killed(3600.0), "always", settings(), EVEN) for _ in range(3)]
        assert [decision.delay for decision in found] == pytest.approx([0.1, 0.2, 0.4])
        assert found[1].reason == "Restarting it in 0.20 s (kill 2 in a row)."

    def test_never_makes_a_slot_failed_after_a_long_service(self) -> None:
        row = Row()
        for _ in range(200):
            decision = row.decide(self.killed(3600.0), "always", settings(), EVEN)
        assert decision.delay == 30.0
        assert not decision.failed
        assert len(row.exits) < 100

    def test_counts_as_a_failure_before_min_uptime(self) -> None:
        row = Row()
        for _ in range(8):
            decision = row.decide(self.killed(1.0), "always", settings(), EVEN)
        assert decision.failed
        assert "8 failures in a row (SIGKILL (out of memory), 8 times) before" in decision.reason

    def test_a_failure_begins_a_row_of_its_own(self) -> None:
        row = Row()
        for _ in range(7):
            row.decide(self.killed(3600.0), "always", settings(), EVEN)
        assert row.decide(self.killed(None), "always", settings(), EVEN).delay == pytest.approx(0.1)
        assert row.decide(self.killed(3600.0), "always", settings(), EVEN).delay == pytest.approx(0.1)

    def test_another_exit_after_a_long_service_ends_the_row(self) -> None:
        row = Row()
        row.decide(self.killed(3600.0), "always", settings(), EVEN)
        assert row.decide(Exit("X", 1, -9, ready_for=3600.0), "always", settings(), EVEN).delay == 0.0
        assert row.exits == ()

    def test_is_told_in_words(self) -> None:
        found = self.killed(3600.0)
        assert found.status == "SIGKILL (out of memory)"
        assert str(found) == "X [1] was killed by the kernel for want of memory (SIGKILL) after 20.0 s"
        assert Exit("X", 1, -9).status == "SIGKILL"
