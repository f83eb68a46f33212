"""The process that keeps the state without the native core, and its mapping."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import Pipe, get_context
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any

import pytest
from support.processes import is_stopped
from support.running import command, environment, lives, suspend, until, wait_for_end

from worker._spawn import state_process
from worker._spawn.state_process import StateProcess, StateProxy
from worker._state import schema
from worker._state.entry import Entry
from worker._state.foreign import adapted
from worker._state.shared import SharedState
from worker.state import WorkerState

pytestmark = pytest.mark.slow

METHODS = ["spawn", "fork", "forkserver"]
NAME = "Sanic-Server-0-0"


@pytest.fixture
def process() -> Iterator[StateProcess]:
    process = StateProcess(schema.SHEETS)
    yield process
    process.shutdown()


@pytest.fixture
def state(process: StateProcess) -> Iterator[StateProxy]:
    state = process.dict()
    state["a"] = {"x": 1}
    state["b"] = {"x": 2}
    yield state
    state.close()


def pid_of(process: StateProcess) -> int:
    return int(process._process.pid)  # type: ignore[attr-defined]


def awaits_answer(thread: int) -> bool:
    """Whether a thread of this process waits for an answer of the state process."""
    frame: FrameType | None = sys._current_frames()[thread]
    while frame is not None and frame.f_code is not state_process._Connection._recv_bytes.__code__:
        frame = frame.f_back
    return frame is not None


@contextmanager
def signalled(times: int = 1) -> Iterator[None]:
    """Send SIGUSR1 to the calling thread every 0.05 s, from the time on when it waits for an answer."""
    me, over = threading.get_ident(), threading.Event()

    def send() -> None:
        while not awaits_answer(me):
            if over.wait(0.005):
                return
        for _ in range(times):
            if over.wait(0.05):
                return
            signal.pthread_kill(me, signal.SIGUSR1)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class TestMapping:
    def test_reads_and_deletes_entries(self, state: StateProxy) -> None:
        assert (list(state), len(state), "b" in state, "c" in state) == (["a", "b"], 2, True, False)
        assert state.copy() == dict(state.items()) == {"a": {"x": 1}, "b": {"x": 2}}
        del state["b"]
        assert state.values() == [{"x": 1}]
        state["a"]["x"] = 5
        assert state["a"] == {"x": 1}

    def test_updates_are_merged_into_entries(self, state: StateProxy) -> None:
        adapted(state).update_entry("a", {"y": 2})
        assert state["a"] == {"x": 1, "y": 2}
        adapted(state).discard_key("a", "x")
        adapted(state).discard_key("a", "none")
        assert state["a"] == {"y": 2}
        adapted(state).hand_over("a", 5, {"z": 3})
        assert state["a"] == {"y": 2, "z": 3, "pid": 5}

    def test_a_missing_entry_raises_a_key_error(self, state: StateProxy) -> None:
        for act in (
            lambda: state["c"],
            lambda: state.merge("c", {"x": 1}),
            lambda: state.discard("c", "x"),
            lambda: state.__delitem__("c"),
        ):
            with pytest.raises(KeyError, match="'c'"):
                act()
        assert len(state) == 2

    def test_concurrent_writes_are_all_kept(self, state: StateProxy) -> None:
        def write(number: int) -> None:
            for value in range(100):
                state.merge("a", {f"{number}-{value}": value})

        writers = [get_context("fork").Process(target=write, args=(number,)) for number in range(3)]
        for writer in writers:
            writer.start()
        write(3)
        for writer in writers:
            writer.join()
            assert writer.exitcode == 0
        assert len(state["a"]) == 1 + 4 * 100


def writes(state: StateProxy, end: Any) -> None:
    """In a child: report the state; then write to it, from a thread too."""
    end.send(state.copy())
    WorkerState(state, "a")["child"] = os.getpid()
    thread = threading.Thread(target=state.merge, args=("b", {"child": os.getpid()}))
    thread.start()
    thread.join()


class TestChildren:
    @pytest.mark.parametrize("method", METHODS)
    def test_read_and_write_the_same_entries(self, method: str, state: StateProxy) -> None:
        ours, theirs = Pipe()
        with ours, theirs:
            child = get_context(method).Process(target=writes, args=(state, theirs))
            child.start()
            assert ours.recv() == {"a": {"x": 1}, "b": {"x": 2}}
            child.join()
            assert state["a"]["child"] == state["b"]["child"] == child.pid

    def test_a_forked_copy_has_a_connection_of_its_own(self, state: StateProxy) -> None:
        """Also by `os.fork`, of which `multiprocessing` knows nothing."""
        assert state["a"] == {"x": 1}
        pid = os.fork()
        if pid == 0:
            status = 9
            try:
                status = int(any(state["b"] != {"x": 2} for _ in range(300)))
            finally:
                os._exit(status)
        assert all(state["a"] == {"x": 1} for _ in range(300))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


class Interrupted(Exception):  # noqa: N818 (it is no error)
    """An exception that a signal handler raises."""


class TestSignals:
    @pytest.fixture
    def stopped(self, process: StateProcess, state: StateProxy) -> Iterator[int]:
        """Yield the pid of the process, which does not answer until it is continued."""
        assert state["a"] == {"x": 1}
        pid = pid_of(process)
        suspend(pid)
        before = signal.getsignal(signal.SIGUSR1)
        yield pid
        signal.signal(signal.SIGUSR1, before)
        os.kill(pid, signal.SIGCONT)

    def test_an_exception_of_a_handler_aborts_a_request(self, stopped: int, state: StateProxy) -> None:
        """The answer that comes afterwards is dropped."""

        def handler(*_: Any) -> None:
            os.kill(stopped, signal.SIGCONT)
            raise Interrupted

        signal.signal(signal.SIGUSR1, handler)
        with signalled(), pytest.raises(Interrupted):
            state.get("a")
        assert [state["b"], state["a"]] == [{"x": 2}, {"x": 1}]

    def test_a_handler_may_use_the_state(self, stopped: int, state: StateProxy) -> None:
        seen = []

        def handler(*_: Any) -> None:
            os.kill(stopped, signal.SIGCONT)
            seen.append(state["b"])

        signal.signal(signal.SIGUSR1, handler)
        with signalled():
            assert state["a"] == {"x": 1}
        assert seen == [{"x": 2}]

    def test_signals_that_stop_the_server_are_ignored(self, process: StateProcess, state: StateProxy) -> None:
        pid = pid_of(process)
        assert os.getsid(pid) == pid
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU):
            os.kill(pid, signum)
        assert state["a"] == {"x": 1}
        assert not is_stopped(pid)


class TestUnavailableProcess:
    def test_each_use_fails_after_a_kill(self, process: StateProcess, state: StateProxy) -> None:
        assert state["a"] == {"x": 1}
        os.kill(pid_of(process), signal.SIGKILL)
        wait_for_end(pid_of(process))
        uses = (
            lambda: state["a"],
            state.copy,
            lambda: "a" in state,
            lambda: list(state),
            lambda: state.merge("a", {"x": 1}),
            lambda: WorkerState(state, "a").update({"x": 1}),
        )
        for use in uses:
            with pytest.raises(BrokenPipeError, match="has exited, and the state with it"):
                use()

    def test_entries_of_the_main_process_work_without_the_process(
        self, process: StateProcess, state: StateProxy
    ) -> None:
        entry = Entry(state, "a")
        process.shutdown()
        assert entry.read() == {}
        entry.record({"x": 1})
        entry.hand_over(1, {})
        entry.drop_staged(1)
        entry.remove()
        with pytest.raises(ConnectionError, match="Cannot start a: the state of the workers cannot be"):
            entry.require(True)

    def test_a_suspended_process_delays_a_caller_once(
        self, process: StateProcess, state: StateProxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It delays each caller once, and not again for a while; when it continues, so do they.

        The signals that a worker gets meanwhile do not make the wait any longer.
        """
        monkeypatch.setattr(state_process, "ANSWER_TIMEOUT", 0.2)
        monkeypatch.setattr(state_process, "PAUSE", 60.0)
        before = signal.signal(signal.SIGUSR1, lambda *_: None)
        suspend(pid_of(process))
        try:
            began = monotonic()
            # These are sent for 20 s.
            with signalled(times=400):
                for _ in range(200):
                    with pytest.raises(BrokenPipeError, match="did not answer"):
                        state.copy()
            assert monotonic() - began < 15
        finally:
            signal.signal(signal.SIGUSR1, before)
            os.kill(pid_of(process), signal.SIGCONT)
        vars(state)["_silent_until"] = 0.0
        assert state["a"] == {"x": 1}

    def test_a_shutdown_kills_a_suspended_process(self, process: StateProcess, state: StateProxy) -> None:
        pid = pid_of(process)
        suspend(pid)
        process.shutdown()
        assert not lives(pid)

    @pytest.mark.parametrize(
        ("method", "how"),
        [
            ("spawn", signal.SIGKILL),
            ("spawn", None),
            ("fork", signal.SIGKILL),
            ("fork", signal.SIGTERM),
            ("forkserver", signal.SIGKILL),
        ],
    )
    def test_exits_with_the_main_process(
        self, method: str, how: signal.Signals | None, tmp_path: Path
    ) -> None:
        code = f"""
            import multiprocessing
            from worker._spawn.state_process import StateProcess

            if __name__ == "__main__":
                multiprocessing.set_start_method("{method}")
                process = StateProcess({{}})
                state = process.dict()
                state["a"] = {{}}
                print(process._process.pid, flush=True)
                input()
            """
        main = subprocess.Popen(
            command(code, cwd=tmp_path),
            cwd=tmp_path,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert main.stdin is not None and main.stdout is not None
        with main.stdin, main.stdout:
            pid = int(main.stdout.readline())
            ended = os.pidfd_open(pid)
            try:
                assert lives(pid)
                if how is None:
                    # In order; it is gone before the main process.
                    main.stdin.write("\n")
                    main.stdin.flush()
                else:
                    main.send_signal(how)
                main.wait(15)
                assert select.select([ended], [], [], 0 if how is None else 15)[0], "it lives on"
            finally:
                os.close(ended)

    def test_sleeps_without_requests(self, process: StateProcess, state: StateProxy) -> None:
        """No thread of it wakes up by the clock."""
        assert state["a"] == {"x": 1}
        tasks = Path(f"/proc/{pid_of(process)}/task")

        def switches() -> int:
            texts = [(task / "status").read_text() for task in tasks.iterdir()]
            return sum(int(text.partition("\nvoluntary_ctxt_switches:")[2].split()[0]) for text in texts)

        def sleeps() -> bool:
            before = switches()
            # Longer than a stock manager's polling interval.
            wait_for([process._process.sentinel], 1.1)  # type: ignore[attr-defined]
            return switches() == before

        until(sleeps, "a second without a wakeup")


@pytest.mark.skipif(os.environ.get("WORKER_CORE") == "native", reason="the native core alone is asked for")
def test_the_error_of_shared_state_names_an_alternative() -> None:
    code = "from worker.state import SharedState; SharedState()"
    env = environment({"WORKER_CORE": "pure"})
    ended = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("RuntimeError: ")]
    assert "SharedState needs the native core" in line and "multiprocessing.Manager().dict()" in line


@pytest.mark.native
def test_the_native_core_needs_no_state_process() -> None:
    state = SharedState()
    assert not isinstance(state, StateProxy)
    state.close()
