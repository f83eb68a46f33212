"""The fork server is a child like any other; no fault of it delays another process."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from support import targets
from support.running import House, command, environment, lives, logged, until, wait_for_end

from worker._spawn import fork_server, liveness, preload, processes
from worker._spawn.processes import ManagedProcess, factory
from worker.settings import resolve

ONE = "Sanic-Server-0-0"

pytestmark = [pytest.mark.usefixtures("main_is_heard"), pytest.mark.slow]


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    yield
    preload.reset()


def waits(gate: Connection) -> None:
    os.read(gate.fileno(), 1)


def make(method: str, target: Callable[..., None], **kwargs: Any) -> ManagedProcess:
    process: ManagedProcess = factory(get_context(method), resolve({"graceful_timeout": 5}), is_server=True)(
        name=ONE, target=target, kwargs=kwargs, daemon=True
    )
    return process


def end(process: ManagedProcess, *connections: Connection) -> int | None:
    process.join(15)
    assert not process.is_alive()
    code = process.exitcode
    process.close()
    for connection in connections:
        connection.close()
    return code


def ready() -> fork_server.ForkServer:
    """Return the fork server, once it has imported its modules."""
    preload.start()
    until(preload.is_ready, "the fork server to be ready")
    server = preload.server()
    assert server is not None
    return server


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def is_stopped(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "T"


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    until(lambda: is_stopped(pid), "it to be stopped")


class TestAsAChild:
    def test_leads_its_own_session(self) -> None:
        pid = ready().pid
        assert os.getsid(pid) == pid != os.getsid(0)

    def test_is_killed_and_collected_by_a_reset(self) -> None:
        pid = ready().pid
        stop(pid)
        preload.reset()
        assert not Path(f"/proc/{pid}").exists()

    def test_may_be_collected_by_other_code(self) -> None:
        pid = ready().pid
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        preload.reset()

    def test_exits_with_the_main_process(self, tmp_path: Path) -> None:
        program = """
            import signal
            from worker._spawn import preload

            if __name__ == "__main__":
                print(preload.server().pid, flush=True)
                preload.server().is_ready(30)
                print("ready", flush=True)
                signal.pause()
            """
        main = subprocess.Popen(
            command(program, cwd=tmp_path), cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True
        )
        assert main.stdout is not None
        with main.stdout as stdout:
            pid = int(stdout.readline())
            assert stdout.readline() == "ready\n"
            main.kill()
            main.wait()
        wait_for_end(pid)

    def test_exits_before_the_main_process(self, tmp_path: Path) -> None:
        program = """
            import sys
            from worker._spawn import preload

            if __name__ == "__main__":
                print(preload.server().pid, flush=True)
                sys.exit(3)
            """
        main = subprocess.Popen(
            command(program, cwd=tmp_path), cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True
        )
        assert main.stdout is not None
        with main.stdout as stdout:
            pid = int(stdout.readline())
            assert main.wait(30) == 3
        assert not lives(pid)


class TestFailure:
    """One warning names the reason, and processes are spawned."""

    def starts_spawned(
        self, caplog: pytest.LogCaptureFixture, reason: str, method: str = "forkserver"
    ) -> None:
        process = make(method, targets.nothing)
        process.start()
        assert type(process) is processes.SpawnProcess
        assert end(process) == 0
        assert preload.server() is None
        (line,) = warnings(caplog)
        assert reason in line and "spawned from now on" in line

    @pytest.mark.parametrize(
        ("call", "number"), [("socketpair", errno.EMFILE), ("posix_spawn", errno.EACCES)]
    )
    def test_of_the_start(
        self, call: str, number: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: Any, **__: Any) -> Any:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            owner: Any = fork_server.socket if call == "socketpair" else os
            patch.setattr(owner, call, refuse)
            preload.start()
        self.starts_spawned(caplog, os.strerror(number))

    def test_of_a_start_without_an_interpreter(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(fork_server.spawn, "get_executable", lambda: "/nowhere/python")
            preload.start()
        self.starts_spawned(caplog, "No such file")

    def test_of_the_imports(self, caplog: pytest.LogCaptureFixture) -> None:
        preload.start()
        server = preload.server()
        assert server is not None
        os.kill(server.pid, signal.SIGKILL)
        self.starts_spawned(caplog, "it has ended before it was ready")

    def test_no_failure_without_a_writable_directory(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The fork server needs no temporary directory."""
        monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
        ready()
        process = make("spawn", targets.nothing)
        process.start()
        assert type(process) is processes.ForkServerProcess
        assert end(process) == 0
        assert not warnings(caplog)

    def test_of_a_request(self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: Any) -> Any:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        ready()
        monkeypatch.setattr(fork_server.socket, "send_fds", refuse)
        self.starts_spawned(caplog, os.strerror(errno.EMFILE))

    @pytest.mark.parametrize("method", ["spawn", "forkserver"])
    def test_a_suspended_fork_server_is_killed(
        self, method: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(fork_server, "ANSWER_TIMEOUT", 0.2)
        pid = ready().pid
        stop(pid)
        self.starts_spawned(caplog, "it gave no answer within 0.2 s", method)
        assert not Path(f"/proc/{pid}").exists()

    def test_a_fork_server_suspended_before_it_is_ready(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(fork_server, "READY_TIMEOUT", 0.2)
        preload.start()
        server = preload.server()
        assert server is not None
        stop(server.pid)
        # A server that would be spawned does not wait for the fork server.
        began = monotonic()
        process = make("spawn", targets.nothing)
        assert type(process) is processes.SpawnProcess and monotonic() - began < 0.15
        self.starts_spawned(caplog, "it was not ready within 0.2 s")

    def test_a_late_answer_leaves_no_child(
        self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """A child that it has forked never gets its data."""
        read = fork_server.read_number
        ready()
        monkeypatch.setattr(fork_server, "read_number", lambda fd: read(fd) and None)
        process = make("spawn", targets.nothing)
        process.start()
        assert type(process) is processes.SpawnProcess
        assert end(process) == 0
        assert capfd.readouterr().err == ""


def test_a_stop_does_not_wait_for_the_fork_server(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The first start waits until the fork server is ready; a stop does not."""
    house = House(tmp_path, method="forkserver")
    preload.start()
    server = preload.server()
    assert server is not None
    stop(server.pid)

    def act() -> None:
        until(lambda: server._is_awaited, "main to wait for it")

    began = monotonic()
    house.run(act)
    assert monotonic() - began < fork_server.READY_TIMEOUT / 2
    (line,) = warnings(caplog)
    assert "a stop was asked for before it was ready" in line


class TestKilled:
    def test_a_new_fork_server_is_started(self, caplog: pytest.LogCaptureFixture) -> None:
        pid = ready().pid
        os.kill(pid, signal.SIGKILL)
        wait_for_end(pid)
        assert make("spawn", targets.nothing)._start_method == "spawn"  # type: ignore[attr-defined]
        assert ready().pid != pid
        process = make("spawn", targets.nothing)
        process.start()
        assert type(process) is processes.ForkServerProcess
        assert end(process) == 0
        (line,) = warnings(caplog)
        assert line == "Fork server: it has ended. Starting it again."

    def test_a_kill_during_a_request_spawns_the_process(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server = ready()
        pid = server.pid
        send = fork_server.socket.send_fds

        def kill_and_send(*args: Any) -> int:
            os.kill(pid, signal.SIGKILL)
            wait_for_end(pid)
            return send(*args)

        with monkeypatch.context() as patch:
            patch.setattr(fork_server.socket, "send_fds", kill_and_send)
            process = make("spawn", targets.nothing)
            process.start()
        assert type(process) is processes.SpawnProcess
        assert end(process) == 0
        (line,) = warnings(caplog)
        assert line == "Fork server: it has ended. Starting it again."

    def test_an_invalidated_fork_server_is_only_collected(self, caplog: pytest.LogCaptureFixture) -> None:
        pid = ready().pid
        preload.invalidate_if_changed([fork_server.__file__])
        os.kill(pid, signal.SIGKILL)
        wait_for_end(pid)
        assert not preload.is_ready()
        # The fork server is only collected.
        assert not Path(f"/proc/{pid}").exists()
        assert preload.server() is None
        assert not warnings(caplog)

    def test_a_child_runs_on_and_its_exit_status_is_unknown(self) -> None:
        gate, opener = Pipe(False)
        server = ready()
        process = make("forkserver", waits, gate=gate)
        process.start()
        assert process.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        wait_for_end(server.pid)
        assert process.is_alive() and process.exitcode is None
        assert not process.join(0.05) and process.is_alive()
        opener.send_bytes(b"12345678")
        wait_for_end(process.pid)
        assert not process.is_alive()
        assert liveness.reap(process) is None
        assert end(process, gate, opener) is None

    def test_the_exit_of_a_child_of_a_suspended_fork_server_is_noticed(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(fork_server, "ANSWER_TIMEOUT", 0.2)
        gate, opener = Pipe(False)
        server = ready()
        first, second = (make("forkserver", waits, gate=gate) for _ in range(2))
        for process in (first, second):
            process.start()
        stop(server.pid)
        for process in (first, second):
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            wait_for_end(process.pid)
            assert not process.is_alive()
            assert liveness.reap(process) is None
        assert end(first) is end(second, gate, opener) is None
        (line,) = warnings(caplog)
        assert "it reported no exit code within 0.2 s" in line


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_stop_and_a_restart_with_a_broken_fork_server(
    how: signal.Signals, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restart works, code that does not start ends no server, and one stop ends all processes."""
    monkeypatch.setattr(fork_server, "ANSWER_TIMEOUT", 0.5)
    house = House(tmp_path, method="forkserver")

    def act() -> None:
        (first,) = house.said("ready")
        house.all_acked()
        server = preload.server()
        assert server is not None
        os.kill(server.pid, how)
        house.plan("exits 3")
        house.send("__ALL_PROCESSES__::STARTUP_FIRST")
        logged(caplog, "Keeping the previous worker")
        house.plan("serves")
        house.send("__ALL_PROCESSES__::STARTUP_FIRST")
        second = house.said("ready", 2)[1]
        assert house.said("SIGTERM")[0].pid == first.pid
        house.until(ONE, pid=second.pid, serving=True)

    house.run(act)
