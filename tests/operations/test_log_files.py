"""Log files that another program renames, as logrotate does: SIGUSR1 reopens them in all processes."""

from __future__ import annotations

import os
from pathlib import Path
from signal import SIGUSR1

import pytest
from integration.harness import Server
from integration.tools import wait_until

pytestmark = pytest.mark.operations

TARGET = "apps.rotated:app"
NAMES = {"plain.log", "rotating.log", "watched.log"}
# The number of a request before the test.
FIRST = 1_000_000
METHODS = pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])


def opened(pid: int) -> set[str]:
    """Return the names of the log files that a process has open."""
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.add(Path(os.readlink(entry)).name)
        except OSError:
            continue
    return {name for name in found if ".log" in name}


def rotate(server: Server, turn: int) -> None:
    for name in NAMES:
        os.rename(server.cwd / name, server.cwd / f"{name}.{turn}")
    server.signal(SIGUSR1)


def started(tmp_path: Path, method: str, own: str = "") -> Server:
    server = Server.run(TARGET, cwd=tmp_path, start_method=method, env={"OWN": own})
    server.wait_ready()
    server.settled(2)
    server.wait_events("waits")

    def has_logged() -> bool:
        server.get(f"/log/{FIRST}")
        return all(opened(entry["pid"]) == NAMES for entry in server.settled(2).values())

    wait_until(has_logged, "the files open in both servers")
    return server


def users(server: Server) -> list[int]:
    """Return the processes that have log files open."""
    return [pid for pid in server.processes() if opened(pid)]


@METHODS
def test_every_process_goes_on_in_the_new_files_and_no_record_is_lost(method: str, tmp_path: Path) -> None:
    with started(tmp_path, method) as server:
        before = set(server.processes())
        waiter = server.events("waits")[0].pid
        expected = {*users(server)} - {waiter}
        assert len(expected) >= 3
        number, rounds = 0, 3
        for turn in range(1, rounds + 1):
            rotate(server, turn)
            for _ in range(20):
                server.get(f"/log/{number}")
                number += 1
            server.wait_line("Reopened 3 log files; told 2 processes")
            for pid in expected:
                wait_until(lambda pid=pid: opened(pid) == NAMES, f"the new files in {pid}")  # type: ignore[misc]
        assert set(server.processes()) == before
        for name in NAMES:
            files = [tmp_path / f"{name}.{turn}" for turn in range(1, rounds + 1)] + [tmp_path / name]
            lines = [line for file in files for line in file.read_text().splitlines()]
            numbers = sorted(int(line.split()[1]) for line in lines if line.startswith("request"))
            assert [one for one in numbers if one < FIRST] == [*range(number)]
        assert "Traceback" not in server.log()


def test_a_file_that_was_not_renamed_keeps_its_content(tmp_path: Path) -> None:
    with started(tmp_path, "spawn") as server:
        server.get("/log/1")
        server.signal(SIGUSR1)
        server.wait_line("Reopened 3 log files")
        server.get("/log/2")
        wait_until(lambda: "request 2" in (tmp_path / "plain.log").read_text(), "the second line")
        assert "request 1" in (tmp_path / "plain.log").read_text()


def test_a_file_that_cannot_be_reopened_is_named_and_stays(tmp_path: Path) -> None:
    with started(tmp_path, "spawn") as server:
        os.rename(tmp_path / "plain.log", tmp_path / "plain.log.1")
        (tmp_path / "plain.log").mkdir()
        server.signal(SIGUSR1)
        server.wait_line("Reopened 2 log files")
        server.wait_line(r"Cannot reopen the log file .*plain\.log: Is a directory")
        server.get("/log/1")
        wait_until(lambda: "request 1" in (tmp_path / "plain.log.1").read_text(), "the line")


def test_a_handler_of_the_application_stays_in_a_worker(tmp_path: Path) -> None:
    with started(tmp_path, "spawn", own="python") as server:
        server.signal(SIGUSR1)
        server.wait_events("own handler", 2)
        assert len(server.settled(2)) == 2


def test_a_handler_of_the_application_stays_in_all_processes(tmp_path: Path) -> None:
    """It is one that was not set from Python."""
    with started(tmp_path, "spawn", own="faulthandler") as server:
        server.signal(SIGUSR1)
        server.wait_line("most recent call first")
        assert len(server.settled(2)) == 2
        assert "Reopened" not in server.log()
