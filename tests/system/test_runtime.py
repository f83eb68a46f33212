"""The files by which commands find running servers: private, written as a whole, and never in the way."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from worker._system import runtime
from worker._system.runtime import RunningServer

SERVER: RunningServer = {
    "pid": os.getpid(),
    "app": "shop",
    "url": "http://127.0.0.1:6457",
    "started": "2026-01-31T12:00:00+00:00",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the only directory that is tried. It does not exist yet."""
    found = tmp_path / "sanic-worker"
    monkeypatch.setattr(runtime, "directories", lambda: [str(found)])
    return found


class TestDirectories:
    def test_that_of_the_session_comes_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        own = f"/tmp/sanic-worker-{os.getuid()}"
        assert runtime.directories() == [f"{tmp_path}/sanic-worker", own]

    @pytest.mark.parametrize("given", [None, "", "relative", "/no/such/directory"])
    def test_without_a_session_there_is_that_of_the_user(
        self, given: str | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
        if given is not None:
            monkeypatch.setenv("XDG_RUNTIME_DIR", given)
        assert runtime.directories() == [f"/tmp/sanic-worker-{os.getuid()}"]


class TestPrivate:
    def test_a_directory_of_this_user_alone(self, tmp_path: Path) -> None:
        assert runtime.is_private(str(tmp_path))

    @pytest.mark.parametrize("mode", [0o701, 0o710, 0o720, 0o702, 0o777])
    def test_one_that_others_may_use(self, mode: int, tmp_path: Path) -> None:
        (tmp_path / "open").mkdir()
        (tmp_path / "open").chmod(mode)
        assert not runtime.is_private(str(tmp_path / "open"))

    def test_a_symlink_a_file_and_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir(mode=0o700)
        (tmp_path / "link").symlink_to("real")
        (tmp_path / "file").touch(mode=0o600)
        assert not any(runtime.is_private(str(tmp_path / name)) for name in ("link", "file", "nothing"))

    def test_one_of_another_user(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
        assert not runtime.is_private(str(tmp_path))


class TestWrite:
    def test_the_file_is_written_and_removed(self, folder: Path) -> None:
        path = folder / f"{os.getpid()}.json"
        runtime.remove(os.getpid())
        runtime.write(SERVER)
        found = json.loads(path.read_text())
        assert found == {**SERVER, "start_ticks": found["start_ticks"]}
        assert [file.stat().st_mode & 0o777 for file in (folder, path)] == [0o700, 0o600]
        # The inspector was started again.
        runtime.write({**SERVER, "url": "unix:/a"})
        assert json.loads(path.read_text())["url"] == "unix:/a"
        assert [file.name for file in folder.iterdir()] == [f"{os.getpid()}.json"]
        runtime.remove(1)
        assert path.exists()
        runtime.remove(os.getpid())
        runtime.remove(os.getpid())
        assert not [*folder.iterdir()]

    def test_a_later_process_of_the_pid_is_not_the_server(self, folder: Path) -> None:
        runtime.write(SERVER)
        found = json.loads((folder / f"{os.getpid()}.json").read_text())
        assert runtime.is_running(found)
        assert not runtime.is_running({**found, "start_ticks": found["start_ticks"] - 1})
        assert not runtime.is_running(SERVER)
        with subprocess.Popen(["true"]) as gone:
            runtime.write({**SERVER, "pid": gone.pid})
            file = json.loads((folder / f"{gone.pid}.json").read_text())
        assert not runtime.is_running(file)

    def test_a_file_of_a_process_that_is_gone_is_removed(self, folder: Path) -> None:
        gone = subprocess.Popen(["true"])
        gone.wait()
        folder.mkdir(mode=0o700)
        names = (
            f"{gone.pid}.json",
            f"{gone.pid}.json.77",
            f"{10**30}.json",
            "1.json",
            "notes",
            "\u0661.json",
        )
        for name in names:
            (folder / name).touch()
        runtime.write(SERVER)
        assert {file.name for file in folder.iterdir()} == {
            f"{os.getpid()}.json",
            *("1.json", "notes", "\u0661.json"),
        }

    def test_a_directory_that_is_not_private_stays_as_it_is(self, folder: Path) -> None:
        folder.mkdir()
        folder.chmod(0o755)
        with pytest.raises(PermissionError, match="mode 0700"):
            runtime.write(SERVER)
        assert not [*folder.iterdir()]
        (folder / "1.json").touch()
        runtime.remove(1)
        assert [*folder.iterdir()]

    def test_the_next_directory_is_used(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "file").touch()
        used = tmp_path / "used"
        tried = [str(tmp_path / name) for name in ("no/such", "file/below", "file", "used", "never")]
        monkeypatch.setattr(runtime, "directories", lambda: tried)
        runtime.write(SERVER)
        assert [*used.iterdir()]
        assert not (tmp_path / "never").exists()

    def test_without_any_directory_there_is_an_error(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(runtime, "directories", lambda: [str(tmp_path / "no" / "such")])
        with pytest.raises(FileNotFoundError):
            runtime.write(SERVER)
