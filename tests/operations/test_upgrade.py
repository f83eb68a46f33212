"""A main process is replaced by another one on the same sockets, under load and with each kind of fault."""

from __future__ import annotations

import os
import re
import shutil
import ssl
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM, SIGUSR2
from typing import Any

import pytest
import trustme
from integration.test_supervision import steady
from integration.tools import free_port, wait_until

import worker

from .upgrading import DONE, Upgraded, write

pytestmark = [pytest.mark.operations, pytest.mark.slow, pytest.mark.timeout(300)]

Run = Callable[..., Upgraded]
# The requests of a test under load, and the rate of each of its two clients.
REQUESTS = 10_000
RATE = 300
UPGRADES = 10


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Start a server in a directory of the test's own; it is checked and ended after the test."""
    with ExitStack() as stack:

        def start(target: str = "upgraded:app", *args: str, **options: Any) -> Upgraded:
            write(tmp_path, 1)
            server = stack.enter_context(Upgraded.run(target, *args, cwd=tmp_path, **options))
            assert isinstance(server, Upgraded)
            return server

        yield start


def gate(directory: Path, word: str) -> None:
    """Let the workers of apps.gated that start from now on obey this word."""
    (directory / "gate").write_text(word)


class TestUpgrade:
    @pytest.mark.timeout(400)
    @pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
    def test_ten_upgrades_fail_no_request(self, run: Run, tmp_path: Path, tls: bool) -> None:
        """On kept connections and on new ones, 10,000 requests together."""
        args: list[str] = []
        options: list[str] = ["--rate", str(RATE), "--least", str(REQUESTS // 2)]
        context = None
        if tls:
            authority = trustme.CA()
            certificate = authority.issue_cert("localhost", "127.0.0.1")
            authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
            certificate.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
            certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
            args = [f"--cert={tmp_path / 'cert.pem'}", f"--key={tmp_path / 'key.pem'}"]
            options += ["--tls", str(tmp_path / "ca.pem")]
            context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
        server = run("upgraded:app", *args, tls=context).wait_ready()
        server.settled(2)
        mains = {server.main}
        with (
            steady(server, "/version", *options) as kept,
            steady(server, "/version", *options, "--close") as new,
        ):
            began, enough = time.monotonic(), REQUESTS / (2 * RATE)
            while len(mains) <= UPGRADES or time.monotonic() - began < enough:
                mains.add(server.upgrade())
        assert kept["failures"] == new["failures"] == []
        assert kept["answered"] + new["answered"] >= REQUESTS
        assert len(mains) > UPGRADES

    @pytest.mark.parametrize("start_method", ["spawn", "fork", "forkserver"])
    def test_the_new_code_serves_and_the_old_main_ends(
        self, run: Run, tmp_path: Path, start_method: str
    ) -> None:
        server = run(start_method=start_method).wait_ready()
        server.settled(2)
        first, sockets = server.main, descriptors(server.main)
        for version in (2, 3):
            write(tmp_path, version)
            pid = server.upgrade()
            server.settled(2)
            assert server.get("/version") == {
                "version": version,
                "variables": [],
                "sanic": server.get("/version")["sanic"],
            }
            # The same descriptors, and no more with each upgrade.
            wait_until(lambda pid=pid: descriptors(pid) == sockets, "the same descriptors")
        assert server._process.wait(30) == 0
        assert first not in server.processes()
        server.wait_line(rf"took the place of the main process \[{first}\]")
        # Nothing of them shows in the log but what they tell.
        assert server.log("err") == ""

    def test_a_unix_socket_stays(self, run: Run) -> None:
        # Sanic binds it under a longer name first, and the path of a socket is short.
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "socket"
            server = run(unix=path).wait_ready()
            server.settled(2)
            inode = path.stat().st_ino
            for _ in range(2):
                server.upgrade()
                server.settled(2)
                assert path.stat().st_ino == inode
            os.kill(server.main, SIGTERM)
            wait_until(lambda: not server.processes(), "the end")
            assert not path.exists()

    def test_the_pid_file_follows(self, run: Run, tmp_path: Path) -> None:
        path = tmp_path / "pid"
        server = run("upgraded:app", f"--pid-file={path}").wait_ready()
        server.settled(2)
        assert int(path.read_text()) == server.main
        for _ in range(2):
            pid = server.upgrade()
            wait_until(lambda pid=pid: int(path.read_text()) == pid, "the new pid")
            server.settled(2)
        write(tmp_path, "= 1")
        server.failure(server.begin())
        assert int(path.read_text()) == pid
        os.kill(pid, SIGTERM)
        wait_until(lambda: not server.processes(), "the end")
        assert not path.exists()

    def test_another_version_of_this_package_takes_over(self, run: Run, tmp_path: Path) -> None:
        source = Path(worker.__file__).parent
        for version in ("8.0.0", "9.0.0"):
            home = tmp_path / version
            shutil.copytree(source, home / "worker", ignore=shutil.ignore_patterns("__pycache__"))
            (home / f"sanic_worker-{version}.dist-info").mkdir()
            text = f"Metadata-Version: 2.1\nName: sanic-worker\nVersion: {version}\n"
            (home / f"sanic_worker-{version}.dist-info" / "METADATA").write_text(text)
        current = tmp_path / "current"
        current.symlink_to("8.0.0")
        write(tmp_path, 1)
        environment = {
            "PYTHONPATH": os.pathsep.join([str(current), str(Path(__file__).parents[1] / "integration")])
        }
        port = free_port()
        command = [
            sys.executable,
            "-m",
            "worker",
            "upgraded:app",
            f"--port={port}",
            "--no-motd",
            "--workers=2",
        ]
        with Upgraded(command, cwd=tmp_path, env=environment, port=port) as server:
            server.wait_line("sanic-worker 8.0.0")
            server.wait_ready()
            server.settled(2)
            current.unlink()
            current.symlink_to("9.0.0")
            since = server.mark()
            server.upgrade()
            server.wait_line("sanic-worker 9.0.0", since=since)
            server.settled(2)

    def test_a_release_behind_a_symlink_is_entered_anew(self, run: Run, tmp_path: Path) -> None:
        """The shell that starts the server knows its directory as `current`, which leads elsewhere later."""
        for version in (1, 2):
            (tmp_path / str(version)).mkdir()
            write(tmp_path / str(version), version)
        current = tmp_path / "current"
        current.symlink_to("1")
        port = free_port()
        command = [sys.executable, "-m", "worker", "upgraded:app", f"--port={port}", "--no-motd"]
        with Upgraded(command, cwd=current, env={"PWD": str(current)}, port=port) as server:
            assert server.wait_ready().get("/version")["version"] == 1
            server.settled(1)
            current.unlink()
            current.symlink_to("2")
            server.upgrade()
            server.settled(1)
            assert server.get("/version")["version"] == 2

    def test_a_script_is_run_anew(self, tmp_path: Path) -> None:
        write(tmp_path, 1)
        script = tmp_path / "script.py"
        script.write_text(
            "import os, sys\nimport worker\nworker.install()\nfrom upgraded import app\n\n"
            "if __name__ == '__main__':\n    app.run(port=int(os.environ['PORT']), workers=2, motd=False)\n"
        )
        with Upgraded([sys.executable, "script.py"], cwd=tmp_path, port=free_port()) as server:
            server.wait_ready()
            server.settled(2)
            write(tmp_path, 2)
            server.upgrade()
            server.settled(2)
            assert server.version() == 2

    def test_a_request_during_the_start_waits_for_its_end(self, run: Run, tmp_path: Path) -> None:
        gate(tmp_path, "wait")
        server = run("apps.gated:app")
        server.wait_events("wait", 2)
        first, since = server.main, server.begin()
        server.wait_line("Received signal SIGUSR2", since=since)
        (tmp_path / "gate").unlink()
        server.matched(DONE, since)
        server.settled(2)
        assert server.main != first
        assert server.log("err") == ""


class TestFaults:
    """However the new main process ends, one main process serves, and nothing is left."""

    def serves_on(self, server: Upgraded, before: dict[str, Any]) -> None:
        after = server.settled(2)
        assert {name: entry["pid"] for name, entry in after.items()} == before

    @pytest.fixture
    def server(self, run: Run) -> Upgraded:
        server = run("apps.gated:app").wait_ready()
        server.settled(2)
        return server

    @pytest.fixture
    def before(self, server: Upgraded) -> dict[str, Any]:
        return {name: entry["pid"] for name, entry in server.settled(2).items()}

    def test_broken_code(self, run: Run, tmp_path: Path) -> None:
        server = run().wait_ready()
        before = {name: entry["pid"] for name, entry in server.settled(2).items()}
        write(tmp_path, "= 1")
        _, reason = server.failure(server.begin())
        assert re.fullmatch(r"it exited before its workers served: exit code \d+", reason)
        assert server.version() == 1
        self.serves_on(server, before)
        write(tmp_path, 2)
        server.upgrade()
        server.settled(2)
        assert server.version() == 2

    def test_workers_that_exit(self, server: Upgraded, before: dict[str, Any], tmp_path: Path) -> None:
        gate(tmp_path, "exit")
        _, reason = server.failure(server.begin())
        assert reason == "it exited before its workers served: exit code 1"
        self.serves_on(server, before)

    def test_a_start_that_hangs(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "hanging.py").write_text(
            "from apps.gated import *\nfrom sanic.worker.manager import WorkerManager\n"
            "from sanic.worker.process import WorkerProcess\nfrom pathlib import Path\nimport threading\n"
            "WorkerManager.THRESHOLD = WorkerProcess.THRESHOLD = 100\n"
            "if Path('gate').exists():\n    threading.Event().wait()\n"
        )
        server = run("hanging:app").wait_ready()
        before = {name: entry["pid"] for name, entry in server.settled(2).items()}
        gate(tmp_path, "hold")
        _, reason = server.failure(server.begin())
        assert reason == "its workers did not all serve within 10 s (WorkerManager.THRESHOLD)"
        self.serves_on(server, before)

    def test_a_stop_of_the_old_main_after_it_does_not_cut_requests_off(
        self, run: Run, tmp_path: Path
    ) -> None:
        """Other servers do not stop the old main process by themselves, so scripts do."""
        server, first = run().wait_ready(), 0
        server.settled(2)
        os.mkfifo(tmp_path / "fifo")
        with ThreadPoolExecutor() as pool:
            answer = pool.submit(server.request, "GET", "/held", timeout=60)
            # It is opened once the request reads it.
            with (tmp_path / "fifo").open("w") as fifo:
                first = server.main
                server.matched(DONE, server.begin())
                os.kill(first, SIGTERM)
                server.wait_line("Received signal SIGTERM. The upgrade is stopping this process already.")
                fifo.write("held")
            assert answer.result().json == "held"
        assert server._process.wait(30) == 0

    def test_a_second_request_is_refused(
        self, server: Upgraded, before: dict[str, Any], tmp_path: Path
    ) -> None:
        gate(tmp_path, "hold")
        since = server.begin()
        server.wait_events("hold", 2)
        os.kill(server.main, SIGUSR2)
        pid = server.successor(since)
        server.wait_line(rf"Cannot upgrade: the main process of an upgrade still runs \[{pid}\]", since=since)
        os.kill(pid, SIGTERM)
        server.failure(since)
        self.serves_on(server, before)

    def test_the_new_main_cannot_be_replaced_before_it_serves(self, server: Upgraded, tmp_path: Path) -> None:
        gate(tmp_path, "wait")
        since = server.begin()
        server.wait_events("wait", 2)
        pid, asked = server.successor(since), server.mark()
        os.kill(pid, SIGUSR2)
        server.wait_line("Received signal SIGUSR2", since=asked)
        # The old one is stopped, so the new one is not the server when its start is over.
        os.kill(server.main, SIGSTOP)
        (tmp_path / "gate").unlink()
        server.wait_line("Cannot upgrade: the main process before this one still is the server", since=since)
        os.kill(server.main, SIGCONT)
        server.matched(DONE, since)
        assert server.main == pid
        server.settled(2)

    def test_a_stop_ends_both(self, server: Upgraded, tmp_path: Path) -> None:
        gate(tmp_path, "hold")
        since = server.begin()
        server.wait_events("hold", 2)
        assert server.stop() == 0
        assert server.failure(since)[1] == "the server is stopping"
        wait_until(lambda: not server.processes(), "nothing left")

    def test_the_new_main_is_killed(self, server: Upgraded, before: dict[str, Any], tmp_path: Path) -> None:
        gate(tmp_path, "hold")
        since = server.begin()
        server.wait_events("hold", 2)
        os.kill(server.successor(since), SIGKILL)
        assert server.failure(since)[1] == "it exited before its workers served: SIGKILL"
        self.serves_on(server, before)

    def test_the_old_main_is_killed_before_the_new_one_serves(self, server: Upgraded, tmp_path: Path) -> None:
        gate(tmp_path, "hold")
        since = server.begin()
        server.wait_events("hold", 2)
        os.kill(server.main, SIGKILL)
        server.wait_line("it has ended before the workers of this one served", since=since)
        wait_until(lambda: not server.processes(), "nothing left")

    def test_the_old_main_is_killed_when_the_new_one_serves(self, server: Upgraded, tmp_path: Path) -> None:
        gate(tmp_path, "wait")
        since = server.begin()
        pid = server.successor(since)
        os.kill(server.main, SIGSTOP)
        (tmp_path / "gate").unlink()
        server.wait_line("Ready to take the place of the main process", since=since, timeout=40)
        os.kill(server.main, SIGKILL)
        server.wait_line("took the place of the main process", since=since)
        try:
            assert server.settled(2)
            assert pid in server.processes()
        finally:
            os.kill(pid, SIGTERM)
        wait_until(lambda: not server.processes(), "the end")

    def test_a_stopped_old_main_hands_over_later(self, server: Upgraded, tmp_path: Path) -> None:
        gate(tmp_path, "wait")
        since = server.begin()
        server.successor(since)
        os.kill(server.main, SIGSTOP)
        (tmp_path / "gate").unlink()
        server.wait_line("Ready to take the place of the main process", since=since, timeout=40)
        os.kill(server.main, SIGCONT)
        server.matched(DONE, since)
        server.settled(2)


def test_an_application_keeps_its_own_handler(run: Run, tmp_path: Path) -> None:
    (tmp_path / "handled.py").write_text(
        "import signal\nfrom upgraded import app\n\n"
        "signal.signal(signal.SIGUSR2, lambda *_: print('its own handler', flush=True))\n"
    )
    server = run("handled:app").wait_ready()
    server.settled(2)
    server.begin()
    server.wait_line("its own handler")
    assert server.stop() == 0
    assert "Upgrade" not in server.log()


def descriptors(pid: int) -> list[str]:
    """Return the kinds of the descriptors of a process, numbers left out."""
    found = []
    for entry in os.listdir(f"/proc/{pid}/fd"):
        with suppress(OSError):
            found.append(re.sub(r"\d+", "N", os.readlink(f"/proc/{pid}/fd/{entry}")))
    return sorted(found)
