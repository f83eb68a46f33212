"""``Monitor``: every exit of any process is reported, and no child of other code is reaped."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

import pytest
from support.processes import LONG, Children, until

from worker._core.messages import Exited, Received


def killed_by(number: int) -> None:
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("code", [0, 1, 7, 255])
def test_an_exit_is_reported_with_its_code(monitor: Any, children: Children, code: int) -> None:
    pid = children.fork(lambda: code)
    monitor.watch("w", pid, None)
    assert monitor.wait(LONG) == [Exited("w", pid, code)]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_an_exit_is_reported_with_its_signal(monitor: Any, children: Children, number: int) -> None:
    pid = children.fork(killed_by, number)
    monitor.watch("w", pid, None)
    assert monitor.wait(LONG) == [Exited("w", pid, -number)]


def test_a_core_dump_is_reported_as_its_signal(monitor: Any, children: Children) -> None:
    def abort() -> None:
        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.abort()

    pid = children.fork(abort)
    monitor.watch("w", pid, None)
    assert monitor.wait(LONG) == [Exited("w", pid, -signal.SIGABRT)]


def test_the_child_is_not_reaped(monitor: Any, children: Children) -> None:
    pid = children.fork(lambda: 3)
    monitor.watch("w", pid, None)
    assert monitor.wait(LONG) == [Exited("w", pid, 3)]
    assert children.reap(pid) == 3


def test_an_exit_is_reported_once_and_frees_its_key(monitor: Any, children: Children) -> None:
    for code in (1, 2):
        pid = children.fork(lambda code=code: code)
        monitor.watch("w", pid, None)
        assert monitor.wait(LONG) == [Exited("w", pid, code)]
        assert monitor.wait(0) == []
        with pytest.raises(KeyError):
            monitor.unwatch("w")


def test_a_zombie_is_reported_with_its_code(monitor: Any, children: Children) -> None:
    pid = children.fork(lambda: 4)
    children.settle(pid)
    monitor.watch("w", pid, None)
    assert monitor.wait(None) == [Exited("w", pid, 4)]


def test_a_reaped_process_is_reported_without_a_code(monitor: Any, children: Children) -> None:
    pid = children.fork(lambda: 4)
    children.reap(pid)
    monitor.watch("w", pid, None)
    assert monitor.wait(None) == [Exited("w", pid, None)]


@pytest.mark.slow
def test_exits_are_reported_in_the_order_of_their_watches(monitor: Any, children: Children) -> None:
    pids = [children.fork(lambda code=code: code) for code in range(70)]
    children.settle(*pids)
    for code, pid in reversed(list(enumerate(pids))):
        monitor.watch(f"w{code}", pid, None)
    assert monitor.wait(LONG) == [Exited(f"w{code}", pids[code], code) for code in reversed(range(70))]


def test_messages_are_reported_before_exits(monitor: Any, publisher: Connection, children: Children) -> None:
    pid = children.fork(lambda: 0)
    children.settle(pid)
    monitor.watch("w", pid, None)
    publisher.send("a:")
    assert [type(event) for event in monitor.wait(LONG)] == [Received, Exited]


def test_a_process_may_be_watched_under_two_keys(monitor: Any, children: Children) -> None:
    pid = children.fork(lambda: 6)
    monitor.watch("a", pid, None)
    monitor.watch("b", pid, None)
    with pytest.raises(ValueError, match=r"^'a' is watched already$"):
        monitor.watch("a", pid, None)
    assert until(monitor, 2) == [Exited("a", pid, 6), Exited("b", pid, 6)]


def test_a_key_may_be_any_text(monitor: Any, children: Children) -> None:
    for key in ("", "\u00fc\U0001f600", "\udcff\ud800", "a\0b"):
        pid = children.fork(lambda: 0)
        monitor.watch(key, pid, None)
        assert monitor.wait(LONG) == [Exited(key, pid, 0)]


def test_an_unwatched_exit_is_not_reported(monitor: Any, children: Children) -> None:
    pid = children.fork(lambda: 0)
    monitor.watch("w", pid, None)
    monitor.unwatch("w")
    children.settle(pid)
    assert monitor.wait(0.01) == []
    with pytest.raises(KeyError) as caught:
        monitor.unwatch("w")
    assert caught.value.args == ("w",)


@pytest.mark.parametrize("pid", [0, -1, -5])
def test_a_pid_must_be_positive(monitor: Any, pid: int) -> None:
    with pytest.raises(ValueError, match=f"^no process has the pid {pid}$"):
        monitor.watch("w", pid, None)


def test_the_status_of_a_grandchild_is_unknown(
    monitor: Any, children: Children, gate: tuple[int, int]
) -> None:
    receiving, sending = multiprocessing.Pipe(False)

    def child() -> None:
        with Children() as own:
            pid = own.fork(lambda: len(os.read(gate[0], 1)))
            sending.send(pid)
            own.settle(pid)

    with receiving, sending:
        children.fork(child)
        pid = receiving.recv()
    monitor.watch("w", pid, None)
    assert monitor.wait(0) == []
    os.write(gate[1], b".")
    assert monitor.wait(LONG) == [Exited("w", pid, None)]


def test_the_status_is_unknown_if_sigchld_is_ignored(monitor: Any, children: Children) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        pid = os.fork()
        if pid == 0:
            os._exit(3)
        monitor.watch("w", pid, None)
        assert monitor.wait(LONG) == [Exited("w", pid, None)]
    finally:
        signal.signal(signal.SIGCHLD, before)


@contextmanager
def no_pidfd() -> Iterator[int]:
    """Return a pid that has no pidfd: that of a second thread."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        yield thread.native_id or 0
    finally:
        done.set()
        thread.join()


def pidfd_error(pid: int) -> OSError:
    """Return the kernel's answer to a request for such a pidfd."""
    try:
        os.close(os.pidfd_open(pid))
    except OSError as exc:
        return exc
    pytest.fail("there is a pidfd")


def test_a_sentinel_replaces_a_missing_pidfd(monitor: Any) -> None:
    sentinel, other = os.pipe()
    with no_pidfd() as pid:
        monitor.watch("w", pid, sentinel)
        assert monitor.wait(0) == []
        os.close(other)
        assert monitor.wait(LONG) == [Exited("w", pid, None)]
    assert os.read(sentinel, 1) == b"", "the sentinel is the caller's to close"
    os.close(sentinel)


def test_a_sentinel_is_used_if_descriptors_have_run_out(monitor: Any, children: Children) -> None:
    pid = children.fork(lambda: 0)
    sentinel, other = os.pipe()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (other + 1, limits[1]))
    filled = []
    try:
        with suppress(OSError):
            while True:
                filled.append(os.dup(sentinel))
        with pytest.raises(OSError, match="Too many open files"):
            monitor.watch("none", pid, None)
        monitor.watch("w", pid, sentinel)
    finally:
        for fd in filled:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    os.close(other)
    assert monitor.wait(LONG) == [Exited("w", pid, None)]
    os.close(sentinel)


@pytest.mark.parametrize("sentinel", [None, -1])
def test_neither_pidfd_nor_sentinel_is_an_error(monitor: Any, sentinel: int | None) -> None:
    with no_pidfd() as pid:
        refused = pidfd_error(pid)
        with pytest.raises(type(refused), match=re.escape(str(refused))) as caught:
            monitor.watch("w", pid, sentinel)
    assert caught.value.errno == refused.errno
    with pytest.raises(KeyError):
        monitor.unwatch("w")


def test_a_pidfd_is_preferred_to_a_sentinel(monitor: Any, children: Children) -> None:
    # A grandchild that holds the pipe of the sentinel open hides the exit from it.
    sentinel, other = os.pipe()
    pid = children.fork(lambda: 8)
    monitor.watch("w", pid, sentinel)
    assert monitor.wait(LONG) == [Exited("w", pid, 8)]
    os.close(sentinel)
    os.close(other)


def leave(code: int) -> None:
    sys.exit(code)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_exits_of_multiprocessing_processes_are_reported(monitor: Any, method: str) -> None:
    process = multiprocessing.get_context(method).Process(target=leave, args=(9,))
    process.start()
    assert process.pid is not None
    monitor.watch(process.name, process.pid, process.sentinel)
    [exited] = monitor.wait(LONG)
    process.join()
    assert exited.key == process.name
    # The fork server is the parent of its children, so multiprocessing has to be asked about them.
    assert exited.exitcode == (None if method == "forkserver" else 9)
    assert process.exitcode == 9
    process.close()


def test_exits_of_subprocesses_are_reported(monitor: Any) -> None:
    with subprocess.Popen([sys.executable, "-S", "-c", "raise SystemExit(11)"]) as process:
        monitor.watch("w", process.pid, None)
        assert monitor.wait(LONG) == [Exited("w", process.pid, 11)]
        assert process.wait() == 11


def test_a_watch_starts_no_thread(monitor: Any, children: Children) -> None:
    before = set(os.listdir("/proc/self/task"))
    pid = children.fork(lambda: 0)
    monitor.watch("w", pid, None)
    assert set(os.listdir("/proc/self/task")) == before
    assert monitor.wait(LONG) == [Exited("w", pid, 0)]
