"""The verbs of the client, against an inspector of the tests: requests, output and exit codes."""

from __future__ import annotations

import itertools
import json
import re
import signal
import socket
import sys
import threading
from time import monotonic
from typing import Any

import pytest
from support.fake_inspector import FIRST_OPERATION, FakeInspector, event, operation, worker
from support.running import until
from support.terminals import ESCAPES, Terminal

from worker.cli.inspect.address import Address
from worker.cli.inspect.client import Client
from worker.cli.inspect.events import follow
from worker.cli.inspect.exits import ExitCode

from .conftest import Run, exit_code, running


class TestShowing:
    def test_ps_is_a_table(self, inspector: FakeInspector, run: Run) -> None:
        failing = worker("Sanic-Server-1-0", phase="backoff", next_restart_in=2.5, why="exit code 1")
        inspector.workers = [worker(), failing]
        code, out, err = run("ps", *inspector.args)
        assert (code, err) == (0, "")
        heading, first, second = out.splitlines()
        assert heading.split()[:4] == ["NAME", "PHASE", "PID", "UPTIME"]
        assert first.split()[:6] == ["Sanic-Server-0-0", "ready", "4250", "1m01s", "0", "1000"]
        assert second.rstrip().endswith("next start in 2.5 s; exit code 1")

    def test_ps_is_sorted_by_name(self, inspector: FakeInspector, run: Run) -> None:
        names = ["Sanic-Server-10-0", "Sanic-Inspector-0", "Sanic-Server-2-0"]
        inspector.workers = [worker(name, server="Server" in name) for name in names]
        out = run("ps", *inspector.args)[1]
        assert [line.split()[0] for line in out.splitlines()[1:]] == [names[2], names[0], names[1]]

    def test_a_table_in_a_file_is_not_cut(self, inspector: FakeInspector, run: Run) -> None:
        why = "reason " * 50
        inspector.workers = [worker(why=why)]
        assert why.strip() in run("ps", *inspector.args)[1]

    @pytest.mark.parametrize("args", [["inspect"], ["inspect", "ps"], ["ps"], ["inspect", "status"]])
    @pytest.mark.parametrize("flag", ["--json", "--raw"])
    def test_json_is_the_result_unchanged(
        self, inspector: FakeInspector, run: Run, args: list[str], flag: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        later = inspector.status | {"new": {"later": ["key", None, 1.5, "\u00e4"]}}
        monkeypatch.setattr(FakeInspector, "status", later)
        code, out, err = run(*args, *inspector.args, flag)
        assert (code, json.loads(out), err) == (0, later, "")
        assert len(out.splitlines()) == 1

    def test_status_is_a_few_lines(self, inspector: FakeInspector, run: Run) -> None:
        inspector.workers = [worker()]
        inspector.server = {"workers_wanted": 4, "backlog": None}
        inspector.operations = [operation()]
        code, out, _ = run("inspect", *inspector.args, "status")
        assert code == 0
        facts = dict(line.split(maxsplit=1) for line in out.splitlines())
        assert facts["workers"] == "1 of 4 ready"
        assert facts["backlog"] == "-"
        assert facts["operation"] == "Restart 3f2a9c01d4e8 running: 3 of 8 workers replaced"

    def test_metrics_are_printed_as_they_are(self, inspector: FakeInspector, run: Run) -> None:
        assert run("inspect", "metrics", *inspector.args) == (0, "sanic_worker_up 1\n", "")

    def test_info_is_that_of_the_stock_client(self, inspector: FakeInspector, run: Run) -> None:
        code, out, _ = run("inspect", "info", *inspector.args)
        assert (code, json.loads(out)) == (0, {"info": {"app": "shop"}, "workers": {}})

    def test_operations_are_a_table(self, inspector: FakeInspector, run: Run) -> None:
        inspector.operations = [operation("failed", id="aa", reason="SyntaxError"), operation("done")]
        code, out, _ = run("inspect", "operations", *inspector.args)
        heading, first, second = out.splitlines()
        assert (code, heading.split()[:3]) == (0, ["ID", "KIND", "STATUS"])
        assert first.split()[:3] == ["aa", "restart", "failed"]
        assert first.rstrip().endswith("3 of 8 workers replaced; SyntaxError")
        assert second.split()[:3] == ["3f2a9c01d4e8", "restart", "done"]
        as_json = json.loads(run("inspect", "operations", "--json", *inspector.args)[1])
        assert as_json == {"operations": inspector.operations}


@pytest.mark.slow
class TestEvents:
    def test_each_is_a_line(self, inspector: FakeInspector, run: Run) -> None:
        inspector.events = [event(1, "one"), event(2, "two \x1b[2J", "error")]
        code, out, _ = run("events", *inspector.args)
        assert code == 0
        assert [re.sub(r"\S+ \S+:\S+", "TIME", line) for line in out.splitlines()] == [
            "    1  TIME  info     one",
            "    2  TIME  error    two \\x1b[2J",
        ]

    @pytest.mark.parametrize(
        ("args", "expected"),
        [
            ([], [1, 2, 3]),
            (["--since=1"], [2, 3]),
            (["--since=2026-03-01T12:00:02Z"], [2, 3]),
            (["--since=1s"], []),
            (["-n", "1"], [3]),
            (["--since=1", "-n", "5"], [2, 3]),
            (["-n", "0"], []),
        ],
    )
    def test_a_range_of_them(
        self, inspector: FakeInspector, run: Run, args: list[str], expected: list[int]
    ) -> None:
        inspector.events = [event(1), event(2), event(3)]
        code, out, _ = run("events", *args, "--json", *inspector.args)
        found = json.loads(out)
        assert code == 0
        assert [one["seq"] for one in found["events"]] == expected
        assert found["last"] == 3

    def test_follow_prints_new_ones_over_a_restart_of_the_inspector(self, inspector: FakeInspector) -> None:
        inspector.events = [event(1), event(2)]
        command = [sys.executable, "-m", "worker", "events", "-f", "--json", *inspector.args]
        with running(command) as client:

            def next_one() -> int:
                assert client.stdout is not None
                number: int = json.loads(client.stdout.readline())["seq"]
                return number

            assert [next_one(), next_one()] == [1, 2]
            inspector.log("process_ready", "a new one")
            inspector.push()
            assert next_one() == 3
            inspector.stop()
            inspector.events.append(event(4))
            inspector.start()
            assert next_one() == 4
            # Another server: its events begin anew.
            inspector.stop()
            inspector.events = [event(1)]
            inspector.start()
            assert next_one() == 1
            client.send_signal(signal.SIGINT)
            assert client.wait(20) == ExitCode.INTERRUPTED

    def test_follow_goes_on_over_a_restart_long_after_the_last_event(
        self, inspector: FakeInspector, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def start_with_a_new_event() -> None:
            inspector.events.append(event(2))
            inspector.start()

        # The first pause is after the end of the stream, the second one after an attempt that was refused.
        times, pauses = [0.0], iter([lambda: None, start_with_a_new_event])

        class Pause:
            def wait(self, _: float) -> None:
                next(pauses)()

        def stop_after_a_quiet_hour() -> None:
            until(lambda: len(inspector.requests) == 3, "the stream and the check of its numbers")
            times.append(3600.0)
            inspector.stop()

        monkeypatch.setattr("worker.cli.inspect.events.monotonic", lambda: times[-1])
        monkeypatch.setattr("worker.cli.inspect.events.Pause", Pause)
        inspector.events = [event(1)]
        followed = follow(Client(Address("127.0.0.1", inspector.port)), 0)
        assert next(followed)["seq"] == 1
        stopper = threading.Thread(target=stop_after_a_quiet_hour)
        stopper.start()
        assert next(followed)["seq"] == 2
        stopper.join()
        followed.close()


class TestActions:
    @pytest.mark.parametrize(
        ("args", "path", "body"),
        [
            (["reload"], "/reload", None),
            (["reload", "--zero-downtime"], "/reload", {"zero_downtime": True}),
            (["restart", "A", "B"], "/restart", {"names": ["A", "B"], "zero_downtime": False}),
            (["restart", "A", "--zero-downtime"], "/restart", {"names": ["A"], "zero_downtime": True}),
            (["scale", "3"], "/scale", {"replicas": 3}),
            (["scale", "-1"], "/scale", {"replicas": "-1"}),
            (["shutdown"], "/shutdown", None),
            (["upgrade"], "/upgrade", None),
        ],
    )
    def test_the_request_of_each(
        self, inspector: FakeInspector, run: Run, args: list[str], path: str, body: Any
    ) -> None:
        code, out, err = run("inspect", *inspector.args, *args)
        assert (code, err) == (0, "")
        assert inspector.posted == [(path, body, "")]
        assert out.splitlines()[-1] == "Requested as operation 3f2a9c01d4e8"

    def test_the_text_of_the_server_is_printed(self, inspector: FakeInspector, run: Run) -> None:
        out = run("inspect", "scale", "3", *inspector.args)[1]
        assert out == "Scaling to 3\nRequested as operation 3f2a9c01d4e8\n"

    @pytest.mark.parametrize(
        "action", [["reload"], ["restart", "A"], ["scale", "3"], ["shutdown"], ["upgrade"]]
    )
    @pytest.mark.parametrize("flag", ["--json", "--raw"])
    def test_json_has_the_operation(
        self, inspector: FakeInspector, run: Run, action: list[str], flag: str
    ) -> None:
        code, out, err = run("inspect", *action, flag, *inspector.args)
        assert (code, json.loads(out), err) == (0, inspector.operations[0], "")

    @pytest.mark.parametrize(
        ("args", "out"),
        [
            (["greet"], "hello\n"),
            (["nothing"], ""),
            (["nothing", "--raw"], "null\n"),
            (["echo", "a", "--x=1"], '{"args": ["a"], "kwargs": {"x": "1"}}\n'),
            (["--json", "greet"], '"hello"\n'),
        ],
    )
    def test_a_command_of_the_application(
        self, inspector: FakeInspector, run: Run, args: list[str], out: str
    ) -> None:
        assert run("inspect", *inspector.args, *args) == (0, out, "")

    def test_a_text_that_steers_a_terminal_is_escaped_there(self, inspector: FakeInspector, run: Run) -> None:
        args = ["inspect", *inspector.args, "steer"]
        assert run(*args) == (0, "a\x1b[2J\tb\r\nc\n", "")
        with Terminal(sys.executable, "-m", "worker", *args) as terminal:
            assert terminal.ended() == 0
        assert terminal.output.split() == ["a\\x1b[2J", "b\\r", "c"]

    def test_an_action_is_one_segment_of_the_path(self, inspector: FakeInspector, run: Run) -> None:
        assert run("inspect", *inspector.args, "../a b?c")[0] == ExitCode.FAILED
        assert inspector.posted == [("/..%2Fa%20b%3Fc", None, "")]


@pytest.mark.slow
class TestWaiting:
    STATES = (operation("pending"), operation(), operation(done=6), operation("done", text="8 of 8 replaced"))

    @pytest.mark.parametrize("action", [["reload"], ["restart", "A"], ["scale", "3"]])
    def test_an_action_is_waited_for(self, inspector: FakeInspector, run: Run, action: list[str]) -> None:
        inspector.steps = [operation("pending"), *self.STATES]
        code, out, err = run("inspect", *action, "--wait", *inspector.args)
        expected = f"{action[0].capitalize()} 3f2a9c01d4e8 done in 1.2 s: 8 of 8 replaced\n"
        assert (code, out, err) == (0, expected, "")
        assert inspector.requests[0].headers["Prefer"] == "respond-async"
        asked = [request.path for request in inspector.requests[1:]]
        assert asked == ["/operations/3f2a9c01d4e8?wait=0.500"] * 4

    def test_an_operation_is_waited_for_by_its_id(self, inspector: FakeInspector, run: Run) -> None:
        inspector.operations = [operation(id="aa/b")]
        inspector.steps = [*self.STATES]
        code, out, _ = run("inspect", "operation", "aa/b", "--wait", "--json", *inspector.args)
        assert (code, json.loads(out)["status"]) == (0, "done")
        assert inspector.requests[0].path == "/operations/aa%2Fb?wait=0.500"

    def test_a_failed_operation_has_its_reason_and_an_exit_code(
        self, inspector: FakeInspector, run: Run
    ) -> None:
        failed = operation("failed", reason="SyntaxError: x", rolled_back=["Sanic-Server-0-0"])
        expected = (
            "sanic-worker: Reload {:x} failed in 1.2 s: 3 of 8 workers replaced; SyntaxError: x; "
            "kept the previous process of Sanic-Server-0-0\n"
        )
        inspector.steps = [operation("pending"), failed]
        code, out, err = run("inspect", "reload", "--wait", *inspector.args)
        assert (code, out, err) == (ExitCode.FAILED, "", expected.format(FIRST_OPERATION))
        inspector.steps = [operation("pending"), failed]
        code, out, err = run("inspect", "reload", "--wait", "--json", *inspector.args)
        assert (code, json.loads(out)["reason"]) == (ExitCode.FAILED, "SyntaxError: x")
        assert err == expected.format(FIRST_OPERATION + 1)
        assert run("inspect", "operation", "3f2a9c01d4e8", *inspector.args)[0] == ExitCode.FAILED

    def test_the_end_of_the_time_is_told_apart(
        self, inspector: FakeInspector, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The time is over when the operation is looked at again.
        looks = itertools.count()
        clock = lambda: monotonic() + (0 if next(looks) < 2 else 60)  # noqa: E731
        monkeypatch.setattr("worker.cli.inspect.operations.monotonic", clock)
        monkeypatch.setattr("worker.cli.inspect.operations.GRACE", 20.0)
        inspector.steps = [operation("pending"), operation()]
        code, out, err = run("inspect", "reload", "--wait", "--timeout=30", *inspector.args)
        assert (code, out) == (ExitCode.STILL_RUNNING, "")
        assert err == "sanic-worker: Reload 3f2a9c01d4e8 running: 3 of 8 workers replaced\n"
        waits = [request.path.partition("?wait=")[2] for request in inspector.requests[1:]]
        assert waits == ["0.500", "0.000"]

    def test_an_action_that_is_not_answered_in_time(self, run: Run) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            args = ["-H127.0.0.1", f"-p{silent.getsockname()[1]}", "--timeout=0.3"]
            before = monotonic()
            code, _, err = run("inspect", "reload", "--wait", *args)
        assert (code, "in time" in err) == (ExitCode.UNREACHABLE, True)
        assert monotonic() - before < 20

    def test_an_inspector_that_hangs_during_the_wait(
        self, inspector: FakeInspector, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        answer = inspector.look_at
        monkeypatch.setattr(inspector, "look_at", lambda one, _: answer(one, 60))
        inspector.begin("reload")
        before = monotonic()
        args = ["--wait", "--timeout=0.3", *inspector.args]
        code, _, err = run("inspect", "operation", f"{FIRST_OPERATION:x}", *args)
        assert (code, "in time" in err) == (ExitCode.UNREACHABLE, True)
        assert monotonic() - before < 20

    def test_a_restart_of_the_inspector_does_not_end_the_wait(
        self, inspector: FakeInspector, capsys: pytest.CaptureFixture[str]
    ) -> None:
        args = ["inspect", "reload", "--wait", *inspector.args]
        codes: list[Any] = []

        client = threading.Thread(target=lambda: codes.append(exit_code(*args)))
        client.start()
        until(lambda: len(inspector.requests) > 2, "a wait")
        inspector.stop()
        inspector.end(inspector.operations[0], "done", seconds=1.2)
        inspector.start()
        client.join(20)
        assert codes == [0]
        assert "done in 1.2 s" in capsys.readouterr().out


class TestProgress:
    @pytest.mark.slow
    def test_a_terminal_shows_a_bar_and_then_the_outcome(self, inspector: FakeInspector) -> None:
        inspector.steps = [operation("pending"), operation(), operation("done", text="all done")]
        command = [sys.executable, "-m", "worker", "inspect", "reload", "--wait", *inspector.args]
        with Terminal(*command) as terminal:
            assert terminal.ended() == 0
        shown = ESCAPES.sub("", terminal.output)
        assert "3 of 8 workers replaced \u2501" in shown
        assert shown.rstrip().splitlines()[-1].endswith("Reload 3f2a9c01d4e8 done in 1.2 s: all done")
