"""The parts of `sanic-worker check` that start no process: its arguments, its findings, its text."""

from __future__ import annotations

import json
import re
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from worker import cli
from worker.cli.check import arguments, command, imports, text
from worker.cli.check.arguments import UsageError
from worker.cli.check.exits import ExitCode
from worker.cli.check.findings import Findings
from worker.cli.check.stand_in import is_stand_in, stand_in

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
SECTION = PAGE.partition("### Check it first")[2].partition("\n### ")[0]


class TestArguments:
    def test_its_options_stand_anywhere_among_those_of_the_server(self) -> None:
        given = "--json shop:app -w 4 --get /a --max-surge 2 -p 80 --expect 204 --get /b --imports -3 "
        given += "--timeout 2.5 --cert c.pem --header"
        options = arguments.parse([*given.split(), "Accept: text/html"])
        assert " ".join(options.server) == "shop:app -w 4 --max-surge 2 -p 80 -3 --cert c.pem"
        assert (options.paths, options.expected, options.timeout) == (["/a", "/b"], 204, 2.5)
        assert options.headers == [("Accept", "text/html")]
        assert options.imports
        assert options.json

    def test_no_option_is_required(self) -> None:
        options = arguments.parse(["shop:app"])
        assert (options.paths, options.headers, options.expected, options.timeout) == ([], [], None, None)
        assert options.limit == 30.0
        assert not options.imports
        assert not options.json

    @pytest.mark.parametrize(
        "args",
        [
            [],
            ["--json"],
            ["kill", "--pid", "1"],
            ["inspect"],
            ["shop:app", "exec", "x"],
            ["shop:app", "stop"],
            ["shop:app", "--get", "health"],
            ["shop:app", "--get", "/a b"],
            ["shop:app", "--get", "/a\nb"],
            ["shop:app", "--get"],
            ["shop:app", "--expect", "20"],
            ["shop:app", "--expect", "ok"],
            ["shop:app", "--timeout", "0"],
            ["shop:app", "--timeout", "nan"],
            ["shop:app", "--header", "Accept"],
            ["shop:app", "--header", "A b: c"],
            ["shop:app", "--header", "A: b\r\nC: d"],
        ],
    )
    def test_a_mistake_is_refused_in_one_line(
        self, args: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(UsageError):
            arguments.parse(args)
        with pytest.raises(SystemExit) as ended:
            cli.main(["check", *args])
        assert ended.value.code == ExitCode.USAGE
        said = capsys.readouterr()
        assert said.out == ""
        assert re.fullmatch(r"sanic-worker: .*\n", said.err)

    @pytest.mark.parametrize("args", [["--help"], ["shop:app", "-h"]])
    def test_the_help_has_the_options_and_the_exit_codes(
        self, args: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as ended:
            cli.main(["check", *args])
        assert ended.value.code == 0
        said = capsys.readouterr().out
        assert said.startswith("usage: sanic-worker check [options] TARGET")
        for option in re.findall(r"^\| `(--\w+)", SECTION, re.MULTILINE):
            assert f"  {option}" in said
        for code in ExitCode:
            assert re.search(rf"^  {code:<5}{code.meaning}$", said, re.MULTILINE)

    def test_a_module_named_check_is_served_by_its_full_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ran: list[Any] = []
        monkeypatch.setattr(command, "run", ran.append)
        monkeypatch.setattr("worker.cli.sanic_command.run", lambda args: ran.append(["Sanic", *args]))
        cli.main(["check:app"])
        cli.main(["check", "check:app"])
        assert ran == [["Sanic", "check:app"], ["check", "check:app"]]


def test_the_page_lists_the_exit_codes_and_the_options() -> None:
    rows = dict(re.findall(r"^\| (\d+) \| (.*) \|$", SECTION, re.MULTILINE))
    assert {int(code): meaning.replace("`", "") for code, meaning in rows.items()} == {
        int(code): code.meaning for code in ExitCode
    }
    options = {name for action in arguments.make_parser()._actions for name in action.option_strings}
    assert {*re.findall(r"^\| `(--\w+)", SECTION, re.MULTILINE)} == options - {"-h", "--help"}


def begin(name: str, at: float, process: str = "worker") -> dict[str, Any]:
    return {"event": "begin", "key": name, "name": name, "at": at, "process": process}


def end(name: str, at: float, problem: dict[str, str] | None = None) -> dict[str, Any]:
    return {"event": "end", "key": name, "at": at, "process": "worker", "problem": problem, "note": ""}


def problem(text: str = "ValueError: no") -> dict[str, str]:
    return {"text": text, "where": "app.py:3", "traceback": "Traceback\nValueError: no\n"}


@pytest.fixture
def findings() -> Findings:
    """Return the findings of a start up to `ready`."""
    found = Findings("shop:app")
    for number, name in enumerate(["import", "ready"]):
        found.apply(begin(name, number))
        found.apply(end(name, number + 0.5))
    return found


class TestFindings:
    def test_a_start_and_a_stop_are_fine(self, findings: Findings) -> None:
        findings.apply({"event": "exit", "code": 0})
        assert findings.conclude(0, 9.0) == []
        assert findings.code is ExitCode.FINE
        report = findings.report()
        assert (report["ok"], report["failed"], report["error"], report["seconds"]) == (True, None, None, 1.5)
        assert [step["seconds"] for step in report["steps"]] == [0.5, 0.5]

    def test_the_first_failed_step_is_the_failure(self, findings: Findings) -> None:
        findings.apply(begin("outer", 2.0))
        findings.apply(begin("inner", 3.0))
        findings.apply(end("inner", 4.0, problem()))
        findings.apply(end("outer", 5.0, problem("RuntimeError: later")))
        findings.conclude(1, 9.0)
        report = findings.report()
        assert (report["exit_code"], report["failed"]) == (1, "inner")
        assert report["error"] == "ValueError: no (app.py:3)"
        assert report["steps"][3]["traceback"] == problem()["traceback"]

    @pytest.mark.parametrize(
        ("code", "text"),
        [
            (-signal.SIGSEGV, "the worker was killed by SIGSEGV"),
            (-63, "the worker was killed by signal 63"),
            (7, "the worker ended with exit code 7"),
        ],
    )
    def test_a_step_that_ends_with_the_worker_says_how(
        self, findings: Findings, code: int, text: str
    ) -> None:
        findings.apply(begin("before_server_start", 2.0))
        findings.apply({"event": "exit", "code": code})
        (step,) = findings.conclude(1, 3.0)
        assert (step.name, step.error, step.seconds) == ("before_server_start", text, 1.0)
        assert findings.code is ExitCode.FAILED

    def test_an_end_before_it_was_ready_is_a_failure(self) -> None:
        findings = Findings("shop:app")
        findings.apply(begin("before_server_start", 0.0))
        findings.apply({"event": "exit", "code": 0})
        findings.conclude(0, 1.0)
        assert findings.code is ExitCode.FAILED
        assert "before it was ready" in findings.report()["error"]

    def test_an_end_in_the_middle_of_a_step_is_a_failure(self, findings: Findings) -> None:
        findings.apply(begin("GET /", 2.0))
        findings.apply({"event": "exit", "code": 0})
        (step,) = findings.conclude(0, 3.0)
        assert step.error == "the process ended with exit code 0 before this step was done"
        report = findings.report()
        assert (report["ok"], report["exit_code"], report["failed"]) == (False, 1, "GET /")

    @pytest.mark.parametrize(
        "line",
        [
            b"Main  2026-11-29 01:44:34 +0000 INFO: packages: none",
            b"[2026-11-29 01:44:34 +0000] [77] [DEBUG] Process ack",
        ],
    )
    def test_a_line_of_the_log_is_no_reason_for_an_end(self, findings: Findings, line: bytes) -> None:
        for said in (b"no database", line):
            findings.add_output(said)
        findings.conclude(9, 3.0)
        assert findings.report()["error"] == "the main process ended with exit code 9: no database"

    @pytest.mark.parametrize(
        ("last", "name"),
        [
            ("after_server_stop", "end of the worker"),
            ("main_process_stop", "end of the main process"),
            ("routes", "the server"),
        ],
    )
    def test_an_overrun_after_the_last_step_names_the_process(
        self, findings: Findings, last: str, name: str
    ) -> None:
        findings.apply(begin(last, 2.0))
        findings.apply(end(last, 3.0))
        findings.apply({"event": "overrun", "stacks": ""})
        findings.conclude(None, 9.0)
        assert (findings.report()["failed"], findings.code) == (name, ExitCode.TIMEOUT)

    def test_the_message_of_a_mistake_replaces_its_error(self) -> None:
        findings = Findings("shop:app")
        findings.apply(begin("import", 0.0, "main"))
        findings.apply(end("import", 1.0, problem()))
        findings.add_output(b"sanic-worker: shop has no app")
        findings.conclude(2, 1.0)
        report = findings.report()
        assert (report["exit_code"], report["failed"], report["error"]) == (2, "import", "shop has no app")

    def test_an_overrun_names_the_step_that_is_under_way(self, findings: Findings) -> None:
        findings.apply({"event": "limit", "at": 1.0, "seconds": 2.0})
        assert findings.limit == (3.0, 2.0)
        findings.apply(begin("GET /", 2.0))
        findings.apply({"event": "overrun", "stacks": "Thread MainThread:"})
        findings.conclude(None, 4.0)
        report = findings.report()
        assert (report["exit_code"], report["failed"]) == (3, "GET /")
        assert report["error"] == "not done within 2 s"
        assert report["stacks"] == "Thread MainThread:"

    def test_an_error_outside_of_all_steps_is_a_step_of_its_own(self, findings: Findings) -> None:
        findings.apply({"event": "error", "problem": problem()})
        findings.conclude(1, 3.0)
        assert findings.report()["failed"] == "the server"
        assert findings.report()["error"] == "ValueError: no (app.py:3)"

    def test_output_is_kept_in_part_and_steers_no_terminal(self, findings: Findings) -> None:
        for _ in range(1000):
            findings.add_output(b"x" * 5000)
        findings.add_output(b"\xff\x1b[2J\r")
        findings.conclude(1, 3.0)
        output = findings.report()["output"]
        assert len(output) <= 25
        assert max(map(len, output)) <= 1000
        assert output[-1] == "\ufffd\\x1b[2J"


class TestText:
    def test_a_step_is_one_line(self, findings: Findings) -> None:
        step = findings.steps[0]
        assert text.step_line(step) == "ok    import                      500 ms"
        step.error = "ValueError: a\nb"
        assert text.step_line(step) == "FAIL  import                      500 ms  ValueError: a b"

    def test_the_traceback_is_shown_once(
        self, findings: Findings, capsys: pytest.CaptureFixture[str]
    ) -> None:
        trace = 'Traceback (most recent call last):\n  File "a.py", line 1, in <module>\nValueError: no'
        findings.apply(begin("routes", 2.0))
        findings.apply(end("routes", 3.0, {**problem(), "traceback": trace}))
        for line in ["before", *trace.split("\n"), "after"]:
            findings.add_output(line.encode())
        findings.conclude(1, 9.0)
        text.show(findings, None)
        said = capsys.readouterr().out
        assert said.count("Traceback (most recent call last)") == 1
        assert "  before\n  after\n" in said
        assert said.endswith("\nsanic-worker: shop:app fails in routes: ValueError: no (app.py:3)\n")

    def test_nothing_but_the_result_is_said_of_a_good_start(
        self, findings: Findings, capsys: pytest.CaptureFixture[str]
    ) -> None:
        findings.add_output(b"Starting worker")
        findings.conclude(0, 9.0)
        text.show(findings, None)
        assert capsys.readouterr().out == "sanic-worker: shop:app starts, serves and stops (1.5 s)\n"


class TestImports:
    LINES = (
        b"import time: self [us] | cumulative | imported package",
        b"import time:       900 |        900 | encodings",
        b"import time: begin",
        b"import time:       100 |        100 |   shop.views",
        b"Hello",
        b"import time:       200 |        300 | shop.server",
        b"import time: end 0.500000 shop",
        b"import time:       700 |        700 | late",
    )

    def test_only_those_of_the_application_count(self) -> None:
        reader = imports.ImportReader()
        assert [line for line in self.LINES if not reader.takes(line)] == [b"Hello"]
        found = reader.result()
        assert [one["name"] for one in found["longest"]] == ["shop", "shop.server", "shop.views"]
        assert found["count"] == 3
        assert found["seconds"] == pytest.approx(0.5)
        assert found["longest"][1] == {"name": "shop.server", "own": 0.0002, "cumulative": 0.0003}

    def test_the_ten_longest_are_listed(self) -> None:
        reader = imports.ImportReader()
        reader.takes(b"import time: begin")
        for number in range(50):
            reader.takes(b"import time: %9d | %10d | m%d" % (number, number, number))
        reader.takes(b"import time: end 0.001225 m49")
        found = reader.result()
        assert [one["name"] for one in found["longest"]] == [f"m{number}" for number in range(49, 39, -1)]
        assert found["count"] == 50

    def test_the_process_that_took_longer_counts(self) -> None:
        reader = imports.ImportReader()
        for name in ("short", "long"):
            reader.takes(b"import time: begin")
            reader.takes(b"import time: end 0.%d00000 %s" % (len(name) - 3, name.encode()))
        reader.takes(b"import time: begin")
        assert [one["name"] for one in reader.result()["longest"]] == ["short"]

    def test_an_application_without_output_has_none(self) -> None:
        assert json.dumps(imports.ImportReader().result()) == '{"seconds": 0, "count": 0, "longest": []}'


class TestStandIn:
    def test_it_cannot_listen(self) -> None:
        with stand_in() as sock:
            assert is_stand_in(sock)
            with pytest.raises(OSError, match="Invalid argument"):
                sock.listen()

    def test_other_sockets_are_none(self, tmp_path: Path) -> None:
        assert not is_stand_in(None)
        with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:
            unix.bind(str(tmp_path / "x"))
            assert not is_stand_in(tcp)
            assert not is_stand_in(unix)
