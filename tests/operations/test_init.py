"""The main process as PID 1, which has no default actions for signals and inherits all orphans."""

from __future__ import annotations

import os
import subprocess
import textwrap
from contextlib import suppress
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGKILL, SIGQUIT, SIGTERM, SIGUSR2, Signals

import pytest
from integration.tools import wait_until

from .contained import APPLICATION, Contained, needs_namespaces

pytestmark = [pytest.mark.operations, pytest.mark.slow, needs_namespaces()]


def application(code: str) -> str:
    return APPLICATION + textwrap.dedent(code)


WAITS = 'print("waiting", flush=True), threading.Event().wait()'

# The main process starts processes of its own, and asks for their ends at its end. A request makes orphans.
PARENT = application(
    """
    import subprocess, sys

    ENDS = ["sh", "-c", "exit 7"]
    # Orphans: each process is started by one that exits at once.
    DOUBLE_FORKS = "i=0; while [ $i -lt 1000 ]; do (true &); i=$((i+1)); done"
    children = []

    @app.main_process_ready
    async def start(app):
        children.append(subprocess.Popen(ENDS))
        children.append(subprocess.Popen(ENDS, start_new_session=True))

    @app.main_process_stop
    async def stop(app):
        print("exit codes", [child.wait() for child in children], flush=True)

    @app.get("/orphans")
    async def orphans(request):
        subprocess.run(["sh", "-c", DOUBLE_FORKS], check=True)
        subprocess.run(["setsid", "--wait", "sh", "-c", DOUBLE_FORKS], check=True)
        return json(True)
    """
)


@pytest.mark.parametrize("number", [SIGTERM, SIGINT])
def test_a_stop_signal_ends_it_in_order(number: Signals, tmp_path: Path) -> None:
    with Contained(tmp_path) as server:
        assert server.answers()["pid"] > 1
        assert server.stop(number) == 0
        server.wait_line("Server Stopped")


def test_sighup_reloads_and_sigquit_has_no_effect(tmp_path: Path) -> None:
    with Contained(tmp_path) as server:
        first = server.answers()["pid"]
        server.signal(SIGQUIT)
        server.signal(SIGHUP)
        wait_until(lambda: server.answers()["pid"] != first, "another worker")
        assert server.stop() == 0


@pytest.mark.parametrize(
    ("runner", "reason"),
    [
        ([], "this process is PID 1"),
        (["sh", "-c", '"$@"; true', "sh"], "the parent process, sh, takes the end"),
    ],
    ids=["PID 1", "child of a script"],
)
def test_an_upgrade_that_would_end_the_container_is_refused(
    runner: list[str], reason: str, tmp_path: Path
) -> None:
    with Contained(tmp_path, runner=runner) as server:
        server.answers()
        (main,) = server.children() if runner else [server.init]

        def refusal() -> str:
            since = server.mark()
            os.kill(main, SIGUSR2)
            return server.wait_line("Cannot upgrade: ", since=since).text

        # Until the start is over, that is the reason.
        wait_until(lambda: reason in refusal(), "the reason")
        os.kill(main, SIGTERM)
        assert server._process.wait(15) == 0


def test_a_kill_from_outside_leaves_no_process(tmp_path: Path) -> None:
    with Contained(tmp_path) as server:
        server.answers()
        assert server.stop(SIGKILL) != 0
        assert not server.processes()


def test_sigterm_during_the_import_of_the_application_ends_it(tmp_path: Path) -> None:
    code = application(f"import threading\n{WAITS}")
    with Contained(tmp_path, code=code) as server:
        server.wait_line("^waiting")
        assert server.stop() == 128 + SIGTERM


def test_a_second_sigterm_before_the_loop_ends_it(tmp_path: Path) -> None:
    code = application(
        f"""
        import threading

        @app.main_process_ready
        async def wait(app):
            {WAITS}
        """
    )
    with Contained(tmp_path, code=code) as server:
        server.wait_line("^waiting")
        server.signal(SIGTERM)

        def ended() -> bool:
            # Two signals before the first one is handled count as one.
            server.signal(SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                server._process.wait(3)
            return server.exit_code is not None

        wait_until(ended, "the end")
        assert server.wait() == 128 + SIGTERM


def test_thousands_of_orphans_are_collected_and_other_children_keep_their_exit_codes(tmp_path: Path) -> None:
    with Contained(tmp_path, code=PARENT) as server:
        server.answers()
        before = server.children()
        for _ in range(2):
            server.get("/orphans", timeout=120)
        # The last orphans may still run.
        wait_until(lambda: server.children().keys() == before.keys(), "no other child")
        # The two zombies that the application has not waited for stay.
        assert [*server.children().values()].count("Z") == 2
        assert server.stop() == 0
        server.wait_line(r"exit codes \[7, 7\]")


def test_workers_of_a_killed_preload_process_are_collected(tmp_path: Path) -> None:
    """They are children of PID 1 then."""
    with Contained(tmp_path) as server:
        first = server.answers()["pid"]
        # It has a title after its imports.
        (preload,) = wait_until(
            lambda: [pid for pid, title in server.processes().items() if "preload process" in title],
            "the preload process",
        )
        os.kill(preload, SIGKILL)
        server.wait_line(r"preload process .* was killed by SIGKILL")
        server.signal(SIGHUP)
        wait_until(lambda: server.answers()["pid"] != first, "another worker", timeout=30)
        wait_until(lambda: "Z" not in server.children().values(), "no zombie")
        assert server.stop() == 0
