"""``top`` in a real terminal: its frames, its keys, and the terminal afterwards."""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.fake_inspector import FakeInspector, operation, servers, worker
from support.running import until
from support.terminals import Terminal, Tmux

from worker.cli.inspect.exits import ExitCode

pytestmark = pytest.mark.slow

FOOT = "q quit"


@pytest.fixture
def inspector() -> Iterator[FakeInspector]:
    with FakeInspector() as found:
        found.log("process_exited", "Sanic-Server-0-0 [4001] exited", "error")
        yield found


@pytest.fixture
def top(inspector: FakeInspector) -> Iterator[Terminal]:
    with Terminal(*command(inspector)) as terminal:
        terminal.shows(FOOT)
        yield terminal


def command(inspector: FakeInspector, *args: str) -> list[str]:
    return [sys.executable, "-m", "worker", "top", *inspector.args, *args]


def show(inspector: FakeInspector, **fields: Any) -> None:
    """Send another status, a second later."""
    vars(inspector).update(fields)
    inspector.push()


def line_of(frame: list[str], name: str) -> list[str]:
    """Return the cells in the line of a worker."""
    (line,) = [line for line in frame if line.startswith(name)]
    return line.split()


class TestFrames:
    def test_rates_follow_from_two_statuses(self, inspector: FakeInspector, top: Terminal) -> None:
        for second in (1, 2, 3):
            show(inspector, workers=[worker(requests=1000 + 250 * second, cpu_seconds=12.5 + second / 2)])
            frame = top.shows(f":00:0{second}")
        frame = top.shows("req/s 250")
        assert line_of(frame, "Sanic-Server-0-0")[1:6] == ["ready", "4250", "1m01s", "0", "250"]
        assert "cpu 50 %" in frame[1]

    def test_the_header_has_the_totals(self, top: Terminal) -> None:
        first, second = top.frame[:2]
        assert first.startswith("shop [4249]  up 1h02m  sanic-worker 1.0.0 (native), Sanic 25.12.1")
        assert second.startswith("workers 2/2 ready  req/s -  in flight 4  cpu -  rss 160 MiB  restarts 2")

    def test_a_running_operation_has_a_bar(self, inspector: FakeInspector, top: Terminal) -> None:
        show(inspector, operations=[operation()])
        frame = top.shows("3 of 8 workers replaced")
        assert re.match(r"restart 3f2a9c01d4e8 \S{20} 3 of 8 workers replaced, by inspector", frame[2])
        show(inspector, operations=[])
        top.until(lambda frame: frame[2].startswith("NAME"), "no bar")

    def test_events_come_as_they_happen(self, inspector: FakeInspector, top: Terminal) -> None:
        top.shows("[4001] exited")
        inspector.log("process_ready", "a new one \x1b[31m", "warning")
        inspector.push()
        assert "a new one \\x1b[31m" in "\n".join(top.shows("a new one"))

    def test_a_frame_fills_the_screen_at_every_size(self, inspector: FakeInspector, top: Terminal) -> None:
        show(inspector, workers=servers(64))
        top.shows("Sanic-Server-9-0")
        for rows, columns in ((50, 160), (10, 60), (6, 40), (24, 80)):
            top.resize(rows, columns)

            def fits(frame: list[str], rows: int = rows, columns: int = columns) -> bool:
                return len(frame) == rows and max(map(len, frame)) in range(columns - 30, columns + 1)

            frame = top.until(fits, f"a frame of {rows} lines")
            assert any(line.startswith("Sanic-Server-0-0") for line in frame)

    def test_the_selected_worker_stays_on_the_screen(self, inspector: FakeInspector, top: Terminal) -> None:
        show(inspector, workers=servers(64))
        top.shows("Sanic-Server-9-0")
        top.type("\x1b[F")
        assert any(line.startswith("Sanic-Server-63-0") for line in top.shows("Sanic-Server-63-0"))
        top.type("\x1b[A\x1b[A" + "R")
        top.shows("Restart Sanic-Server-61-0?")

    def test_the_help_lists_the_keys(self, top: Terminal) -> None:
        top.type("?")
        top.shows("restart all workers with zero downtime")
        top.type("?")
        top.shows("Sanic-Server-0-0")


class TestKeys:
    @pytest.mark.parametrize(
        ("keys", "question", "posted"),
        [
            ("R", "Restart Sanic-Server-0-0?", {"names": ["Sanic-Server-0-0"], "zero_downtime": True}),
            ("jR", "Restart Sanic-Server-1-0?", {"names": ["Sanic-Server-1-0"], "zero_downtime": True}),
            ("Z", "Restart all workers with zero downtime?", {"zero_downtime": True}),
            ("-", "Stop one worker?", {"replicas": "-1"}),
        ],
    )
    def test_a_request_is_sent_after_a_yes(
        self, inspector: FakeInspector, top: Terminal, keys: str, question: str, posted: Any
    ) -> None:
        top.type(keys)
        top.shows(question)
        top.type("n")
        top.shows(FOOT)
        assert inspector.posted == []
        top.type(keys[-1] + "y")
        top.shows("3f2a9c01d4e8 pending")
        path = {"R": "/restart", "Z": "/reload", "-": "/scale"}[keys[-1]]
        assert inspector.posted == [(path, posted, "respond-async")]

    def test_one_more_worker_is_started_at_once(self, inspector: FakeInspector, top: Terminal) -> None:
        top.type("+")
        top.shows("Scale 3f2a9c01d4e8 pending")
        assert inspector.posted == [("/scale", {"replicas": "+1"}, "respond-async")]

    @pytest.mark.parametrize(
        ("state", "shown"),
        [("done", "done in 1.2 s: 3 of 8 workers"), ("failed", "failed in 1.2 s: 3 of 8 workers")],
    )
    def test_the_end_of_a_request_is_shown(
        self, inspector: FakeInspector, top: Terminal, state: str, shown: str
    ) -> None:
        top.type("Zy")
        top.shows("Reload 3f2a9c01d4e8 pending")
        # Any key brings back the line of the keys.
        top.type("j")
        top.shows(FOOT)
        inspector.end(inspector.operations[0], state, seconds=1.2)
        top.shows(f"Reload 3f2a9c01d4e8 {shown}")

    def test_a_refused_request_is_shown(self, inspector: FakeInspector, top: Terminal) -> None:
        inspector.refusals["/scale"] = (400, "replicas would be 65: 64 at most")
        top.type("+")
        top.shows("Start one more worker: replicas would be 65: 64 at most")

    def test_the_order_is_that_of_a_column(self, inspector: FakeInspector, top: Terminal) -> None:
        show(inspector, workers=[worker("A", rss_bytes=1 << 20), worker("B", rss_bytes=2 << 20)])
        top.shows("B ")

        def order(expected: str) -> None:
            top.until(
                lambda frame: re.findall("^([AB]) ", "\n".join(frame), re.MULTILINE) == [*expected], expected
            )

        order("AB")
        top.type("m")
        order("BA")
        top.type("i")
        order("AB")


class TestConnection:
    def test_it_is_lost_and_found_again(self, inspector: FakeInspector, top: Terminal) -> None:
        inspector.stop()
        frame = top.shows("Trying again. ")
        assert any(line.startswith("Sanic-Server-0-0") for line in frame)
        inspector.workers = [worker("Sanic-Server-7-0")]
        inspector.start()
        top.shows("Sanic-Server-7-0")
        top.shows(FOOT)

    def test_a_wrong_key_is_an_error_before_the_first_frame(self) -> None:
        with FakeInspector(key="secret") as inspector, Terminal(*command(inspector, "-k", "x")) as terminal:
            assert terminal.ended() == ExitCode.REFUSED
            assert "Bad API key" in terminal.output
            assert "\x1b[?1049h" not in terminal.output

    def test_the_interval_is_that_of_the_stream(self, inspector: FakeInspector) -> None:
        with Terminal(*command(inspector, "--interval", "0.5")) as terminal:
            terminal.shows(FOOT)
            until(lambda: any(one.path == "/status?interval=0.5" for one in inspector.requests), "a stream")


class TestTheEnd:
    @pytest.mark.parametrize(
        ("end", "code"),
        [
            (lambda top: top.type("q"), 0),
            (lambda top: top.type("\x03"), ExitCode.INTERRUPTED),
            (lambda top: top.type("\x1c"), 128 + signal.SIGQUIT),
            (lambda top: top.process.send_signal(signal.SIGTERM), 128 + signal.SIGTERM),
            (lambda top: top.process.send_signal(signal.SIGHUP), 128 + signal.SIGHUP),
        ],
        ids=["q", "Ctrl-C", "Ctrl-backslash", "SIGTERM", "SIGHUP"],
    )
    @pytest.mark.parametrize("connected", [True, False])
    def test_the_terminal_is_restored(
        self,
        inspector: FakeInspector,
        top: Terminal,
        end: Callable[[Terminal], None],
        code: int,
        connected: bool,
    ) -> None:
        if not connected:
            inspector.stop()
            top.shows("Trying again. ")
        assert not top.is_restored
        end(top)
        assert top.ended() == code
        assert top.is_restored
        assert "Traceback" not in top.output

    def test_a_terminal_that_takes_no_output_does_not_keep_it(
        self, inspector: FakeInspector, top: Terminal
    ) -> None:
        top.hold()
        show(inspector, workers=servers(64))
        top.process.send_signal(signal.SIGTERM)
        assert top.process.wait(20) == 128 + signal.SIGTERM

    def test_the_terminal_is_restored_after_an_exception(
        self, inspector: FakeInspector, top: Terminal
    ) -> None:
        nameless = worker()
        del nameless["name"]
        show(inspector, workers=[nameless])
        assert top.ended() == 1
        assert top.is_restored
        # The reason is readable: it stands below, on the screen of the shell.
        assert "KeyError" in top.output.rpartition("\x1b[?1049l")[2]


@pytest.mark.skipif(not shutil.which("tmux"), reason="there is no tmux")
class TestTmux:
    def test_a_session(self, inspector: FakeInspector, tmp_path: Path) -> None:
        with Tmux(tmp_path) as tmux:
            tmux.type(shlex.join(command(inspector)), "Enter")
            screen = tmux.shows(FOOT)
            assert screen.startswith("shop [4249]")
            assert "READY$" not in screen
            tmux.type("Down")
            tmux.type("R")
            tmux.shows("Restart Sanic-Server-1-0?")
            tmux.type("y")
            tmux.shows("Restart 3f2a9c01d4e8 pending")
            tmux.type("q")
            screen = tmux.shows("READY$", 2)
            assert "shop [4249]" not in screen
            # Keys are shown again.
            tmux.type("echo visible")
            assert "READY$ echo visible" in tmux.shows("visible")

    def test_the_shell_has_the_terminal_while_it_is_suspended(
        self, inspector: FakeInspector, tmp_path: Path
    ) -> None:
        with Tmux(tmp_path) as tmux:
            tmux.type(shlex.join(command(inspector)), "Enter")
            tmux.shows(FOOT)
            tmux.type("C-z")
            screen = tmux.shows("Stopped")
            assert "shop [4249]" not in screen
            tmux.type("echo visible", "Enter")
            tmux.shows("READY$ echo visible")
            tmux.type("fg", "Enter")
            tmux.shows("shop [4249]")
            tmux.type("q")
            tmux.shows("READY$ fg")
