"""Files that the reloader takes for output of the server, and files that it does not."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from worker._reload.outputs import Outputs, Processes, Rollouts, _open_for_writing

WARNING = "Reloader: in each of the last 3 rollouts only this changed: "


def at(time: float) -> datetime:
    return datetime.fromtimestamp(time, tz=timezone.utc)


class Servers:
    """The state of two servers and other processes, and the times at which they are replaced."""

    def __init__(self) -> None:
        self.state: dict[str, dict[str, Any]] = {
            "Sanic-Main": {"pid": 1},
            "Sanic-Reloader-0": {"server": False, "state": "STARTED", "start_at": at(0)},
            "Sanic-Server-9-0": {"server": True, "state": "FAILED", "start_at": at(0)},
        }
        for number in range(2):
            self.state[f"Sanic-Server-{number}-0"] = {"server": True, "start_at": at(0)}
            self.renew(number, 0, 1)

    def renew(self, number: int, started: float, ready: float | None) -> None:
        self.state[f"Sanic-Server-{number}-0"] |= {
            "restart_at": at(started) if started else None,
            "state": "STARTED" if ready is None else "ACKED",
            "serving": ready is not None,
            "ready_at": at(started if ready is None else ready),
        }

    def roll(self, begun: float) -> None:
        """A rollout that takes four seconds."""
        self.renew(0, begun + 1, begun + 2)
        self.renew(1, begun + 3, begun + 4)


class TestProcesses:
    def test_renewed_at_is_the_time_of_the_last_replacement(self) -> None:
        servers = Servers()
        processes = Processes(servers.state)
        assert processes.renewed_at(0) == 1
        assert processes.renewed_at(10) == math.inf
        servers.renew(0, 11, 12)
        servers.renew(1, 13, None)
        assert processes.renewed_at(10) == math.inf
        servers.renew(1, 13, 14)
        assert processes.renewed_at(10) == 14
        assert processes.renewed_at(12) == math.inf

    def test_an_unavailable_state_has_no_processes(self) -> None:
        class Gone(dict[str, Any]):
            def keys(self) -> Any:
                raise ConnectionError

        for state in (None, {}, Gone()):
            assert Processes(state).renewed_at(0) == -math.inf
            assert Processes(state).pids() == set()

    def test_pids_are_positive_integers(self) -> None:
        entries = ({"pid": 7}, {"pid": None}, {"pid": "8"}, {}, {"pid": -1})
        assert Processes({str(number): entry for number, entry in enumerate(entries)}).pids() == {7}


class TestRollouts:
    @pytest.fixture
    def servers(self) -> Servers:
        return Servers()

    @pytest.fixture
    def rollouts(self, servers: Servers) -> Rollouts:
        return Rollouts(Processes(servers.state))

    def rolls(self, servers: Servers, rollouts: Rollouts, changed: list[dict[str, float]]) -> list[set[str]]:
        """Each rollout is requested because of the changes in the one before."""
        found = []
        rollouts.note({"a.py": 9})
        rollouts.request(10)
        for number, paths in enumerate(changed, 1):
            servers.roll(10 * number)
            found.append(rollouts.note({path: 10 * number + time for path, time in paths.items()}))
            rollouts.request(10 * number + 9.9)
        return found

    def test_files_changed_in_three_rollouts_are_output(self, servers: Servers, rollouts: Rollouts) -> None:
        """The next change shows it."""
        found = self.rolls(servers, rollouts, [{"x": 1, "y": 3.9}] * 4)
        assert found == [set(), set(), set(), {"x", "y"}]

    @pytest.mark.parametrize(
        "changed",
        [
            [{"x": 1}, {"x": 1}, {"x": 1, "y": 1}, {"x": 1}, {"x": 1}, {"y": 1}, {"x": 1}, {"x": 1}],
            [{"x": 4.3}] * 8,
            [{"x": 1}, {"x": 1}, {"x": 5}] * 3,
            [{"x": 1}, {"x": 1}, {"y": 1}] * 3,
        ],
        ids=["another", "after it", "once after it", "twice"],
    )
    def test_files_without_changes_in_three_rollouts_are_no_output(
        self, servers: Servers, rollouts: Rollouts, changed: list[dict[str, float]]
    ) -> None:
        assert not any(self.rolls(servers, rollouts, changed))

    def test_changes_in_one_rollout_count_once(self, servers: Servers, rollouts: Rollouts) -> None:
        """A file that is saved very often while the workers start is no output."""
        rollouts.request(10)
        servers.renew(0, 11, None)
        for number in range(20):
            assert rollouts.note({"x": 11 + number / 10}) == set()
            rollouts.request(11.01 + number / 10)
        servers.roll(20)
        assert rollouts.note({"x": 40}) == set()

    def test_no_output_without_a_state(self) -> None:
        rollouts = Rollouts(Processes(None))
        for number in range(10):
            rollouts.request(10 * number)
            assert rollouts.note({"x": 10 * number + 1}) == set()


class TestWrittenInRollouts:
    def find(self, outputs: Outputs, servers: Servers, paths: list[Path], modules: set[str]) -> set[str]:
        """Change these files in three rollouts, and once more."""
        found: set[str] = set()
        outputs.request(10)
        for number in range(1, 5):
            servers.roll(10 * number)
            found |= outputs.found_by({str(path): 10 * number + 1 for path in paths}, modules)
            outputs.request(10 * number + 5)
        return found

    def test_output_is_ignored_and_logged(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        servers, path = Servers(), tmp_path / "out" / "x.txt"
        outputs = Outputs(servers.state, [str(tmp_path)], ())
        assert outputs.among({str(path)}, ()) == set()
        assert self.find(outputs, servers, [path], set()) == {str(path)}
        assert outputs.among({str(path), f"{path}.1", f"{path}y"}, ()) == {str(path), f"{path}.1"}
        (message,) = caplog.messages
        assert message == (
            f"{WARNING}{path}. The servers write it, so it is not watched any more. Add it to "
            "reload_ignore (SANIC_WORKER_RELOAD_IGNORE='/out/x.txt') to ignore it from the start. A ! before "
            "it has it watched."
        )

    @pytest.mark.parametrize("name", ["a.py", "fast.so", "page.html", "kept/x.txt"])
    def test_code_and_kept_files_are_only_logged(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
    ) -> None:
        servers, path = Servers(), tmp_path / name
        outputs = Outputs(servers.state, [str(tmp_path)], ("*.bin", "!kept/"))
        assert self.find(outputs, servers, [path, tmp_path / "x"], {str(tmp_path / "page.html")}) == set()
        assert outputs.among({str(path)}, ()) == set()
        (message,) = caplog.messages
        assert message.startswith(f"{WARNING}{path}")
        assert message.endswith(
            f"If the servers write it, add it to reload_ignore (SANIC_WORKER_RELOAD_IGNORE='/{name},/x')."
        )


WRITER = """\
import os, sys
opened = [open(path, mode) for path, mode in zip(sys.argv[1::2], sys.argv[2::2])]
print(flush=True)
sys.stdin.read()
"""


@contextmanager
def writing(*files: tuple[Path, str]) -> Iterator[int]:
    """Start a process that has files open while the body runs."""
    arguments = [str(part) for file in files for part in file]
    command = [sys.executable, "-c", WRITER, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.communicate(b"")


class TestOpenFiles:
    @pytest.fixture
    def made(self, tmp_path: Path) -> Callable[[str], Path]:
        def made(name: str) -> Path:
            (tmp_path / name).touch()
            return tmp_path / name

        return made

    def test_of_a_server_are_output(
        self, made: Callable[[str], Path], caplog: pytest.LogCaptureFixture
    ) -> None:
        files = [(made(mode), mode) for mode in ("w", "a", "r+", "r")]
        paths = {str(path) for path, _ in files}
        with writing(*files) as pid, caplog.at_level(logging.INFO, "sanic.root"):
            assert Outputs(None, (), ()).among(paths, ()) == set()
            outputs = Outputs({"X": {"pid": pid}}, (), ())
            for _ in range(2):
                assert outputs.among(paths, ()) == {str(path) for path, mode in files if mode != "r"}
        assert len(caplog.messages) == 3
        assert f"Reloader: not watching {files[0][0]}. The server has it open for writing." in caplog.messages

    def test_are_output_until_replaced_by_another_file(self, made: Callable[[str], Path]) -> None:
        path, page = made("audit.txt"), made("page.html")
        with writing((path, "a")) as pid:
            outputs = Outputs({"X": {"pid": pid}}, (), ())
            assert outputs.among({str(path)}, ()) == {str(path)}
        assert outputs.among({str(path), str(page)}, ()) == {str(path)}
        moved = path.rename(path.with_name("elsewhere"))
        assert outputs.among({str(moved)}, ()) == {str(moved)}
        path.touch()
        assert outputs.among({str(path)}, ()) == set()

    @pytest.mark.parametrize(
        ("name", "after", "others"),
        [
            (
                "audit.txt",
                [
                    "audit.txt.1",
                    "audit.txt.2026-11-27",
                    "audit.txt.1.gz",
                    "audit.2026-11-27_10-00-00_123.txt",
                ],
                ["audit.html", "audit.txt.html", "audit.txt2", "other.txt.1"],
            ),
            (
                "data",
                ["data-journal", "data-wal", "data-shm", "data-mj1234"],
                ["data.html", "data.py", "data-x"],
            ),
        ],
    )
    def test_rotated_and_sidecar_files_are_output(
        self, made: Callable[[str], Path], name: str, after: list[str], others: list[str]
    ) -> None:
        path = made(name)
        with writing((path, "a")) as pid:
            outputs = Outputs({"X": {"pid": pid}}, (), ())
            outputs.among({str(path)}, ())
            paths = {str(path.with_name(one)) for one in (*after, *others)}
            assert outputs.among(paths, ()) == {str(path.with_name(one)) for one in after}

    def test_code_is_output_only_while_open(self, made: Callable[[str], Path]) -> None:
        path = made("a.py")
        with writing((path, "a")) as pid:
            outputs = Outputs({"X": {"pid": pid}}, (), ())
            assert outputs.among({str(path)}, ()) == {str(path)}
        assert outputs.among({str(path)}, ()) == set()

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
    def test_of_another_user_are_unknown(self, made: Callable[[str], Path]) -> None:
        """Nothing is known of another user's process."""
        path = made("audit.txt")
        with writing((path, "a")) as pid:
            assert [*_open_for_writing(pid)]
            child = os.fork()
            if child == 0:
                try:
                    os.setgid(65534)
                    os.setuid(65534)
                    os._exit(10 + len([*_open_for_writing(pid)]))
                finally:
                    os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 10
            assert [*_open_for_writing(2**22)] == []

    def test_are_remembered_up_to_a_limit(
        self, made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("worker._reload.outputs.MAX_REMEMBERED", 2)
        paths = [made(name) for name in "abc"]
        outputs = Outputs(None, (), ())
        for path in paths:
            with path.open("w"):
                assert outputs.among({str(path)}, ()) == {str(path)}
        assert outputs.among({*map(str, paths)}, ()) == {str(path) for path in paths[1:]}
