"""Signals that ask the main process for a change."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from support.running import House, errors, logged, until, wait_for_end

ONE, TWO = "Sanic-Server-0-0", "Sanic-Server-1-0"

pytestmark = [pytest.mark.usefixtures("main_is_heard"), pytest.mark.slow]


def taken(caplog: pytest.LogCaptureFixture) -> int:
    """Return the number of signals that the main process has taken."""
    return sum(line.startswith("Received signal ") for line in [*caplog.messages])


class TestSignals:
    def test_sighup_restarts_all_servers(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        house = House(tmp_path, number=2)

        def act() -> None:
            old = {said.name: said.pid for said in house.said("ready", 2)}
            house.all_acked()
            os.kill(os.getpid(), signal.SIGHUP)
            for name, pid in old.items():
                wait_for_end(pid)
                assert house.until(name, state="ACKED", serving=True, starts=2)["pid"] != pid

        house.run(act)
        assert errors(caplog) == []

    def test_sigttin_and_sigttou_scale_by_one(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        house = House(tmp_path)

        def act() -> None:
            house.all_acked()
            os.kill(os.getpid(), signal.SIGTTIN)
            house.until(TWO, state="ACKED", serving=True)
            os.kill(os.getpid(), signal.SIGTTOU)
            until(lambda: set(house.state.copy()) == {"Sanic-Main", ONE}, "one less")
            os.kill(os.getpid(), signal.SIGTTOU)
            logged(caplog, "Cannot scale to 0 workers.")

        house.run(act)
        assert len(errors(caplog)) == 1

    def test_scaling_signals_during_the_start_are_obeyed_later(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Each signal adds or removes one, counted from the number at the time it is obeyed."""
        house = House(tmp_path, "acks_behind_the_gate")

        def act() -> None:
            house.said("at the gate")
            for count, signum in enumerate(
                (signal.SIGTTIN, signal.SIGTTIN, signal.SIGTTOU, signal.SIGTTIN), 1
            ):
                os.kill(os.getpid(), signum)
                until(lambda count=count: taken(caplog) == count, "it taken")
            house.plan("serves")
            house.open_gate()
            scalings = lambda: [line for line in [*caplog.messages] if line.startswith("Scaling from")]  # noqa: E731
            until(lambda: len(scalings()) == 4, "each obeyed")
            assert scalings()[-1] == "Scaling from 2 to 3 workers"
            until(lambda: house.manager.num_server == 3, "three servers")
            house.all_acked()

        house.run(act)

    def test_an_ignored_sighup_stays_ignored(self, tmp_path: Path) -> None:
        """As under `nohup`."""
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            house = House(tmp_path)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTTIN) == house.manager._loop.on_signal
            house.run(lambda: house.said("ready") and None)
        finally:
            signal.signal(signal.SIGHUP, before)
