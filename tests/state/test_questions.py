"""A process is asked whether it is stuck: its native thread answers, and its interpreter."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import pytest
from support.processes import LONG, Children

from worker._state.shared import SharedState

pytestmark = pytest.mark.native


@pytest.fixture
def state() -> Iterator[SharedState]:
    state = SharedState()
    yield state
    state.close()


def until(holds: Callable[[], Any]) -> None:
    deadline = monotonic() + LONG
    while not holds():
        assert monotonic() < deadline
        select.select((), (), (), 0.005)


class Asked:
    """A child that takes questions, and calls a function with each, in its main thread."""

    def __init__(self, state: SharedState, children: Children, act: Callable[[int], Any]) -> None:
        ready, write = os.pipe()

        def child() -> None:
            questions = state.questions
            questions.open()
            os.close(write)
            number = 1
            while number := questions.next(number):
                act(number)

        self.pid = children.fork(child)
        os.close(write)
        os.read(ready, 1)
        os.close(ready)


def answering(state: SharedState) -> Callable[[int], None]:
    return state.questions.answer


def test_a_process_that_takes_no_questions_is_not_asked(state: SharedState) -> None:
    assert (state.ask(os.getpid()), state.answers(os.getpid())) == (0, (0, 0))
    state.beat()
    assert (state.ask(os.getpid()), state.answers(os.getpid())) == (0, (0, 0))


def test_both_threads_answer_a_question(state: SharedState, children: Children) -> None:
    asked = Asked(state, children, answering(state))
    assert state.answers(asked.pid) == (1, 1)
    for number in (2, 3, 4):
        assert state.ask(asked.pid) == number
        until(lambda number=number: state.answers(asked.pid) == (number, number))


def test_the_native_thread_answers_while_the_interpreter_is_stuck(
    state: SharedState, children: Children
) -> None:
    def hold_the_gil(_: int) -> None:
        import ctypes

        ctypes.PyDLL(None).pause()

    asked = Asked(state, children, hold_the_gil)
    for number in (2, 3):
        assert state.ask(asked.pid) == number
        until(lambda number=number: state.answers(asked.pid) == (number, 1))


def test_a_stopped_process_does_not_answer(state: SharedState, children: Children) -> None:
    asked = Asked(state, children, answering(state))
    os.kill(asked.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, asked.pid, os.WSTOPPED)
    assert state.ask(asked.pid) == 2
    assert state.answers(asked.pid) == (1, 1)
    os.kill(asked.pid, signal.SIGCONT)
    until(lambda: state.answers(asked.pid) == (2, 2))


def test_several_askers_have_questions_of_their_own(state: SharedState, children: Children) -> None:
    asked = Asked(state, children, answering(state))

    def ask() -> None:
        for _ in range(50):
            number = state.ask(asked.pid)
            until(lambda number=number: min(state.answers(asked.pid)) >= number)

    pids = [children.fork(ask) for _ in range(3)]
    assert [children.reap(pid) for pid in pids] == [0, 0, 0]
    assert state.ask(asked.pid) == 152


def test_no_question_is_taken_after_the_close(state: SharedState, children: Children) -> None:
    asked = Asked(state, children, lambda _: state.questions.close())
    assert state.ask(asked.pid) == 2
    assert children.reap(asked.pid) == 0
    assert state.ask(asked.pid) == 0


def test_a_fork_neither_answers_for_its_parent_nor_closes_its_questions(
    state: SharedState, children: Children
) -> None:
    def fork(number: int) -> None:
        pid = os.fork()
        if pid == 0:
            questions = state.questions
            questions.open()
            assert questions.next(number) == 0
            questions.answer(99)
            questions.set_signal(signal.SIGRTMAX)
            questions.close()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        state.questions.answer(number)

    asked = Asked(state, children, fork)
    assert state.ask(asked.pid) == 2
    until(lambda: state.answers(asked.pid) == (2, 2))
    assert state.stack_signal(asked.pid) == 0
    assert state.ask(asked.pid) == 3


def test_a_waiting_process_does_not_wake_up(state: SharedState, children: Children) -> None:
    asked = Asked(state, children, answering(state))
    tasks = f"/proc/{asked.pid}/task"

    def is_waiting() -> bool:
        return all("S (sleeping)" in status(task) for task in os.listdir(tasks))

    def status(task: str) -> str:
        with open(f"{tasks}/{task}/status", encoding="ascii") as status:
            return status.read()

    def switches() -> list[str]:
        lines = [line for task in os.listdir(tasks) for line in status(task).splitlines()]
        return [line for line in lines if line.startswith("voluntary")]

    def sleeps_on() -> bool:
        before = switches()
        assert len(before) == 2
        select.select((), (), (), 1.0)
        return switches() == before

    state.ask(asked.pid)
    until(lambda: state.answers(asked.pid) == (2, 2))
    until(is_waiting)
    # It may have slept on its way to the wait.
    until(sleeps_on)


def test_the_signal_is_shown_until_the_application_sets_a_handler(
    state: SharedState, children: Children
) -> None:
    def act(number: int) -> None:
        if number == 2:
            signal.signal(signal.SIGRTMAX, lambda *_: None)
            state.questions.set_signal(signal.SIGRTMAX)
        if number == 3:
            signal.signal(signal.SIGRTMAX, signal.SIG_DFL)
        state.questions.answer(number)

    asked = Asked(state, children, act)
    shown = []
    for number in (2, 3, 4):
        assert state.ask(asked.pid) == number
        until(lambda number=number: state.answers(asked.pid) == (number, number))
        shown.append(state.stack_signal(asked.pid))
    # At the second question, the native thread may be faster or slower than the new handler.
    assert (shown[0], shown[-1]) == (signal.SIGRTMAX, 0)


def test_the_share_of_a_busy_loop_is_shown(state: SharedState) -> None:
    state["a"] = {"pid": os.getpid()}
    state.beat(loop_busy=0.25)
    assert state["a"]["loop_busy"] == state.numbers(os.getpid())["loop_busy"] == 0.25


def test_a_closed_state_asks_nothing() -> None:
    state = SharedState()
    state.close()
    with pytest.raises(ValueError, match="closed"):
        state.ask(os.getpid())
