"""The facts of ``/proc`` on one process: its state, its debugger, its waits."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from support.processes import Children
from support.running import until

from worker._system import proc

PTRACE_ATTACH, PTRACE_DETACH = 16, 17


@contextmanager
def traced(pid: int) -> Iterator[None]:
    """Attach to a process as a debugger does, and let it go at the end."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(PTRACE_ATTACH, pid, None, None):
        pytest.skip(f"processes may not be traced here: {os.strerror(ctypes.get_errno())}")
    os.waitpid(pid, os.WUNTRACED)
    try:
        yield
    finally:
        libc.ptrace(PTRACE_DETACH, pid, None, None)


class TestState:
    def test_a_sleeping_process_and_a_stopped_one(self, children: Children) -> None:
        pid = children.fork(signal.pause)
        until(lambda: proc.state(pid) == "S", "the sleep")
        os.kill(pid, signal.SIGSTOP)
        until(lambda: proc.state(pid) == "T", "the stop")
        os.kill(pid, signal.SIGCONT)
        until(lambda: proc.state(pid) == "S", "the sleep")

    def test_one_that_has_exited(self, children: Children) -> None:
        pid = children.fork(int)
        children.settle(pid)
        assert proc.state(pid) == "Z"
        children.reap(pid)
        assert proc.state(pid) == ""

    def test_this_one_runs(self) -> None:
        assert proc.state(os.getpid()) == "R"


class TestTracer:
    def test_a_debugger(self, children: Children) -> None:
        pid = children.fork(signal.pause)
        assert proc.tracer(pid) == 0
        with traced(pid):
            assert (proc.tracer(pid), proc.state(pid)) == (os.getpid(), "t")
        assert proc.tracer(pid) == 0


class TestWaits:
    def test_a_process_that_shares_a_cpu_waits_for_it(self, children: Children) -> None:
        def spin() -> None:
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
            while True:
                pass

        pids = [children.fork(spin) for _ in range(2)]
        before = proc.run_delay(pids[0])
        until(lambda: proc.run_delay(pids[0]) > before + 0.05, "a wait for the CPU")

    def test_the_place_of_a_sleep(self, children: Children) -> None:
        pid = children.fork(signal.pause)
        until(lambda: proc.state(pid) == "S", "the sleep")
        assert proc.wchan(pid) == "" or proc.wchan(pid).isidentifier()
        assert proc.syscall(pid) == "" or proc.syscall(pid).split()[0].isdecimal()

    def test_no_process(self, children: Children) -> None:
        pid = children.fork(int)
        children.reap(pid)
        assert (proc.tracer(pid), proc.run_delay(pid), proc.wchan(pid), proc.syscall(pid)) == (0, 0.0, "", "")
        assert proc.rss_bytes(pid) is None


def test_the_resident_memory_grows_with_its_use() -> None:
    before = proc.rss_bytes(os.getpid())
    held = bytearray(os.urandom(32 << 20))
    after = proc.rss_bytes(os.getpid())
    assert before is not None
    assert after is not None
    # The kernel sums up the pages of each CPU now and then.
    assert after - before > 16 << 20, len(held)
