"""The restart policy decides on the exit of a process: a pure function, tested without a clock."""

from __future__ import annotations

import math
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from worker._supervisor.lifecycle import Lives
from worker._supervisor.restart_policy import Death, Life, how_it_ended, judge
from worker.constants import LIFE, Act, Happening, Phase, ProcessState, RestartOrder
from worker.settings import Settings, resolve

# In the middle of the jitter: the backoff itself.
EVEN = 0.5


def settings(**given: Any) -> Settings:
    return resolve(given)


def deaths(count: int, life: Life, **given: Any) -> list[float]:
    """Return the delays after this many exits in a row, each one second after the start."""
    limits = settings(**given)
    return [judge(life, Death("X [1]", 1, served=1.0), "always", limits, EVEN).delay for _ in range(count)]


class TestBackoff:
    def test_doubles_and_ends_with_the_eighth(self) -> None:
        life = Life()
        expected = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, math.inf]
        assert deaths(8, life) == pytest.approx(expected)
        assert life.exits == ["exit code 1"] * 8

    def test_has_a_ceiling(self) -> None:
        given = {"backoff_initial": 1, "backoff_max": 5, "max_consecutive_failures": 2000}
        delays = deaths(1999, Life(), **given)
        assert delays[:4] == [1, 2, 4, 5]
        assert set(delays[4:]) == {5}

    @pytest.mark.parametrize(("chance", "delay"), [(0.0, 0.08), (1.0, 0.12), (0.25, 0.09)])
    def test_jitter(self, chance: float, delay: float) -> None:
        verdict = judge(Life(), Death("X [1]", -9), "always", settings(), chance)
        assert verdict.delay == pytest.approx(delay)
        assert verdict.why == f"it is started again in {delay:.2f} s (death 1 of 8 in a row)"

    def test_of_one_that_was_stable(self) -> None:
        life = Life()
        deaths(7, life)
        stable = Death("X [1]", -9, served=10.0)
        assert judge(life, stable, "always", settings(), EVEN).delay == 0
        assert life.exits == []
        assert deaths(2, life) == pytest.approx([0.1, 0.2])

    def test_of_one_that_was_almost_stable(self) -> None:
        almost = Death("X [1]", -9, lived=60.0, served=9.99)
        assert judge(Life(), almost, "always", settings(), EVEN).delay == pytest.approx(0.1)

    def test_the_limits_are_settings(self) -> None:
        given = {"backoff_initial": 0.5, "max_consecutive_failures": 3, "min_uptime": 1.5}
        assert deaths(3, Life(), **given) == [0.5, 1.0, math.inf]
        assert deaths(3, Life(), **{**given, "min_uptime": 1.0}) == [0, 0, 0]

    def test_its_last_exits_are_told(self) -> None:
        life = Life()
        limits = settings(max_consecutive_failures=3)
        for code in (1, -11):
            judge(life, Death("X [1]", code), "always", limits, EVEN)
        verdict = judge(life, Death("X [1]", None), "always", limits, EVEN)
        assert verdict.failed
        assert verdict.why == (
            "death 3 in a row (exit code 1, SIGSEGV, an unknown exit code) before it had served for 10 s: it "
            "has FAILED, and is not started again until a restart or a scaling asks for it"
        )

    def test_of_one_that_is_never_given_up(self) -> None:
        """The delay stays at the longest backoff, the message says so, and the list of exits stays short."""
        life, limits = Life(), settings(max_consecutive_failures=3, backoff_initial=1, backoff_max=30)
        verdicts = [
            judge(life, Death("X [1]", code), "always", limits, EVEN, endures=True) for code in range(100)
        ]
        assert [verdict.delay for verdict in verdicts] == [1, 2, *[30] * 98]
        assert not any(verdict.failed for verdict in verdicts)
        assert life.exits == [f"exit code {code}" for code in (97, 98, 99)]
        assert verdicts[-1].why == (
            "death 3 in a row or more (exit code 97, exit code 98, exit code 99): it is started again in "
            "30.00 s, and as often as it takes; until it runs no change is noticed"
        )
        assert judge(life, Death("X [1]", 0), "never", limits, EVEN, endures=True).delay == math.inf


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
    def test_what_is_replaced(self, policy: str, code: int | None, again: bool) -> None:
        verdict = judge(Life(), Death("X [1]", code, served=60.0), policy, settings(), EVEN)
        assert (verdict.delay == 0) is again
        assert not verdict.failed
        if not again:
            assert verdict.delay == math.inf
            assert verdict.why == f"it is not started again (restart policy: {policy})"

    def test_no_death_is_counted_of_what_is_not_replaced(self) -> None:
        life = Life()
        for _ in range(20):
            assert not judge(life, Death("X [1]", 1), "never", settings(), EVEN).failed
        assert life.exits == []


class TestWords:
    def test_every_exit_code(self) -> None:
        assert [how_it_ended(code) for code in range(256)] == [f"exit code {code}" for code in range(256)]

    def test_every_signal(self) -> None:
        names = {number: number.name for number in signal.Signals}
        for number in range(1, signal.NSIG):
            assert how_it_ended(-number) == names.get(number, f"signal {number}")  # type: ignore[call-overload]

    @pytest.mark.parametrize(
        ("death", "words"),
        [
            (Death("X [1]", 3, lived=1.25, served=1.0), "X [1] ended with exit code 3 after 1.2 s"),
            (Death("X [1]", -9, lived=0.3), "X [1] was killed by SIGKILL before it was ready, after 0.3 s"),
            (
                Death("X [1]", None, lived=2, error="ImportError: no"),
                "X [1] ended with an unknown exit code before it was ready, after 2.0 s (ImportError: no)",
            ),
        ],
    )
    def test_of_a_death(self, death: Death, words: str) -> None:
        assert str(death) == words


def nobody(place: Any) -> bool:
    """Whether a process is there: none is."""
    return False


class TestTable:
    def test_every_phase_is_in_it(self) -> None:
        assert set(LIFE) == set(Phase)

    def test_every_act_is_in_it_and_can_be_done(self) -> None:
        assert {act for row in LIFE.values() for act in row.values()} == set(Act)
        for act in Act:
            assert callable(getattr(Lives, f"_{act.name.lower()}"))

    def test_every_happening_is_in_it(self) -> None:
        assert {what for row in LIFE.values() for what in row} == set(Happening)

    @pytest.mark.parametrize("phase", Phase)
    def test_a_stop_is_obeyed_in_every_phase(self, phase: Phase) -> None:
        assert LIFE[phase][Happening.STOP] in (Act.DISMISS, Act.NOTHING)

    def test_what_is_not_in_it_is_logged_and_nothing_is_done(self, caplog: pytest.LogCaptureFixture) -> None:
        """A process becomes ready in an empty slot: no method of the slot is called."""
        place: Any = SimpleNamespace(name="Sanic-Server-0-0", life=Life())
        lives = Lives(lambda: [place], settings(), lambda: 0.0, lambda: EVEN, nobody, nobody)
        lives.happens(place, Happening.READY)
        assert vars(place) == {"name": "Sanic-Server-0-0", "life": Life()}
        assert caplog.messages == [
            f"Impossible for Sanic-Server-0-0: its process is ready, while {Phase.STOPPED.value}"
        ]

    @pytest.mark.parametrize("alive", [True, False])
    def test_a_successor_waits_for_its_predecessor(self, alive: bool) -> None:
        """Another process, which was stopped before, does not count."""
        begun: list[RestartOrder] = []
        place: Any = SimpleNamespace(
            name="X",
            life=Life(Phase.DRAINING),
            state=ProcessState.RESTARTING,
            is_alive=lambda: alive,
            renew=lambda order, config: begun.append(order),
        )
        lives = Lives(lambda: [place], settings(), lambda: 0.0, lambda: EVEN, nobody, nobody)
        lives.happens(place, Happening.LEFT, Death("X [1]", 0))
        assert begun == ([] if alive else [RestartOrder.SHUTDOWN_FIRST])
