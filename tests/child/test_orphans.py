"""A child process exits after the end of the main process."""

from __future__ import annotations

import os
import signal
import subprocess
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from spawn.test_processes import METHODS, end, holds_back, start
from support import targets
from support.running import command, environment, lives, wait_for_end

from worker._child import parent_watch
from worker._spawn.processes import ManagedProcess, factory
from worker.settings import resolve

pytestmark = pytest.mark.slow


def sent_by_nobody(grace: float, main: int) -> None:
    parent_watch.watch_parent(main, grace)


class TestParentWatch:
    def test_a_main_process_that_ended_before_the_watch_begins(self) -> None:
        dead = get_context("fork").Process(target=targets.nothing)
        dead.start()
        dead.join()
        process = get_context("fork").Process(target=sent_by_nobody, args=(1.0, dead.pid))
        process.start()
        assert end(process) == 1
        dead.close()

    def test_another_parent_means_the_main_process_has_ended(self) -> None:
        """A process that was started by the main process and now has another parent has lost it."""
        process = get_context("fork").Process(target=sent_by_nobody, args=(1.0, 1))
        process.start()
        assert end(process) == 1

    def test_a_lost_signal_is_sent_once_more(self) -> None:
        """Sanic is setting up its handlers, and the main process exits just then."""
        main = os.fork()
        if not main:
            signal.pause()
            os._exit(1)
        held, holds = os.pipe()
        child = os.fork()
        if not child:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            parent_watch.watch_parent(main, 20.0)
            os.write(holds, b"x")
            signal.sigwait({signal.SIGINT})
            parent_watch.stop_handlers_set()
            os._exit(7 if signal.sigtimedwait({signal.SIGINT}, 15) else 1)
        assert os.read(held, 1) == b"x"
        os.close(held)
        os.close(holds)
        os.kill(main, signal.SIGKILL)
        os.waitpid(main, 0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7

    @pytest.mark.parametrize("method", METHODS)
    def test_a_blocked_signal_stays_pending_for_the_target(self, method: str) -> None:
        """The process has no other thread: its target may block a signal, and take it later."""
        gate, opener = Pipe(False)
        journal, writer = Pipe(False)
        process = start(method, holds_back, gate=gate, journal=writer)
        assert journal.recv() == "held back"
        assert process.pid is not None
        os.kill(process.pid, signal.SIGTERM)
        opener.send_bytes(b"x")
        assert end(process, gate, opener, writer) == 0
        assert journal.recv() == signal.SIGTERM
        journal.close()

    def test_uses_the_sentinel_of_the_parent_without_a_pidfd(self, tmp_path: Path) -> None:
        self._dies(tmp_path, "fork", "import os; del os.pidfd_open")

    @pytest.mark.parametrize("method", METHODS)
    def test_children_exit_after_the_main_process(self, method: str, tmp_path: Path) -> None:
        self._dies(tmp_path, method, "")

    def _dies(self, tmp_path: Path, method: str, first: str) -> None:
        program = f"""
            import os
            {first}
            from multiprocessing import Pipe, get_context
            from worker import WorkerManager
            from worker.integration import StateManager
            from support import targets

            if __name__ == "__main__":
                keeper = StateManager()
                state = keeper.dict()
                ends = Pipe(True)
                journal, writer = Pipe(False)
                gate, _ = Pipe(False)
                kwargs = {{"monitor_publisher": ends[1], "worker_state": state}}
                kwargs |= {{"journal": writer, "gate": gate}}
                context = get_context("{method}")
                settings = {{**kwargs, "plan": "serves"}}
                pair = (ends[1], ends[0])
                manager = WorkerManager(
                    1, targets.server, settings, context, pair, state, graceful_timeout=0.2
                )
                settings = {{**kwargs, "plan": "stubborn"}}
                manager.manage("Stubborn", targets.server, settings, transient=True)
                manager.start()
                for _ in range(3):
                    print(*journal.recv()[1:], flush=True)
                # What only main holds is what keeps the grandchild in sight.
                manager.join()
            """
        for plan in ("serves", "stubborn"):
            (tmp_path / plan).write_text(plan)
        main = subprocess.Popen(
            command(program, cwd=tmp_path), cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True
        )
        assert main.stdout is not None
        pids: set[int] = set()
        heard = 0
        while len(pids) < 3:
            pid, _, what = main.stdout.readline().partition(" ")
            heard += 1
            assert pid, "main ended too soon"
            pids |= {int(pid)} | ({int(what)} if what.strip().isdigit() else set())
        assert all(lives(pid) for pid in pids)
        main.kill()
        main.wait()
        for pid in pids:
            wait_for_end(pid)
        main.stdout.close()

    @pytest.mark.parametrize("method", METHODS)
    def test_exit_handlers_of_an_orphan_run(self, method: str, tmp_path: Path) -> None:
        program = f"""
            from multiprocessing import get_context
            from worker._spawn.processes import factory
            from worker.settings import resolve
            from support import targets

            if __name__ == "__main__":
                child = factory(get_context("{method}"), resolve({{}}))(target=targets.speaks_last)
                child.start()
                child.join()
            """
        main = subprocess.Popen(
            command(program, cwd=tmp_path), cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True
        )
        assert main.stdout is not None
        with main.stdout as stdout:
            pid = int(stdout.readline())
            main.kill()
            main.wait()
            assert stdout.read() == "the last word\n"
        wait_for_end(pid)

    def test_an_orphan_ends_its_own_children(self) -> None:
        """The main process would have ended them; the orphan does so itself, when it has ended in order."""
        main = os.fork()
        if not main:
            signal.pause()
        heard, speaks = Pipe(False)
        process: ManagedProcess = factory(get_context("fork"), resolve({"graceful_timeout": 20}))(
            target=has_a_child, args=(speaks,), daemon=True
        )
        process.main_pid = main
        process._start_method = "forkserver"  # type: ignore[attr-defined]  # its parent is not its main
        process.start()
        grandchild = heard.recv()
        os.kill(main, signal.SIGKILL)
        os.waitpid(main, 0)
        wait_for_end(grandchild)
        assert end(process, heard, speaks) == 0


def has_a_child(speaks: Connection) -> None:
    """Wait to be interrupted, and return; the child never does."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    pid = os.fork()
    if not pid:
        while True:
            signal.pause()
    speaks.send(pid)
    signal.sigwait({signal.SIGINT})
