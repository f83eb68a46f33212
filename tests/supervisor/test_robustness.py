"""The main process survives calls at the wrong moment and messages of the wrong shape."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.fakes import FakeBase
from support.running import House, command, environment, errors, lives, logged

from worker._child import bootstrap
from worker.process import WorkerProcess

ONE = "Sanic-Server-0-0"


pytestmark = [pytest.mark.usefixtures("main_is_heard"), pytest.mark.slow]


class Leaves:
    """An object that raises an exit in any code that inspects it."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __repr__(self) -> str:
        raise self.error(7)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, ValueError])
def test_a_message_whose_repr_raises_is_logged(
    error: type[BaseException], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    house = House(tmp_path)

    def act() -> None:
        house.said("ready")
        house.send(Leaves(error))
        logged(caplog, "Monitor received an invalid message: <Leaves")
        house.send(f"{ONE}:")
        house.said("ready", 2)

    house.run(act)
    assert len(errors(caplog)) == 1


def test_calls_during_a_stop_start_no_process(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    house = House(tmp_path, "stubborn")

    def act() -> None:
        (said,) = house.said(None)
        house.all_acked()
        os.kill(os.getpid(), signal.SIGTERM)
        logged(caplog, "Received signal SIGTERM")
        house.manager.restart()
        house.manager.scale(3)
        assert lives(said.pid)
        os.kill(said.pid, signal.SIGKILL)

    house.run(act, stops=False)
    assert len({said.pid for said in house.heard}) == 1
    assert "Scaling" not in " ".join(caplog.messages)


def test_a_second_signal_before_the_run_ends_the_main_process(tmp_path: Path) -> None:
    program = """
        import os, signal
        from multiprocessing import Pipe, get_context
        from worker import WorkerManager

        WorkerManager(1, print, {}, get_context("spawn"), Pipe(True)[::-1], {})
        signal.raise_signal(signal.SIGTERM)
        print("waits", flush=True)
        signal.raise_signal(signal.SIGTERM)
        print("still there")
        """
    ended = subprocess.run(
        command(program, cwd=tmp_path), cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert (ended.returncode, ended.stdout) == (-signal.SIGTERM, "waits\n")


class Gone(dict[str, Any]):
    """A state whose process has exited."""

    gone = False

    def __contains__(self, name: object) -> bool:
        if self.gone:
            raise ConnectionRefusedError("nobody there")
        return super().__contains__(name)


def test_a_failed_restart_does_not_stop_the_running_process() -> None:
    base: Any = type("Base", (FakeBase,), {"made": []})
    state = Gone()
    one = WorkerProcess(base, ONE, print, {}, state, True)
    one.start()
    state.gone = True
    with pytest.raises(ConnectionError, match=f"Cannot start {ONE}: the state of the workers"):
        one.restart()
    assert [made.terminated for made in base.made] == [0]


def test_the_main_process_is_no_child() -> None:
    assert not bootstrap.is_child()
