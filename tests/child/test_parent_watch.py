"""The parent watch: a process ends after its main process."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from support.processes import LONG, Children

pytestmark = pytest.mark.slow

SIGINT = {signal.SIGINT}
# Longer than any test waits.
NEVER = 1000.0


class Main:
    """A main process that can be killed, its pidfd, and a pipe on which children report."""

    def __init__(self, children: Children) -> None:
        self._children = children
        self.pid = children.fork(signal.pause)
        self.watch = os.pidfd_open(self.pid)
        self.heard, self.speaks = os.pipe()

    def die(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self._children.reap(self.pid)

    def hears(self) -> bytes:
        """Return the next report of a child."""
        return os.read(self.heard, 1)

    def close(self) -> None:
        for descriptor in (self.watch, self.heard, self.speaks):
            os.close(descriptor)


@pytest.fixture
def main(children: Children) -> Iterator[Main]:
    made = Main(children)
    yield made
    made.close()


def interrupted(within: float = LONG) -> bool:
    """Whether SIGINT is pending in this process, which blocks it."""
    came = signal.sigtimedwait(SIGINT, within)
    # If the timeout ends while the process is stopped, CPython returns the details of no signal.
    return came is not None and came.si_signo == signal.SIGINT


def child(core: ModuleType, main: Main, grace: float, act: Any) -> int:
    """Watch the main process with SIGINT blocked, and report it; then act on the watch."""
    os.setsid()
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGINT)
    watch = core.ParentWatch(main.watch, grace)
    os.write(main.speaks, b"h")
    return int(act(watch))


def test_a_process_is_interrupted_when_the_main_process_ends(
    core: ModuleType, children: Children, main: Main
) -> None:
    pid = children.fork(child, core, main, NEVER, lambda watch: 7 if interrupted() else 1)
    assert main.hears() == b"h"
    main.die()
    assert children.reap(pid) == 7


def test_a_process_is_not_interrupted_while_the_main_process_runs(
    core: ModuleType, children: Children, main: Main
) -> None:
    pid = children.fork(child, core, main, 0.0, lambda watch: 1 if interrupted(0.1) else 7)
    assert children.reap(pid) == 7


def test_a_process_is_interrupted_once(core: ModuleType, children: Children, main: Main) -> None:
    pid = children.fork(
        child, core, main, NEVER, lambda watch: 7 if interrupted() and not interrupted(0.1) else 1
    )
    assert main.hears() == b"h"
    main.die()
    assert children.reap(pid) == 7


def test_the_interrupt_is_repeated_when_the_handlers_are_set(
    core: ModuleType, children: Children, main: Main
) -> None:
    def act(watch: Any) -> int:
        if not interrupted():
            return 1
        watch.stop_handlers_set()
        watch.stop_handlers_set()
        return 7 if interrupted() and not interrupted(0.1) else 2

    pid = children.fork(child, core, main, NEVER, act)
    assert main.hears() == b"h"
    main.die()
    assert children.reap(pid) == 7


def test_the_interrupt_is_not_repeated_after_the_handlers_are_set(
    core: ModuleType, children: Children, main: Main
) -> None:
    def act(watch: Any) -> int:
        watch.stop_handlers_set()
        os.write(main.speaks, b"s")
        first = interrupted()
        watch.stop_handlers_set()
        return 7 if first and not interrupted(0.1) else 1

    pid = children.fork(child, core, main, NEVER, act)
    assert main.hears() + main.hears() == b"hs"
    main.die()
    assert children.reap(pid) == 7


def test_the_interrupt_is_not_repeated_after_the_stop_has_begun(
    core: ModuleType, children: Children, main: Main
) -> None:
    def act(watch: Any) -> int:
        first = interrupted()
        watch.stop_begun()
        watch.stop_handlers_set()
        return 7 if first and not interrupted(0.1) else 1

    pid = children.fork(child, core, main, NEVER, act)
    assert main.hears() == b"h"
    main.die()
    assert children.reap(pid) == 7


def test_a_stopping_process_is_not_interrupted(core: ModuleType, children: Children, main: Main) -> None:
    def act(watch: Any) -> int:
        watch.stop_begun()
        os.write(main.speaks, b"g")
        return 1 if interrupted(0.1) else 7

    pid = children.fork(child, core, main, NEVER, act)
    assert main.hears() + main.hears() == b"hg"
    main.die()
    assert children.reap(pid) == 7


def test_a_process_that_does_not_exit_is_killed_with_its_children(
    core: ModuleType, children: Children, main: Main
) -> None:
    reading, writing = os.pipe()

    def act(watch: Any) -> int:
        if not os.fork():
            os.close(reading)
            signal.pause()
        os.close(writing)
        return signal.pause()  # type: ignore[func-returns-value]

    pid = children.fork(child, core, main, 0.1, act)
    os.close(writing)
    assert main.hears() == b"h"
    main.die()
    assert children.reap(pid) == -signal.SIGKILL
    # The last process that had it open ends.
    assert os.read(reading, 1) == b""
    os.close(reading)


def test_without_a_session_only_the_process_is_killed(
    core: ModuleType, children: Children, main: Main
) -> None:
    """The group is that of the tests."""

    def member() -> int:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGINT)
        core.ParentWatch(main.watch, 0.0)
        os.write(main.speaks, b"h")
        return signal.pause()  # type: ignore[func-returns-value]

    pid = children.fork(member)
    assert main.hears() == b"h"
    main.die()
    assert children.reap(pid) == -signal.SIGKILL


def test_a_process_that_hangs_in_c_code_is_killed(children: Children, main: Main) -> None:
    """With the native core, the thread needs nothing that the interpreter holds."""
    native = pytest.importorskip("worker._native")

    def act(watch: Any) -> int:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.write(main.speaks, b"g")
        # The target never releases the interpreter.
        ctypes.PyDLL(None).pause()
        return 1

    pid = children.fork(child, native, main, 0.1, act)
    assert main.hears() + main.hears() == b"hg"
    main.die()
    assert children.reap(pid) == -signal.SIGKILL


@pytest.mark.parametrize("watch", [-1, 1_000_000])
def test_an_invalid_descriptor_is_refused(core: ModuleType, watch: int) -> None:
    with pytest.raises(OSError):
        core.ParentWatch(watch, 1.0)


@pytest.mark.parametrize("grace", [-1.0, float("nan")])
def test_an_invalid_grace_period_is_refused(core: ModuleType, grace: float) -> None:
    reading, writing = os.pipe()
    with pytest.raises(ValueError, match="is no number of seconds from 0 on"):
        core.ParentWatch(reading, grace)
    os.close(reading)
    os.close(writing)
