"""The events and operations that a real manager leaves in the shared state for an operator."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from time import time
from typing import Any

import pytest
from support.running import House, logged, until

from worker._control import send
from worker._state.event_log import read_events, read_operations, read_pong, read_totals
from worker._supervisor.supervisor import HELPER_GRACE

pytestmark = pytest.mark.slow

ALL = "__ALL_PROCESSES__:"
ONE = "Sanic-Server-0-0"


def told(house: House, kind: str, count: int = 1, **wanted: Any) -> list[dict[str, Any]]:
    """Wait until this many events of a type with these fields were told; return them."""

    def look() -> list[dict[str, Any]]:
        found = [event for event in read_events(house.state) if event["type"] == kind]
        found = [event for event in found if wanted.items() <= event.items()]
        return found if len(found) >= count else []

    return until(look, f"{count} events {kind} with {wanted}")


def ended(house: House, id_: str) -> dict[str, Any]:
    """Wait until an operation has ended; return it."""

    def look() -> dict[str, Any]:
        found = {one["id"]: one for one in read_operations(house.state)}
        return found[id_] if id_ in found and found[id_]["status"] in ("done", "failed") else {}

    return until(look, f"the end of the operation {id_}")


def run(folder: Path, act: Callable[[House], None], plan: str = "serves", **kwargs: Any) -> None:
    house = House(folder, plan, **kwargs)

    def acting() -> None:
        if plan in ("serves", "acks_and_exits 3"):
            told(house, "server_ready")
        act(house)

    house.run(acting)


def ready(house: House, count: int) -> list[dict[str, Any]]:
    return told(house, "process_ready", count)


class TestProcesses:
    def test_a_start_is_told_from_the_process_to_its_readiness(self, tmp_path: Path) -> None:
        def act(house: House) -> None:
            started, is_ready, server = (
                told(house, kind)[0] for kind in ("process_started", "process_ready", "server_ready")
            )
            assert started["slot"] == is_ready["slot"] == ONE
            assert started["pid"] == is_ready["pid"] == house.entry(ONE)["pid"]
            assert started["reason"] == "start"
            assert 0 < is_ready["seconds"] < 60
            assert server["workers"] == 1
            assert started["seq"] < is_ready["seq"]
            assert datetime.fromisoformat(started["time"]).tzinfo is not None

        run(tmp_path, act)

    def test_a_killed_process_is_told_with_its_signal_and_uptime(self, tmp_path: Path) -> None:
        def act(house: House) -> None:
            (first,) = ready(house, 1)
            os.kill(first["pid"], signal.SIGKILL)
            (exited,) = told(house, "process_exited")
            assert (exited["slot"], exited["pid"]) == (ONE, first["pid"])
            assert (exited["exit_code"], exited["signal"]) == (None, "SIGKILL")
            assert exited["uptime"] > 0
            assert not exited["expected"]
            assert exited["attempt"] == 1
            assert exited["next_restart_in"] > 0
            ready(house, 2)
            assert told(house, "process_started", 2)[1]["reason"] == "exit"
            totals = read_totals(house.state)
            assert totals["restarts"]["exit"] == 1
            assert totals["exits"] == {"SIGKILL": 1}
            assert house.entry(ONE)["why"].startswith(exited["text"].partition(". ")[0])

        run(tmp_path, act)

    def test_an_exit_code_is_told(self, tmp_path: Path) -> None:
        def act(house: House) -> None:
            house.said("acked")
            house.open_gate()
            (exited,) = told(house, "process_exited", exit_code=3)
            assert exited["signal"] is None

        run(tmp_path, act, "acks_and_exits 3")

    def test_a_stopped_process_is_told_as_expected(self, tmp_path: Path) -> None:
        def act(house: House) -> None:
            house.send(ALL)
            assert told(house, "process_exited")[0]["expected"]

        run(tmp_path, act)

    def test_a_process_that_ignores_its_stop_is_told_as_killed(self, tmp_path: Path) -> None:
        house = House(tmp_path, "stubborn", graceful_timeout=0.2)

        def act() -> None:
            (first,) = told(house, "process_started")
            house.said(None)
            os.kill(os.getpid(), signal.SIGTERM)
            (killed,) = told(house, "process_killed")
            assert killed["pid"] == first["pid"]
            assert "did not exit within 0.2 s of the stop" in killed["text"]

        house.run(act, stops=False)


class TestOperations:
    def test_a_named_restart_is_shown_to_its_end(self, tmp_path: Path) -> None:
        def act(house: House) -> None:
            send.request(house.publisher, ALL, "abc1", "inspector 127.0.0.1")
            operation = ended(house, "abc1")
            assert operation["kind"] == "restart"
            assert operation["status"] == "done"
            assert operation["by"] == "inspector 127.0.0.1"
            assert (operation["done"], operation["total"]) == (2, 2)
            assert operation["text"] == "2 of 2 workers replaced"
            assert operation["seconds"] > 0
            assert operation["requested_at"] < operation["ended_at"]
            (requested,) = told(house, "restart_requested")
            assert (requested["by"], requested["operation"]) == ("inspector 127.0.0.1", "abc1")
            assert requested["slots"] == [ONE, "Sanic-Server-1-0"]
            steps = told(house, "rollout_step", 2)
            assert [(step["done"], step["total"]) for step in steps] == [(1, 2), (2, 2)]
            (outcome,) = told(house, "operation_ended")
            assert (outcome["operation"], outcome["outcome"]) == ("abc1", "done")
            assert read_totals(house.state)["restarts"]["request"] == 2

        run(tmp_path, act, number=2)

    def test_a_restart_is_shown_while_it_runs(self, tmp_path: Path) -> None:
        def act(house: House) -> None:
            house.plan("acks_behind_the_gate")
            send.request(house.publisher, ALL, "abc2", "me")
            house.said("at the gate")
            (operation,) = read_operations(house.state)
            assert (operation["id"], operation["status"]) == ("abc2", "running")
            assert (operation["done"], operation["total"]) == (0, 2)
            assert operation["seconds"] is operation["ended_at"] is None
            house.open_gate(2)
            assert ended(house, "abc2")["status"] == "done"

        run(tmp_path, act, number=2)

    def test_a_restart_that_fails_names_the_reason_and_the_kept_worker(self, tmp_path: Path) -> None:
        def act(house: House) -> None:
            house.plan("exits 4")
            send.request(house.publisher, ALL, "abc3", "me")
            operation = ended(house, "abc3")
            assert operation["status"] == "failed"
            assert "exited with code 4 before it was ready" in operation["reason"]
            assert operation["rolled_back"] == [ONE]
            assert told(house, "operation_ended")[0]["outcome"] == "failed"

        run(tmp_path, act, number=2)

    def test_a_scaling_is_shown_to_its_end(self, tmp_path: Path) -> None:
        def act(house: House) -> None:
            send.request(house.publisher, "__SCALE__:3", "abc4", "me")
            operation = ended(house, "abc4")
            assert (operation["kind"], operation["status"]) == ("scale", "done")
            assert operation["text"] == "2 of 2 workers started"
            (scaled,) = told(house, "scaled")
            assert (scaled["before"], scaled["after"]) == (1, 3)
            assert (scaled["by"], scaled["operation"]) == ("me", "abc4")
            send.request(house.publisher, "__SCALE__:1", "abc5", "me")
            assert ended(house, "abc5")["text"] == "2 of 2 workers stopped"

        run(tmp_path, act)

    def test_a_scaling_down_is_done_when_the_process_has_exited(self, tmp_path: Path) -> None:
        house = House(tmp_path, "leaves_behind_the_gate", number=2)

        def act() -> None:
            ready(house, 2)
            told(house, "server_ready")
            send.request(house.publisher, "__SCALE__:1", "abd1", "me")
            house.said("SIGINT")
            (operation,) = until(lambda: read_operations(house.state), "the operation")
            assert (operation["status"], operation["done"], operation["total"]) == ("running", 0, 1)
            house.open_gate()
            assert ended(house, "abd1")["text"] == "1 of 1 worker stopped"
            house.open_gate()

        house.run(act)

    def test_an_operation_counts_from_its_request(self, tmp_path: Path) -> None:
        def act(house: House) -> None:
            message = ("__OPERATION__", ALL, "abd2", "me", time() - 60)
            house.send(message)
            operation = ended(house, "abd2")
            assert 60 < operation["seconds"] < 120

        run(tmp_path, act)

    def test_a_scaling_without_a_change_is_done(self, tmp_path: Path) -> None:
        def act(house: House) -> None:
            send.request(house.publisher, "__SCALE__:1", "abc6", "me")
            assert ended(house, "abc6")["status"] == "done"

        run(tmp_path, act)

    @pytest.mark.parametrize(
        ("command", "reason"),
        [
            ("__SCALE__:1000000", "Cannot scale to 1000000 workers"),
            ("__SCALE__:0", "Cannot scale to 0 workers."),
            ("Sanic-Nothing-0:", "no process was restarted"),
        ],
    )
    def test_a_refused_command_is_a_failed_operation(self, command: str, reason: str, tmp_path: Path) -> None:
        def act(house: House) -> None:
            send.request(house.publisher, command, "abc7", "me")
            operation = ended(house, "abc7")
            assert operation["status"] == "failed"
            assert operation["reason"].startswith(reason)

        run(tmp_path, act)

    def test_a_changed_file_is_told_with_its_name(self, tmp_path: Path) -> None:
        def act(house: House) -> None:
            house.send(f"{ALL}/srv/shop.py,/srv/cart.py")
            (changed,) = told(house, "files_changed")
            assert changed["files"] == ["/srv/shop.py", "/srv/cart.py"]
            operation = ended(house, changed["operation"])
            assert operation["kind"] == "reload"
            assert read_totals(house.state)["restarts"]["reload"] == 1

        run(tmp_path, act)

    def test_a_signal_is_told_as_the_origin(self, tmp_path: Path) -> None:
        def act(house: House) -> None:
            os.kill(os.getpid(), signal.SIGHUP)
            assert told(house, "restart_requested")[0]["by"] == "signal SIGHUP"

        run(tmp_path, act)

    def test_a_worker_is_told_as_the_origin(self, tmp_path: Path) -> None:
        house = House(tmp_path, "asks_for_a_restart_behind_the_gate")

        def act() -> None:
            (asking,) = ready(house, 1)
            house.plan("serves")
            house.open_gate()
            assert told(house, "restart_requested")[0]["by"] in (
                f"{ONE} [{asking['pid']}]",
                "an unknown process",
            )

        house.run(act)

    def test_operations_that_wait_for_the_first_start_keep_their_ids(self, tmp_path: Path) -> None:
        house = House(tmp_path, "acks_behind_the_gate")

        def act() -> None:
            house.said("at the gate")
            send.request(house.publisher, ALL, "abc8", "me")
            send.request(house.publisher, ALL, "abc9", "you")
            send.ping(house.publisher, "here")
            until(lambda: read_pong(house.state) == "here", "the answer to a ping")
            assert read_operations(house.state) == []
            house.plan("serves")
            house.open_gate()
            assert ended(house, "abc8")["by"] == "me"
            assert ended(house, "abc9")["by"] == "you"

        house.run(act)


class TestHelpers:
    """Processes that serve an operator: the inspector, for one."""

    class Answers:
        restart_policy = "always"
        absence = "It answers nobody until it runs."

        def __init__(self, journal: Any) -> None:
            self.journal = journal

        def __call__(self) -> None:
            for signum in (signal.SIGTERM, signal.SIGINT):
                signal.signal(signum, signal.SIG_IGN)
            self.journal.send((os.environ["SANIC_WORKER_NAME"], os.getpid(), "helps"))
            while True:
                signal.pause()

    def test_are_never_failed(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        limits = {"max_consecutive_failures": 2, "backoff_initial": 0.01, "backoff_max": 0.02}
        house = House(tmp_path, graceful_timeout=30, **limits)
        house.manager.manage("Helper", self.Answers(house.kwargs["journal"]), {})

        def act() -> None:
            for number in range(1, 5):
                os.kill(house.said("helps", number)[-1].pid, signal.SIGKILL)
            house.said("helps", 5)
            logged(caplog, "It answers nobody until it runs.")

        house.run(act)

    def test_do_not_hold_a_stop_up(self, tmp_path: Path) -> None:
        house = House(tmp_path, graceful_timeout=60)
        house.manager.manage("Helper", self.Answers(house.kwargs["journal"]), {})

        def act() -> None:
            house.said("helps")
            told(house, "server_ready")
            os.kill(os.getpid(), signal.SIGTERM)
            (killed,) = told(house, "process_killed")
            assert killed["slot"] == "Sanic-Helper-0"
            assert f"did not exit within {HELPER_GRACE:g} s" in killed["text"]

        house.run(act, stops=False)


class TestStops:
    @pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
    def test_a_stop_is_told_with_its_signal(self, signum: signal.Signals, tmp_path: Path) -> None:
        house = House(tmp_path, "leaves_behind_the_gate")

        def act() -> None:
            ready(house, 1)
            os.kill(os.getpid(), signum)
            assert told(house, "stop_requested")[0]["by"] == f"signal {signum.name}"
            house.open_gate()

        house.run(act, stops=False)

    def test_a_shutdown_as_an_operation_is_shown_running(self, tmp_path: Path) -> None:
        house = House(tmp_path, "leaves_behind_the_gate")

        def act() -> None:
            ready(house, 1)
            send.request(house.publisher, "__TERMINATE__", "abca", "me")
            assert told(house, "stop_requested")[0]["by"] == "me"
            look = lambda: [one for one in read_operations(house.state) if one["id"] == "abca"]  # noqa: E731
            (operation,) = until(look, "the operation")
            assert (operation["kind"], operation["status"]) == ("shutdown", "running")
            house.open_gate()

        house.run(act, stops=False)

    def test_an_operation_under_way_has_failed_when_the_server_stops(self, tmp_path: Path) -> None:
        house = House(tmp_path, "leaves_behind_the_gate")

        def act() -> None:
            ready(house, 1)
            send.request(house.publisher, ALL, "abcb", "me")
            until(lambda: read_operations(house.state), "the operation")
            os.kill(os.getpid(), signal.SIGTERM)
            assert ended(house, "abcb")["reason"] == "the server is stopping"
            house.open_gate(2)

        house.run(act, stops=False)


def test_the_log_line_of_an_exit_is_its_event(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def act(house: House) -> None:
        (first,) = ready(house, 1)
        os.kill(first["pid"], signal.SIGKILL)
        line = logged(caplog, "was killed by SIGKILL")
        assert told(house, "process_exited")[0]["text"] == line
        (record,) = [record for record in caplog.records if record.getMessage() == line]
        assert vars(record)["slot"] == ONE

    run(tmp_path, act)
