from __future__ import annotations

import multiprocessing
import os
import threading
from contextlib import suppress
from typing import Any

import pytest
from support.fakes import FakePublisher

from worker._control.send import has_room, report_busy, send


def test_messages_are_sent_unchanged() -> None:
    publisher = FakePublisher()
    message = ("a", 1)
    send(publisher, message)
    assert publisher.sent[0] is message


def test_large_messages_of_several_threads_arrive_whole() -> None:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    messages = [letter * 300_000 for letter in "abcd"] * 5
    with receiver, sender:
        threads = [threading.Thread(target=send, args=(sender, message)) for message in messages]
        for thread in threads:
            thread.start()
        received = [receiver.recv() for _ in messages]
        for thread in threads:
            thread.join()
    assert sorted(received) == sorted(messages)


def test_a_nested_send_waits_for_the_current_one() -> None:
    log: list[str] = []

    class Slow:
        """Send in two halves, and be interrupted between them as by a signal handler that sends."""

        def send(self, obj: Any, /) -> None:
            log.append(f"{obj} begins")
            if obj == "first":
                send(self, "second")
            log.append(f"{obj} ends")

    send(Slow(), "first")
    assert log == ["first begins", "first ends", "second begins", "second ends"]


def test_a_failed_send_does_not_block_later_ones() -> None:
    def refuse(message: Any) -> None:
        raise BrokenPipeError(message)

    with pytest.raises(BrokenPipeError):
        send(FakePublisher(refuse), "lost")
    publisher = FakePublisher()
    send(publisher, "kept")
    assert publisher.sent == ["kept"]


def test_a_child_forked_during_a_send_can_send() -> None:
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    sending, go_on = threading.Event(), threading.Event()

    def hold(_: Any) -> None:
        sending.set()
        go_on.wait()

    thread = threading.Thread(target=send, args=(FakePublisher(hold), "slow"))
    child = context.Process(target=send, args=(sender, "from the child"))
    with receiver, sender:
        thread.start()
        sending.wait()
        child.start()
        try:
            arrived = receiver.poll(10)
        finally:
            go_on.set()
            thread.join()
            if child.is_alive() and not receiver.poll(0):
                child.kill()
            child.join()
        assert arrived
        assert receiver.recv() == "from the child"
    assert child.exitcode == 0
    child.close()


def test_a_report_is_not_sent_into_a_full_channel() -> None:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    with receiver, sender:
        assert report_busy(sender)
        assert receiver.recv() == ("__BUSY__",)
        os.set_blocking(sender.fileno(), False)
        with suppress(BlockingIOError):
            while True:
                os.write(sender.fileno(), bytes(4096))
        assert not report_busy(sender)


def test_a_publisher_without_a_real_descriptor_has_room() -> None:
    """Such as the Mock of a test, or a queue."""

    class Odd:
        def fileno(self) -> object:
            return object()

        def send(self, obj: object) -> None:
            raise AssertionError

    assert has_room(Odd())
