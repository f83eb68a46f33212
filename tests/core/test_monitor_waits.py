"""``Monitor``: how a wait ends, which thread may wait, and the resources left after a close."""

from __future__ import annotations

import errno
import gc
import math
import os
import pickle
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from importlib import import_module
from multiprocessing.connection import Connection
from time import monotonic
from types import ModuleType
from typing import Any

import pytest
from support.cores import CORES
from support.processes import LONG, Children, frame, until

from worker._core.messages import Received, Restart
from worker._core.pure import Monitor

A = Restart(("a",), "")


@contextmanager
def on_signal(handler: Callable[..., Any], every: float = 0.1, first: float = 0.1) -> Iterator[None]:
    """Handle SIGALRM, which comes after ``first`` seconds and then every ``every`` seconds.

    A signal just before a wait does not end it, unless the wakeup descriptor is that of the monitor.
    """
    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, first, every)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def once(handler: Callable[[], Any]) -> Callable[..., None]:
    """Handle the first of the signals, and stop the others."""
    handled = []

    def first(*_: Any) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if not handled:
            handled.append(1)
            handler()

    return first


class AlarmError(Exception):
    """An exception that a signal handler raises here."""


def raises(*_: Any) -> None:
    raise AlarmError


def elapsed(monitor: Any, timeout: float) -> float:
    begun = monotonic()
    assert monitor.wait(timeout) == []
    return monotonic() - begun


def test_a_wait_ends_at_its_deadline(monitor: Any) -> None:
    assert 0.1 <= elapsed(monitor, 0.1) < 5
    assert 0.0015 <= elapsed(monitor, 0.0015) < 5


@pytest.mark.parametrize("timeout", [0, 0.0, -1, -math.inf])
def test_a_wait_without_a_timeout_polls(monitor: Any, publisher: Connection, timeout: float) -> None:
    assert elapsed(monitor, timeout) < 5
    publisher.send("a:")
    assert monitor.wait(timeout) == [Received(A, os.getpid())]


@pytest.mark.parametrize("timeout", [None, math.inf, 1e300, 1e10, 60])
def test_a_message_ends_a_wait(monitor: Any, publisher: Connection, timeout: float | None) -> None:
    sender = threading.Timer(0.02, publisher.send, ["a:"])
    sender.start()
    assert monitor.wait(timeout) == [Received(A, os.getpid())]
    sender.join()


def test_a_timeout_must_be_a_number(monitor: Any) -> None:
    with pytest.raises(ValueError, match=r"^the timeout is not a number$"):
        monitor.wait(math.nan)
    with pytest.raises(TypeError):
        monitor.wait("1")


def test_a_part_of_a_frame_does_not_end_a_wait(monitor: Any, publisher: Connection) -> None:
    whole = frame(pickle.dumps("a:"))
    sender = threading.Timer(0.02, os.write, [publisher.fileno(), whole[:5]])
    sender.start()
    assert elapsed(monitor, 0.15) >= 0.15
    sender.join()
    os.write(publisher.fileno(), whole[5:])
    assert monitor.wait(LONG) == [Received(A, os.getpid())]


def test_a_wake_ends_the_wait_of_another_thread(monitor: Any) -> None:
    waker = threading.Timer(0.02, monitor.wake)
    waker.start()
    assert monitor.wait(None) == []
    waker.join()


def test_several_wakes_end_one_wait(monitor: Any) -> None:
    for _ in range(20_000):
        monitor.wake()
    assert monitor.wait(None) == []
    assert elapsed(monitor, 0.05) >= 0.05


def test_a_wake_does_not_hide_a_message(monitor: Any, publisher: Connection) -> None:
    publisher.send("a:")
    monitor.wake()
    assert monitor.wait(None) == [Received(A, os.getpid())]
    assert elapsed(monitor, 0.05) >= 0.05


def test_a_signal_through_the_wakeup_descriptor_ends_a_wait(monitor: Any) -> None:
    handled = []
    before = signal.set_wakeup_fd(monitor.wakeup_fd)
    try:
        with on_signal(once(lambda: handled.append(1))):
            assert monitor.wait(None) == []
        assert handled == [1]
    finally:
        assert signal.set_wakeup_fd(before) == monitor.wakeup_fd


def test_a_signal_before_a_wait_ends_it(monitor: Any) -> None:
    before = signal.set_wakeup_fd(monitor.wakeup_fd)
    try:
        with on_signal(lambda *_: None, first=60):
            signal.raise_signal(signal.SIGALRM)
            assert monitor.wait(None) == []
    finally:
        signal.set_wakeup_fd(before)


@pytest.mark.slow
def test_signals_neither_end_nor_extend_a_wait(monitor: Any) -> None:
    handled = []
    with on_signal(lambda *_: handled.append(1), every=0.02):
        assert 1 <= elapsed(monitor, 1) < 5
    assert handled


def test_an_exception_of_a_handler_is_raised_without_loss(
    monitor: Any, publisher: Connection, children: Children
) -> None:
    whole = frame(pickle.dumps("a:"))
    os.write(publisher.fileno(), whole[:6])
    pid = children.fork(lambda: os.write(publisher.fileno(), whole[:6]) and signal.pause())
    for _ in range(3):
        with pytest.raises(AlarmError), on_signal(once(raises)):
            monitor.wait(None)
    os.write(publisher.fileno(), whole[6:])
    assert monitor.wait(LONG) == [Received(A, os.getpid())]
    monitor.watch("w", pid, None)
    os.kill(pid, signal.SIGKILL)
    corrupt, exited = until(monitor, 2)
    assert corrupt.sample == whole[:6]
    assert exited.exitcode == -signal.SIGKILL


@pytest.mark.skipif("native" not in CORES, reason="only the pure core is asked for")
def test_native_messages_are_kept_when_a_handler_raises(
    ends: tuple[Connection, Connection], children: Children
) -> None:
    # Each try depends on chance, so there are many.
    publisher, subscriber = ends
    main = os.getpid()
    batches: list[list[Any]] = []
    interrupts = 0

    def write() -> None:
        for number in range(10_000):
            publisher.send(f"{number}:")
            if number % 10 == 0:
                os.kill(main, signal.SIGALRM)

    def take() -> None:
        # One call does all of it: between two steps of Python, a handler may drop the result of a wait.
        batches.extend(iter(partial(monitor.wait, 0.05), []))

    def raises_there(signum: int, frame: Any) -> None:
        if frame.f_code is take.__code__:
            raise AlarmError

    monitor = import_module("worker._native").Monitor(subscriber.fileno())
    with closing(monitor), on_signal(raises_there, first=LONG):
        writer = children.fork(write)
        ended = False
        while not ended:
            gone = os.waitid(os.P_PID, writer, os.WEXITED | os.WNOWAIT | os.WNOHANG)
            try:
                take()
                ended = gone is not None
            except AlarmError:
                interrupts += 1
    assert [event.command.names for batch in batches for event in batch] == [(str(n),) for n in range(10_000)]
    assert interrupts > 10


def test_pure_messages_are_kept_when_a_handler_raises(
    ends: tuple[Connection, Connection], children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In Python a handler may raise anywhere: here after the message is read, before the wait returns.
    publisher, subscriber = ends
    pid = children.fork(lambda: 0)
    children.settle(pid)
    monitor = Monitor(subscriber.fileno())
    monitor.watch("w", pid, None)
    publisher.send("a:")
    monkeypatch.setattr("worker._core.pure.monitor._exit_code", raises)
    with pytest.raises(AlarmError):
        monitor.wait(None)
    monitor.unwatch("w")
    assert monitor.wait(None) == [Received(A, os.getpid())]
    monitor.close()


def test_a_keyboard_interrupt_ends_a_wait(monitor: Any) -> None:
    with pytest.raises(KeyboardInterrupt), on_signal(once(lambda: signal.raise_signal(signal.SIGINT))):
        monitor.wait(None)
    assert monitor.wait(0) == []


def test_a_handler_may_wake_and_send(monitor: Any, publisher: Connection) -> None:
    with on_signal(once(monitor.wake)):
        assert monitor.wait(None) == []
    with on_signal(once(lambda: publisher.send("a:"))):
        assert monitor.wait(None) == [Received(A, os.getpid())]


def uses(monitor: Any) -> list[Callable[[], Any]]:
    return [
        lambda: monitor.wait(0),
        lambda: monitor.watch("w", os.getpid(), None),
        lambda: monitor.unwatch("w"),
        monitor.close,
    ]


IN_USE = r"^the monitor is in use: wait, watch, unwatch and close are for one thread at a time$"


def is_in_use(monitor: Any) -> bool:
    """Whether a thread waits with the monitor, which watches no process ``w``."""
    try:
        monitor.unwatch("w")
    except RuntimeError:
        return True
    except KeyError:
        return False
    raise AssertionError("w was watched")


def test_a_handler_may_not_use_a_waiting_monitor(monitor: Any) -> None:
    refused: list[Any] = []

    def handler(*_: Any) -> None:
        if refused or not is_in_use(monitor):
            return
        for use in uses(monitor):
            with pytest.raises(RuntimeError, match=IN_USE):
                use()
            refused.append(use)
        monitor.wake()

    with on_signal(handler):
        assert monitor.wait(None) == []
    assert len(refused) == 4


def test_another_thread_may_not_use_a_waiting_monitor(monitor: Any) -> None:
    waits = threading.Thread(target=monitor.wait, args=(None,))
    waits.start()
    pause = threading.Event()
    deadline = monotonic() + LONG
    while not is_in_use(monitor):
        assert monotonic() < deadline
        pause.wait(0.001)
    for use in uses(monitor):
        with pytest.raises(RuntimeError, match=IN_USE):
            use()
    monitor.wake()
    waits.join()
    assert monitor.wait(0) == []


def test_uses_of_a_closed_monitor_raise(monitor: Any) -> None:
    monitor.close()
    monitor.close()
    for use in [*uses(monitor)[:-1], monitor.wake, lambda: monitor.wakeup_fd]:
        with pytest.raises(ValueError, match=r"^the monitor is closed$"):
            use()


def test_a_close_leaves_the_pipe_open(core: ModuleType, ends: tuple[Connection, Connection]) -> None:
    publisher, subscriber = ends
    monitor = core.Monitor(subscriber.fileno())
    monitor.close()
    publisher.send("a:")
    assert subscriber.recv() == "a:"


def test_the_caller_may_close_the_pipe(core: ModuleType, ends: tuple[Connection, Connection]) -> None:
    publisher, subscriber = ends
    monitor = core.Monitor(subscriber.fileno())
    subscriber.close()
    with socket.socket() as same_number:
        publisher.send("a:")
        assert monitor.wait(LONG) == [Received(A, os.getpid())]
        assert same_number.fileno() >= 0
    monitor.close()
    with pytest.raises(BrokenPipeError):
        publisher.send("a:")


@pytest.mark.parametrize("fd", [-1, 1_000_000])
def test_a_descriptor_must_be_open(core: ModuleType, fd: int) -> None:
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        core.Monitor(fd)
    assert caught.value.args == (errno.EBADF, os.strerror(errno.EBADF))


def test_a_forked_child_may_close_its_copy(monitor: Any, publisher: Connection, children: Children) -> None:
    def child() -> int:
        before = descriptors()
        monitor.close()
        monitor.close()
        return len(before - descriptors())

    sleeper = children.fork(signal.pause)
    monitor.watch("sleeper", sleeper, None)
    closed = children.reap(children.fork(child))
    assert closed == 4, "the pipe, the two ends that wake, and one pidfd"
    publisher.send("a:")
    monitor.wake()
    assert monitor.wait(LONG) == [Received(A, os.getpid())]
    os.kill(sleeper, signal.SIGKILL)
    assert [event.key for event in monitor.wait(LONG)] == ["sleeper"]


def descriptors() -> set[int]:
    listed = [int(fd) for fd in os.listdir("/proc/self/fd")]
    # One of them was that of the listing itself.
    return {fd for fd in listed if os.path.exists(f"/proc/self/fd/{fd}")}


def test_descriptors_are_closed_and_not_inheritable(
    core: ModuleType, ends: tuple[Connection, Connection], children: Children
) -> None:
    pid = children.fork(signal.pause)
    before = descriptors()
    for close in (True, False):
        monitor = core.Monitor(ends[1].fileno())
        monitor.watch("w", pid, None)
        own = descriptors() - before
        assert len(own) == 4, "the pipe, the two ends that wake, and one pidfd"
        assert not any(map(os.get_inheritable, own))
        if close:
            monitor.close()
        del monitor
        gc.collect()
        assert descriptors() == before


def test_failures_leak_no_descriptors(
    core: ModuleType, ends: tuple[Connection, Connection], children: Children
) -> None:
    pid = children.fork(lambda: 0)
    children.settle(pid)
    monitor = core.Monitor(ends[1].fileno())
    before = descriptors()
    for _ in range(50):
        monitor.watch("w", pid, None)
        with pytest.raises(ValueError, match="already"):
            monitor.watch("w", pid, None)
        with pytest.raises(OSError, match="Bad file descriptor"):
            core.Monitor(-1)
        assert len(monitor.wait(LONG)) == 1
        monitor.watch("w", pid, None)
        monitor.unwatch("w")
        assert descriptors() == before
    monitor.close()
