"""Where the inspector of a real server listens, and how it comes back there."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGTERM
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

import psutil
import pytest

from worker._system import runtime

from .harness import Response, Server, UnixConnection
from .tools import TIMEOUT, free_port, suspend, wait_until

pytestmark = [pytest.mark.ours, pytest.mark.operations]

Run = Callable[..., Server]
INSPECTOR = "Sanic-Inspector-0"
METHODS = pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
TAKEN = r"Inspector cannot listen on .*: Address already in use.*\. The server runs without it\."


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make a directory with a short path, which is also that of the runtime files."""
    with TemporaryDirectory() as directory:
        monkeypatch.setenv("XDG_RUNTIME_DIR", directory)
        yield Path(directory)


def start(run: Run, *args: str, port: int = 0, method: str = "fork", **env: str) -> Server:
    """Start a server with an inspector, and wait until the server is ready."""
    env = {"SANIC_INSPECTOR_PORT": str(port), **env}
    server = run("apps.inspected:app", *args, workers=1, env=env, start_method=method)
    server.wait_ready().settled(1)
    return server


def entry(server: Server) -> dict[str, Any]:
    """Return the inspector's entry, as a server sees it."""
    return server.table().get(INSPECTOR, {})


def address(server: Server, but: str = "") -> str:
    """Return the URL of the inspector, once it serves there; another one than ``but``."""
    url = wait_until(
        lambda: found if (found := entry(server).get("address")) != but else None, "the address in the state"
    )
    # Without shared memory the main process does not know of a stop that Sanic loses before that.
    wait_until(lambda: ask(server, url, "POST", "/running").json["result"], "a loop that runs for good")
    return str(url)


def ask(server: Server, url: str, method: str = "GET", target: str = "/") -> Response:
    if url.startswith("unix:"):
        return over_unix(url.removeprefix("unix:"), method, target)
    return server.request(method, target, port=int(url.rpartition(":")[2]))


def answers(server: Server, url: str) -> Response | None:
    """Return the answer of an inspector that belongs to this server; ``None`` if there is none."""
    with contextlib.suppress(OSError):
        response = ask(server, url)
        if response.json["result"]["workers"]["Sanic-Main"]["pid"] == server.pid:
            return response
    return None


def over_unix(path: str, method: str = "GET", target: str = "/", **headers: str) -> Response:
    with contextlib.closing(UnixConnection(Path(path), TIMEOUT)) as connection:
        connection.request(method, target, headers={"Connection": "close", **headers})
        answer = connection.getresponse()
        return Response(answer.status, answer.read())


def lines(server: Server, text: str) -> list[str]:
    return [line for line in server.log().splitlines() if text in line]


def killed(server: Server) -> None:
    """Kill the inspector, and wait until the one that replaces it answers at the same address."""
    before = entry(server)
    os.kill(before["pid"], SIGKILL)
    wait_until(lambda: entry(server)["pid"] != before["pid"], "another inspector")
    wait_until(lambda: answers(server, before["address"]), "an answer")
    assert address(server) == before["address"]


class TestTaken:
    def test_the_second_server_takes_the_port_when_the_first_has_stopped(self, run: Run) -> None:
        port = free_port()
        first = start(run, port=port)
        assert address(first) == f"http://127.0.0.1:{port}"
        second = start(run, port=port)
        (line,) = [second.wait_line(TAKEN).text]
        for part in (f"localhost:{port}", "INSPECTOR_PORT", "Trying again every 3 s"):
            assert part in line
        waiting = entry(second)
        assert "address" not in waiting
        assert first.stop() == 0
        second.wait_line(rf"Inspector listens on http://127\.0\.0\.1:{port}$")
        assert answers(second, address(second))
        # The same process has waited: it was never restarted.
        assert entry(second)["pid"] == waiting["pid"]
        assert second.stop() == 0
        assert second.log("err").splitlines() == [line]
        assert len(lines(second, "Inspector listens on")) == 1
        assert first.log("err") == ""

    def test_a_host_that_has_no_address_yet_is_one_line(self, run: Run) -> None:
        server = start(run, port=1, SANIC_INSPECTOR_HOST="no.such.host.invalid")
        server.wait_line(r"Inspector cannot listen on no\.such\.host\.invalid:1: ")
        assert server.stop() == 0
        assert len(server.log("err").splitlines()) == 1

    @METHODS
    def test_a_stop_ends_the_wait_at_once(self, run: Run, method: str) -> None:
        def stop() -> float:
            server = start(run, port=taken.getsockname()[1], method=method)
            server.wait_line(TAKEN)
            began = monotonic()
            assert server.stop() == 0
            took = monotonic() - began
            assert len(server.log("err").splitlines()) == 1
            return took

        with socket.create_server(("127.0.0.1", 0)) as taken:
            # One try to the next takes longer. A machine that stalls does not do so three times.
            assert any(stop() < 2.5 for _ in range(3))

    def test_a_killed_main_process_ends_the_wait(self, run: Run) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            server = start(run, port=taken.getsockname()[1])
            server.wait_line(TAKEN)
            server.signal(SIGKILL)
            wait_until(lambda: not server.processes(), "all processes gone")

    @pytest.mark.soak
    def test_a_waiting_inspector_hardly_runs(self, run: Run) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            server = start(run, port=taken.getsockname()[1])
            server.wait_line(TAKEN)
            status = Path(f"/proc/{entry(server)['pid']}/status")

            def switches() -> int:
                found = dict(
                    line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line
                )
                return int(found["voluntary_ctxt_switches"])

            # The wait for the fourth switch takes at least three tries.
            first, began = switches(), monotonic()
            wait_until(lambda: switches() >= first + 4, "four switches", timeout=60)
            assert monotonic() - began > 5


class TestRestarted:
    @METHODS
    @pytest.mark.parametrize("given", [True, False])
    def test_a_killed_inspector_comes_back_on_its_port(self, run: Run, method: str, given: bool) -> None:
        server = start(run, port=free_port() if given else 0, method=method)
        url = address(server)
        for _ in range(2):
            killed(server)
            assert entry(server)["address"] == url
            response = wait_until(lambda: answers(server, url), "an answer")
            assert response.json["result"]["workers"][INSPECTOR]["address"] == url
        # A port that the system has chosen is in the log each time.
        assert len(lines(server, f"Inspector listens on {url}")) == (0 if given else 3)

    def test_a_chosen_port_that_another_process_has_taken_is_given_up(self, run: Run) -> None:
        server = start(run)
        url = address(server)
        port = int(url.rpartition(":")[2])
        pid = entry(server)["pid"]
        with contextlib.ExitStack() as stack:
            # It takes the port as soon as the inspector is gone: two sockets cannot listen on it.
            other = stack.enter_context(socket.socket())
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # The main process starts no other inspector meanwhile.
            suspend(server.pid)
            stack.callback(server.signal, SIGCONT)
            os.kill(pid, SIGKILL)

            def take() -> bool:
                with contextlib.suppress(OSError):
                    other.bind(("127.0.0.1", port))
                    return True
                return False

            wait_until(take, "the port")
            other.listen()
            server.signal(SIGCONT)
            assert answers(server, address(server, but=url))
        assert not lines(server, "cannot listen")


class TestUnix:
    @METHODS
    def test_it_listens_on_the_socket_alone(self, run: Run, folder: Path, method: str) -> None:
        path = folder / "inspector"
        server = start(run, f"--inspector-unix={path}", method=method)
        assert address(server) == f"unix:{path}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_ISSOCK(path.stat().st_mode)
        sockets = psutil.Process(entry(server)["pid"]).net_connections("inet")
        assert psutil.CONN_LISTEN not in {sock.status for sock in sockets}
        assert answers(server, f"unix:{path}")
        assert over_unix(str(path), "POST", "/scale").status == 400
        assert over_unix(str(path), Host="evil.example").status == 403
        server.wait_line(rf"runs 1 worker, inspector on unix:{path}$")
        assert server.stop() == 0
        assert not path.exists()
        assert server.log("err") == ""

    def test_a_relative_path_is_that_of_the_main_process(self, run: Run, tmp_path: Path) -> None:
        with TemporaryDirectory() as directory:
            path = Path(os.path.relpath(f"{directory}/inspector", tmp_path))
            server = start(run, f"--inspector-unix={path}")
            assert address(server) == f"unix:{directory}/inspector"
            assert server.stop() == 0

    def test_a_killed_inspector_replaces_its_socket(self, run: Run, folder: Path) -> None:
        path = folder / "inspector"
        server = start(run, f"--inspector-unix={path}")
        address(server)
        before = path.stat().st_ino
        killed(server)
        assert answers(server, f"unix:{path}")
        assert path.stat().st_ino != before
        assert server.stop() == 0
        assert not path.exists()
        assert not lines(server, "cannot listen")

    def test_the_socket_of_a_killed_server_is_replaced(self, run: Run, folder: Path) -> None:
        path = folder / "inspector"
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as stale:
            stale.bind(str(path))
        server = start(run, f"--inspector-unix={path}")
        assert answers(server, address(server))
        assert not lines(server, "cannot listen")

    def test_two_servers_with_one_path(self, run: Run, folder: Path) -> None:
        path = folder / "inspector"
        first = start(run, f"--inspector-unix={path}")
        url = address(first)
        second = start(run, f"--inspector-unix={path}")
        line = second.wait_line(TAKEN).text
        assert f"{path}: Address already in use by another server" in line
        assert line.endswith("For another address, set inspector_unix.")
        assert answers(first, url)
        assert first.stop() == 0
        second.wait_line(f"Inspector listens on {url}$")
        assert answers(second, address(second))
        assert second.stop() == 0
        assert second.log("err").splitlines() == [line]
        assert not path.exists()

    def test_the_inspector_of_a_killed_main_process_removes_its_socket(self, run: Run, folder: Path) -> None:
        path = folder / "inspector"
        server = start(run, f"--inspector-unix={path}")
        address(server)
        wait_until(lambda: answers(server, f"unix:{path}"), "an answer")
        server.signal(SIGKILL)
        wait_until(lambda: not path.exists(), "the socket removed")
        wait_until(lambda: not server.processes(), "all processes gone")
        assert not [*(folder / "sanic-worker").iterdir()]

    def test_the_key_is_needed_if_there_is_one(self, run: Run, folder: Path) -> None:
        path = folder / "inspector"
        env = {"SANIC_INSPECTOR_API_KEY": "k", "SANIC_WORKER_INSPECTOR_UNIX": str(path)}
        server = start(run, **env)
        wait_until(lambda: entry(server).get("address"), "the address")
        assert over_unix(str(path)).status == 401
        assert over_unix(str(path), Authorization="Bearer k").status == 200


class TestRuntimeFile:
    @METHODS
    def test_it_is_there_while_the_inspector_listens(self, run: Run, folder: Path, method: str) -> None:
        server = start(run, method=method)
        url = address(server)
        path = folder / "sanic-worker" / f"{server.pid}.json"
        wait_until(path.exists, "the file")
        shown = json.loads(path.read_text())
        started = datetime.fromisoformat(shown.pop("started"))
        assert runtime.is_running(shown)
        ticks = shown.pop("start_ticks")
        assert shown == {"pid": server.pid, "app": "inspected", "url": url}
        assert started.tzinfo is not None
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        killed(server)
        again = json.loads(path.read_text())
        assert again == {**shown, "started": started.isoformat(), "start_ticks": ticks}
        assert server.stop() == 0
        assert not [*path.parent.iterdir()]

    @pytest.mark.parametrize("unix", [True, False])
    def test_the_main_process_removes_the_files_of_a_killed_inspector(
        self, run: Run, folder: Path, unix: bool
    ) -> None:
        path = folder / "inspector"
        server = start(run, *([f"--inspector-unix={path}"] if unix else []))
        address(server)
        pid = entry(server)["pid"]
        suspend(pid)
        server.signal(SIGTERM)
        server.wait_line("Shutting down")
        # It gets the stop, but not the time to clean up.
        os.kill(pid, SIGKILL)
        assert server.wait() == 0
        assert not path.exists()
        assert not [*(folder / "sanic-worker").iterdir()]

    def test_files_of_servers_that_are_gone_are_removed(self, run: Run, folder: Path) -> None:
        gone = subprocess.Popen(["true"])
        gone.wait()
        directory = folder / "sanic-worker"
        directory.mkdir(mode=0o700)
        for name in (f"{gone.pid}.json", f"{gone.pid}.json.1", f"{os.getpid()}.json", "notes.txt"):
            (directory / name).touch()
        server = start(run)
        address(server)
        kept = {f"{server.pid}.json", f"{os.getpid()}.json", "notes.txt"}
        wait_until(lambda: {file.name for file in directory.iterdir()} == kept, "only these files")

    def test_a_directory_that_is_not_private_is_not_used(self, run: Run, folder: Path) -> None:
        (folder / "elsewhere").mkdir(mode=0o700)
        (folder / "sanic-worker").symlink_to("elsewhere")
        server = start(run)
        wait_until(lambda: answers(server, address(server)), "an answer")
        assert not [*(folder / "elsewhere").iterdir()]
        assert server.stop(SIGTERM) == 0
        assert server.log("err") == ""
