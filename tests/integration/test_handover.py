"""A zero-downtime restart that does not complete."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from .harness import Server
from .tools import wait_until

Run = Callable[..., Server]

pytestmark = pytest.mark.ours


def test_the_previous_workers_stay_when_new_ones_fail(run: Run, tmp_path: Path) -> None:
    server = run("apps.gated:app").wait_ready()
    before = server.settled(2)
    (tmp_path / "gate").write_text("exit")
    server.post("/m/restart", {"all_workers": True, "zero_downtime": True})
    (failed,) = server.wait_events("exit")
    line = server.wait_line(rf"{failed.process} \[{failed.pid}\]")
    assert "exited with code 3" in line.text
    assert "Keeping the previous worker; rollout aborted, 1 worker not restarted" in line.text

    def restored() -> bool:
        return {n: e["pid"] for n, e in server.settled(2).items()} == {n: e["pid"] for n, e in before.items()}

    wait_until(restored, "the old ones in the table")
    server.post("/m/scale", {"num_workers": 2})
    server.wait_line("No change needed")
    assert restored()
    (tmp_path / "gate").unlink()
    server.post("/m/restart", {"all_workers": True, "zero_downtime": True})
    wait_until(lambda: not restored(), "new ones in the table")
    wait_until(lambda: not {e["pid"] for e in before.values()} & set(server.processes()), "the old ones gone")
    server.settled(2)
    assert server.stop() == 0


@pytest.mark.parametrize("zero_downtime", [True, False])
def test_a_stop_in_the_middle_of_a_restart(run: Run, tmp_path: Path, zero_downtime: bool) -> None:
    server = run("apps.gated:app").wait_ready()
    server.settled(2)
    server.wait_events("after_server_start", 2)
    (tmp_path / "gate").write_text("hold")
    server.post("/m/restart", {"all_workers": True, "zero_downtime": zero_downtime})
    server.wait_events("hold")
    assert server.stop() == 0
    # With SHUTDOWN_FIRST the previous process has exited already.
    assert len(server.events("after_server_stop")) == 2
    assert server.log("err") == ""


def test_a_second_restart_replaces_starting_workers(run: Run, tmp_path: Path) -> None:
    server = run("apps.gated:app").wait_ready()
    before = server.settled(2)
    (tmp_path / "gate").write_text("hold")
    server.post("/m/restart", {"all_workers": True, "zero_downtime": True})
    held = {event.pid for event in server.wait_events("hold")}
    (tmp_path / "gate").unlink()
    server.post("/m/restart", {"all_workers": True, "zero_downtime": True})
    old = {entry["pid"] for entry in before.values()} | held
    wait_until(lambda: not old & set(server.processes()), "held and old ones gone")
    assert not old & {entry["pid"] for entry in server.settled(2).values()}
    assert server.stop() == 0
