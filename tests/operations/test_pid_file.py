"""The pid file of a real server, and the permissions of the files it makes."""

from __future__ import annotations

import os
from pathlib import Path
from signal import SIGHUP, SIGKILL, SIGUSR2

import pytest
from integration.harness import Server

from .upgrading import DONE, Upgraded, write

pytestmark = pytest.mark.operations

TARGET = "apps.inspected:app"


def test_the_file_is_there_while_the_server_runs(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with Server.run(TARGET, f"--pid-file={path}", cwd=tmp_path) as server:
        server.wait_ready()
        assert path.read_text() == f"{server.pid}\n"
        server.signal(SIGHUP)
        server.wait_line("Restart finished")
        second = Server.run(TARGET, f"--pid-file={path}", cwd=tmp_path)
        with second:
            assert second.wait() == 1
        last = second.log("err").splitlines()[-1]
        assert last.startswith(
            f"sanic-worker: The pid file {path} is that of the running process {server.pid}."
        )
        assert "Traceback" not in second.log()
        assert path.read_text() == f"{server.pid}\n"
        assert server.stop() == 0
        assert not path.exists()


def test_a_stale_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with Server.run(TARGET, f"--pid-file={path}", cwd=tmp_path) as first:
        first.wait_ready()
        first.stop(SIGKILL)
    assert path.exists()
    with Server.run(TARGET, f"--pid-file={path}", cwd=tmp_path) as server:
        server.wait_ready()
        assert path.read_text() == f"{server.pid}\n"
        # The file of another server by now.
        path.write_text("1\n")
        assert server.stop() == 0
        assert path.read_text() == "1\n"


def test_a_failed_start_removes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with Server.run("apps.broken:app", f"--pid-file={path}", cwd=tmp_path) as server:
        assert server.wait() == 1
    assert not path.exists()


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_the_umask_holds_for_log_files(method: str, tmp_path: Path) -> None:
    with Server.run("apps.rotated:app", "--umask=027", cwd=tmp_path, start_method=method) as server:
        server.wait_ready()
        server.wait_events("waits")
        server.get("/log/1")
        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.glob("*.log")}
        assert set(modes.values()) == {0o640}, modes
        masks = {
            Path(f"/proc/{pid}/status").read_text().split("Umask:")[1].split()[0]
            for pid in server.processes()
        }
        assert masks == {"0027"}
    assert os.umask(0o022) == 0o022


def test_an_upgrade_that_the_file_cannot_follow(tmp_path: Path) -> None:
    """Its directory vanishes: during an upgrade, the error is in the log; before one, that is refused."""
    write(tmp_path, 1)
    (tmp_path / "run").mkdir()
    (tmp_path / "vanishing.py").write_text(
        "import pathlib, shutil\nfrom upgraded import app\n\n\n@app.before_server_start\n"
        "async def vanish(_):\n    if pathlib.Path('gate').exists():\n"
        "        shutil.rmtree('run', ignore_errors=True)\n"
    )
    path = tmp_path / "run" / "pid"
    with Upgraded.run("vanishing:app", f"--pid-file={path}", cwd=tmp_path) as server:
        assert isinstance(server, Upgraded)
        server.wait_ready().settled(2)
        (tmp_path / "gate").touch()
        since = server.begin()
        server.matched(DONE, since)
        server.wait_line("Cannot write the pid file", since=since)
        server.settled(2)
        os.kill(server.main, SIGUSR2)
        server.wait_line("the user of this process may not write in the directory of the pid file")
