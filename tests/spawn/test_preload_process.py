"""The preload process is a child like any other; no fault of it delays or costs another process."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import Pipe, get_context, spawn
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from support import blocking_import, targets
from support.preload_processes import (
    ONE,
    children_of,
    end,
    exits,
    kill,
    kills_itself,
    popen,
    ready,
    start,
    waits,
)
from support.running import House, command, environment, lives, logged, suspend, until, wait_for_end

from worker._spawn import liveness
from worker._spawn.popen import SpawnPopen, tracker_fd
from worker._spawn.preload import preloads as preloads_module
from worker._spawn.preload import process as process_module
from worker._spawn.preload.popen import PreloadPopen
from worker._spawn.preload.preloads import preloads
from worker._spawn.preload.process import STOPPED, PreloadError, PreloadProcess, readable
from worker._supervisor.duties import preloading

KILLED = "it was killed by SIGKILL"

pytestmark = [pytest.mark.usefixtures("main_is_heard"), pytest.mark.slow]


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """The framework takes its time to be imported, and changes nothing here. The machine may be slow."""
    monkeypatch.setattr(preloads_module, "FRAMEWORK", ())
    monkeypatch.setattr(process_module, "ANSWER_TIMEOUT", 30.0)


@pytest.fixture
def reasons() -> Iterator[list[str]]:
    """The failures of preload processes, as the manager is told them."""
    found: list[str] = []
    preloads.on_failure = lambda process, error: found.append(f"{process}: {error}")
    yield found
    preloads.on_failure = None


class TestAsAChild:
    def test_leads_its_own_session(self) -> None:
        pid = ready().pid
        assert os.getsid(pid) == pid != os.getsid(0)

    def test_needs_no_thread_and_no_directory_and_no_signal_to_its_group_ends_it(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
        process = ready()
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(process.pid, signum)
        child = start(targets.nothing)
        assert isinstance(popen(child), PreloadPopen)
        assert end(child) == 0
        assert len(os.listdir(f"/proc/{process.pid}/task")) == 1

    def test_is_killed_and_collected_by_a_reset(self) -> None:
        pid = ready().pid
        suspend(pid)
        preloads.reset()
        assert not Path(f"/proc/{pid}").exists()

    def test_may_be_collected_by_other_code(self) -> None:
        pid = ready().pid
        kill(pid)
        os.waitpid(pid, 0)
        preloads.reset()

    def test_a_forked_copy_of_the_main_process_leaves_it_alone(self) -> None:
        process = ready()
        copy = get_context("fork").Process(target=preloads.reset)
        copy.start()
        copy.join()
        copy.close()
        assert process.update()

    @pytest.mark.parametrize("how", ["killed", "exits"])
    def test_ends_with_the_main_process_or_before(self, how: str, tmp_path: Path) -> None:
        program = """
            import signal, sys
            from worker._spawn.preload.preloads import preloads

            if __name__ == "__main__":
                print(preloads.start().pid, preloads.current.update(30), flush=True)
                if sys.argv[1] == "killed":
                    signal.pause()
                sys.exit(3)
            """
        with subprocess.Popen(
            command(program, how, cwd=tmp_path),
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
        ) as main:
            assert main.stdout is not None
            pid, is_ready = main.stdout.readline().split()
            assert is_ready == "True"
            if how == "killed":
                main.kill()
                main.wait()
                wait_for_end(int(pid))
            else:
                assert main.wait(30) == 3
                assert not lives(int(pid))


class TestFork:
    @pytest.mark.parametrize(
        ("target", "args", "code"),
        [(targets.nothing, (), 0), (exits, (3,), 3), (exits, ("a text",), 1), (kills_itself, (), -9)],
    )
    def test_the_exit_code_is_that_of_the_child(
        self, target: Callable[..., None], args: tuple[Any, ...], code: int
    ) -> None:
        ready()
        process = start(target, *args)
        assert isinstance(popen(process), PreloadPopen)
        assert end(process) == code


class TestFailureOfTheStart:
    @pytest.mark.parametrize(
        ("owner", "call", "number"),
        [(socket, "socketpair", errno.EMFILE), (os, "posix_spawn", errno.EAGAIN)],
    )
    def test_refused_by_the_system(
        self, owner: Any, call: str, number: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: Any, **__: Any) -> Any:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(owner, call, refuse)
        with pytest.raises(PreloadError, match=os.strerror(number)):
            preloads.start()
        assert preloads.current is None

    def test_without_an_interpreter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(spawn, "get_executable", lambda: "/nowhere/python")
        with pytest.raises(PreloadError, match="No such file"):
            preloads.start()


def kill_first(process: PreloadProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    kill(process.pid)


def stop_first(process: PreloadProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    suspend(process.pid)


def during_the_request(then: Callable[[int], None]) -> Callable[[PreloadProcess, pytest.MonkeyPatch], None]:
    def prepare(process: PreloadProcess, monkeypatch: pytest.MonkeyPatch) -> None:
        send = socket.send_fds

        def act_and_send(*args: Any) -> int:
            then(process.pid)
            return send(*args)

        monkeypatch.setattr(socket, "send_fds", act_and_send)

    return prepare


@pytest.mark.parametrize(
    ("prepare", "method", "reason"),
    [
        pytest.param(kill_first, "spawn", KILLED, id="killed"),
        pytest.param(stop_first, "spawn", STOPPED, id="stopped"),
        pytest.param(stop_first, "forkserver", STOPPED, id="stopped-forkserver"),
        pytest.param(during_the_request(kill), "spawn", KILLED, id="killed-during-a-fork"),
        pytest.param(during_the_request(suspend), "spawn", STOPPED, id="stopped-during-a-fork"),
    ],
)
def test_a_process_is_spawned_at_once_if_it_cannot_be_forked(
    prepare: Callable[..., None],
    method: str,
    reason: str,
    reasons: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    preload = ready()
    with monkeypatch.context() as patch:
        prepare(preload, patch)
        began = monotonic()
        process = start(targets.nothing, method=method)
        took = monotonic() - began
    assert isinstance(popen(process), SpawnPopen)
    assert took < process_module.ANSWER_TIMEOUT / 2
    assert end(process) == 0
    assert reasons == [f"The preload process [{preload.pid}]: {reason}"]
    assert preloads.current is None
    # It is killed, and collected.
    assert not Path(f"/proc/{preload.pid}").exists()


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """Let this process open so many more descriptors."""
    before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = {int(fd) for fd in os.listdir("/proc/self/fd")}
    free = (number for number in itertools.count() if number not in used)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next(itertools.islice(free, count, None)), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, hard))


class TestShortage:
    """A process cannot be forked now, for a reason that is no fault of the preload process. That is kept."""

    def test_of_processes(self, reasons: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(preloads_module, "FRAMEWORK", ("support.no_more_forks",))
        preload = ready()
        process = start(targets.nothing)
        assert isinstance(popen(process), SpawnPopen)
        assert end(process) == 0
        assert reasons == []
        assert preloads.current is preload

    @pytest.mark.parametrize(("owner", "call"), [(socket, "send_fds"), (os, "pidfd_open")])
    def test_at_one_call(
        self, owner: Any, call: str, reasons: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: Any) -> Any:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        preload = ready()
        with monkeypatch.context() as patch:
            patch.setattr(owner, call, refuse)
            process = start(targets.nothing)
        assert isinstance(popen(process), SpawnPopen)
        # Without a pidfd, a join ends with its sentinel, which it closes a moment before it exits.
        until(lambda: not process.is_alive(), "its exit")
        assert end(process) == 0
        assert reasons == []
        assert preloads.current is preload
        until(lambda: not children_of(preload.pid), "the end of a child without data")

    def test_of_descriptors(self, reasons: list[str]) -> None:
        preload = ready()
        started: list[type | None] = []
        for free in range(8):
            process = None
            with descriptors_left(free), suppress(OSError):
                process = start(targets.nothing)
            started.append(None if process is None else type(popen(process)))
            if process is not None:
                end(process)
        assert reasons == []
        assert preloads.current is preload
        assert started[0] is None
        assert started[-1] is PreloadPopen


class TestNotReady:
    @pytest.fixture(autouse=True)
    def _gate(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The import of its modules takes until the gate is opened."""
        self.gate = tmp_path / "gate"
        os.mkfifo(self.gate)
        monkeypatch.setenv(blocking_import.GATE, str(self.gate))
        monkeypatch.setattr(preloads_module, "FRAMEWORK", (blocking_import.__name__,))

    def test_exits_silently_if_the_main_process_is_gone(self, capfd: pytest.CaptureFixture[str]) -> None:
        pid = preloads.start().pid
        preloads.leave()
        self.gate.open("w").close()
        assert os.waitpid(pid, 0)[1] == 0
        assert capfd.readouterr().err == ""

    def test_a_process_is_spawned_meanwhile_and_forked_then(self, reasons: list[str]) -> None:
        preload = preloads.start()
        process = start(targets.nothing)
        assert isinstance(popen(process), SpawnPopen)
        assert end(process) == 0
        self.gate.open("w").close()
        assert preload.update(30)
        process = start(targets.nothing)
        assert isinstance(popen(process), PreloadPopen)
        assert end(process) == 0
        assert reasons == []

    @pytest.mark.parametrize(("act", "reason"), [(suspend, STOPPED), (kill, f"{KILLED} before it was ready")])
    def test_no_wait_for_one_that_cannot_get_ready(self, act: Callable[[int], None], reason: str) -> None:
        preload = preloads.start()
        act(preload.pid)
        began = monotonic()
        with pytest.raises(PreloadError, match=f"^{reason}$"):
            preloads.ready(60)
        assert monotonic() - began < 30

    def test_a_stop_does_not_wait_for_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("SANIC_WORKER_PRELOAD")
        monkeypatch.setattr(preloading, "FIRST_WAIT", 60)
        house = House(tmp_path, method="spawn", preload="framework")

        def act() -> None:
            until(lambda: preloads.current and preloads.current._interruptible, "main to wait for it")

        began = monotonic()
        house.run(act)
        assert monotonic() - began < 30


class TestSlow:
    def test_a_late_answer_leaves_no_child(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The main process gives the child up before it exists. It gets no data, and exits."""
        monkeypatch.setattr(process_module, "ANSWER_TIMEOUT", 0.1)
        preload = ready()
        data, gate = os.pipe()
        # It reads the description of the application, which does not come.
        socket.send_fds(preload._socket, [process_module.LOAD], [data])
        os.close(data)
        with pytest.raises(PreloadError, match=r"^it gave no answer within 0\.1 s$"):
            preload.fork([tracker_fd()])
        os.close(gate)
        # The requests are obeyed in their order.
        preload.is_silent = False
        monkeypatch.setattr(process_module, "ANSWER_TIMEOUT", 30)
        pid, *ends = preload.fork([tracker_fd()])
        until(lambda: children_of(preload.pid) == [str(pid)], "the end of the child given up")
        for fd in ends:
            os.close(fd)

    def test_an_exit_code_is_waited_for_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(process_module, "ANSWER_TIMEOUT", 0.1)
        preload = ready()
        reader, writer = os.pipe()
        with pytest.raises(PreloadError):
            preload.read_number(reader)
        monkeypatch.setattr(process_module, "ANSWER_TIMEOUT", 60)
        began = monotonic()
        with pytest.raises(PreloadError):
            preload.read_number(reader)
        assert monotonic() - began < 30
        os.close(reader)
        os.close(writer)


class TestItsChildren:
    def test_go_on_when_it_is_killed_and_their_exit_code_is_unknown(self) -> None:
        gate, opener = Pipe(False)
        preload = ready()
        process = start(waits, gate=gate)
        assert process.pid is not None
        until(lambda: liveness.has_begun(process), "it to run")
        kill(preload.pid)
        assert process.is_alive() and process.exitcode is None
        # The main process may have no other descriptor to wait for its exit.
        assert not readable(process.sentinel, 0)
        opener.send_bytes(b"12345678")
        wait_for_end(process.pid)
        assert not process.is_alive()
        assert liveness.reap(process) is None
        assert end(process) is None
        gate.close()
        opener.close()

    def test_that_exit_while_it_is_stopped_are_noticed_at_once(self) -> None:
        gate, opener = Pipe(False)
        preload = ready()
        first, second = (start(waits, gate=gate) for _ in range(2))
        suspend(preload.pid)
        began = monotonic()
        for process in (first, second):
            assert process.pid is not None
            kill(process.pid)
            assert not process.is_alive()
            assert liveness.reap(process) is None
        assert monotonic() - began < process_module.ANSWER_TIMEOUT
        assert end(first) is end(second) is None
        gate.close()
        opener.close()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_server_whose_preload_process_breaks(
    how: signal.Signals, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restart works, code that does not start ends no server, and one stop ends all processes."""
    monkeypatch.delenv("SANIC_WORKER_PRELOAD")
    house = House(tmp_path, method="spawn", preload="framework", backoff_initial=0.01)

    def act() -> None:
        (first,) = house.said("ready")
        house.all_acked()
        preload = preloads.current
        assert preload is not None
        os.kill(preload.pid, how)
        house.plan("exits 3")
        house.send("__ALL_PROCESSES__::STARTUP_FIRST")
        logged(caplog, "Keeping the previous worker")
        house.plan("serves")
        house.send("__ALL_PROCESSES__::STARTUP_FIRST")
        second = house.said("ready", 2)[1]
        assert house.said("SIGTERM")[0].pid == first.pid
        house.until(ONE, pid=second.pid, serving=True)
        until(lambda: preloads.current not in (None, preload), "another preload process")

    house.run(act)


def test_an_unknown_exit_code_counts_as_that_of_a_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SANIC_WORKER_PRELOAD")
    house = House(
        tmp_path, "acks_and_exits 0", method="spawn", preload="framework", restart_policy="on-failure"
    )

    def act() -> None:
        house.said("acked")
        house.all_acked()
        assert preloads.current is not None
        kill(preloads.current.pid)
        house.plan("serves")
        house.open_gate()
        house.said("ready")

    house.run(act)
    logged(caplog, "exited with an unknown code")
