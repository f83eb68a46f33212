"""The pid file: whose it is, and that a running process keeps its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from worker._system import pid_file
from worker._system.pid_file import PidFileError


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "pid"
    pid_file._path = ""
    pid_file.follow(0)


@pytest.fixture
def other() -> Iterator[int]:
    """Another process."""
    command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        yield process.pid
        process.communicate()


def test_the_file_has_the_pid_until_the_end(path: Path) -> None:
    pid_file.write(str(path))
    assert path.read_text() == f"{os.getpid()}\n"
    assert [entry.name for entry in path.parent.iterdir()] == ["pid"]
    pid_file.remove()
    assert not path.exists()
    pid_file.remove()


@pytest.mark.parametrize(
    "content", ["", "nonsense", "-1", "0", "4194304999", "99999999999999999999", "\N{BELL}"]
)
def test_a_file_without_the_pid_of_a_process_is_replaced(content: str, path: Path) -> None:
    path.write_text(content)
    pid_file.write(str(path))
    assert path.read_text() == f"{os.getpid()}\n"


def test_the_file_of_a_running_process_is_kept(path: Path, other: int) -> None:
    path.write_text(str(other))
    with pytest.raises(PidFileError, match=f"{path} is that of the running process {other}"):
        pid_file.write(str(path))
    assert path.read_text() == str(other)
    pid_file.remove()
    assert path.exists()


def test_a_process_that_is_younger_than_the_file_is_another_one(path: Path, other: int) -> None:
    """The system has given the pid again, perhaps after it was booted."""
    path.write_text(str(other))
    before = time.time() - 60
    os.utime(path, (before, before))
    pid_file.write(str(path))
    assert path.read_text() == f"{os.getpid()}\n"


def test_a_main_process_hands_its_file_over(path: Path, other: int) -> None:
    path.write_text(str(other))
    pid_file.follow(other)
    pid_file.write(str(path))
    assert path.read_text() == str(other)
    pid_file.take_over()
    assert path.read_text() == f"{os.getpid()}\n"
    # The other way: it is not removed by the process that had it before.
    path.write_text(str(other))
    pid_file.remove()
    assert path.read_text() == str(other)


def test_a_process_that_nobody_has_collected_does_not_keep_its_file(path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        path.write_text(str(process.pid))
        pid_file.write(str(path))
        assert path.read_text() == f"{os.getpid()}\n"


def test_a_file_may_be_replaced_where_its_directory_may_be_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pid_file.may_be_replaced()
    pid_file.write(str(path))
    assert pid_file.may_be_replaced()
    # Root may write everywhere.
    monkeypatch.setattr(os, "access", lambda where, _: Path(where) != path.parent)
    assert not pid_file.may_be_replaced()


@pytest.mark.parametrize("where", ["missing/pid", "file/pid"])
def test_a_file_that_cannot_be_written_is_named(where: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PidFileError, match=f"Cannot write the pid file {tmp_path / where}: "):
        pid_file.write(str(tmp_path / where))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_regular_file_is_refused_and_stays(make: Callable[[Path], None], path: Path) -> None:
    """Root would replace `/dev/null`; the reading of a pipe without a writer would not end."""
    make(path)
    before = path.stat()
    with pytest.raises(PidFileError, match=f"{path} is no regular file"):
        pid_file.write(str(path))
    assert path.stat() == before


def test_the_file_is_not_written_through_a_link(path: Path) -> None:
    """The owner of the directory could let root overwrite any file."""
    precious = path.with_name("precious")
    precious.write_text("kept")
    path.with_name(f"pid.{os.getpid()}").symlink_to(precious)
    pid_file.write(str(path))
    assert path.read_text() == f"{os.getpid()}\n"
    assert precious.read_text() == "kept"
