"""The steps by which the stacks of a process are collected, without a process that answers."""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.processes import Children
from support.running import until
from support.stacks import collect

from worker._system.proc import signals
from worker._system.stacks import ANSWER, DUMP, Collection

Tell = Callable[[int], object]


class FakeState:
    """A state in which the test answers."""

    def __init__(self, signum: int = 0) -> None:
        self.answer = (1, 1)
        self.signum = signum
        self.text: tuple[str, str] | None = ("stacks", "")

    def ask(self, pid: int) -> int:
        return 2

    def answers(self, pid: int) -> tuple[int, int]:
        return self.answer

    def stack_signal(self, pid: int) -> int:
        return self.signum

    def stacks(self, name: str, pid: int, question: int) -> tuple[str, str] | None:
        return self.text


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pid(children: Children) -> Iterator[int]:
    """A process that does nothing."""
    pid = children.fork(signal.pause)
    yield pid
    os.kill(pid, signal.SIGKILL)
    children.reap(pid)


def dump_file(thread: int) -> int:
    """Create the file for the dumps of this process, of which a thread takes the signal."""
    return os.memfd_create(f"sanic-worker-stacks-{threading.main_thread().ident:x}-{thread}")


def collection(state: Any, pid: int, clock: Clock) -> Collection:
    return Collection(state, "a", pid, clock=clock)


def dumping(pid: int, clock: Clock) -> Collection:
    """A collection that has sent the signal, to a process whose interpreter does not answer."""
    state = FakeState(signal.SIGRTMAX)
    state.answer = (2, 1)
    one = collection(state, pid, clock)
    clock.now = ANSWER
    assert one.step() is None
    return one


def prepared(children: Children, child: Callable[[Tell], int | None]) -> tuple[int, int]:
    """Fork a child that tells a number when it can take the signal; return its pid and the number."""
    ready, write = os.pipe()
    pid = children.fork(child, lambda number: os.write(write, bytes([number])))
    number = os.read(ready, 1)[0]
    os.close(ready)
    os.close(write)
    return pid, number


def test_an_answer_of_the_interpreter_ends_it_at_once(pid: int, clock: Clock) -> None:
    state = FakeState()
    one = collection(state, pid, clock)
    assert one.step() is None
    state.answer = (2, 2)
    state.text = ("stacks", "pdb")
    assert one.step() == ("stacks", "interpreter", "pdb")


def test_an_answer_to_a_later_question_counts(pid: int, clock: Clock) -> None:
    state = FakeState()
    state.answer = (7, 7)
    found = collection(state, pid, clock).step()
    assert found is not None
    assert found.way == "interpreter"


def test_an_answer_without_stacks_leaves_the_kernel(pid: int, clock: Clock) -> None:
    state = FakeState()
    state.answer, state.text = (2, 2), None
    found = collection(state, pid, clock).step()
    assert found is not None
    assert (found.way, found.text.partition(":")[0]) == ("kernel", f"Process {pid}")


@pytest.mark.parametrize("answer", [(1, 1), (2, 1)])
def test_a_process_without_an_answer_and_a_signal_is_described_by_the_kernel(
    pid: int, clock: Clock, answer: tuple[int, int]
) -> None:
    state = FakeState()
    state.answer = answer
    one = collection(state, pid, clock)
    clock.now = ANSWER - 0.01
    assert one.step() is None
    clock.now = ANSWER
    found = one.step()
    assert found is not None
    assert found.way == "kernel"


def test_a_signal_without_a_handler_is_not_sent(pid: int, clock: Clock) -> None:
    state = FakeState(signal.SIGRTMAX)
    state.answer = (2, 1)
    one = collection(state, pid, clock)
    clock.now = ANSWER
    found = one.step()
    assert found is not None
    assert found.way == "kernel"
    assert os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def test_a_signal_that_dumps_nothing_is_waited_for_in_vain(children: Children, clock: Clock) -> None:
    def child(tell: Tell) -> None:
        signal.signal(signal.SIGRTMAX, lambda *_: None)
        tell(dump_file(threading.get_native_id()))
        while True:
            signal.pause()

    pid, _ = prepared(children, child)
    one = dumping(pid, clock)
    clock.now = ANSWER + DUMP
    found = one.step()
    assert found is not None
    assert found.way == "kernel"


def test_of_several_dumps_one_is_shown(children: Children, clock: Clock) -> None:
    def child(tell: Tell) -> None:
        file = dump_file(threading.get_native_id())
        faulthandler.register(signal.SIGRTMAX, file=file, all_threads=True)
        # Another thread would take a signal that comes during a dump, and give it up.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMAX])
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGRTMAX])
        tell(file)
        while True:
            signal.pause()

    pid, number = prepared(children, child)
    file = os.open(f"/proc/{pid}/fd/{number}", os.O_RDONLY)
    one = dumping(pid, clock)
    for count in (1, 2):
        until(lambda count=count: os.pread(file, 1 << 16, 0).count(b" in child") == count, "a dump")
        os.kill(pid, signal.SIGRTMAX)
    until(lambda: os.pread(file, 1 << 16, 0).count(b" in child") == 3, "all dumps")
    clock.now = ANSWER + DUMP
    found = one.step()
    os.close(file)
    assert found is not None
    assert found.way == "faulthandler"
    assert found.text.count("Thread MainThread") == found.text.count(" in child") == 1
    assert found.text.count("Thread 0x") == 1


def test_a_signal_during_a_dump_waits_for_its_thread(children: Children, clock: Clock) -> None:
    def taker(tell: Tell) -> None:
        # As the kernel does while the handler runs.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMAX])
        tell(dump_file(threading.get_native_id()))
        threading.Event().wait()

    def child(tell: Tell) -> int:
        signal.signal(signal.SIGRTMAX, lambda *_: os._exit(3))
        threading.Thread(target=taker, args=(tell,), daemon=True).start()
        signal.pause()
        return 2

    pid, _ = prepared(children, child)
    dumping(pid, clock)
    waits = [
        int(task)
        for task in os.listdir(f"/proc/{pid}/task")
        if signal.SIGRTMAX in signals(f"{pid}/task/{task}", "SigPnd")
    ]
    assert len(waits) == 1
    assert waits != [pid]
    os.kill(pid, signal.SIGKILL)
    assert children.reap(pid) == -signal.SIGKILL


def test_a_process_that_is_gone_has_no_stacks(clock: Clock) -> None:
    found = collection(FakeState(), 2**22 + 1, clock).step()
    assert found == ("", "kernel", "")


def test_another_state_answers_no_questions(pid: int) -> None:
    state: Any = {}
    found = collect(state, "a", pid)
    assert found.way == "kernel"
    assert f"Thread {pid} " in found.text


def test_a_stopped_process_is_not_waited_for(pid: int, clock: Clock) -> None:
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED)
    found = collection(FakeState(), pid, clock).step()
    assert found is not None
    assert "stopped by a signal (state T)" in found.text
