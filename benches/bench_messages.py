"""Receive messages and decode the commands, as a manager's monitor does."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from typing import Any

import pytest
from _limit import Reader
from pytest_benchmark.fixture import BenchmarkFixture
from scale import CONTENDERS, Scale, core

# As many small messages as a socket surely holds.
QUEUED = 150
SMALL = (30, 100, 300)
LARGE = (3_000, 30_000, 300_000, 1_000_000)

Take = Callable[[int], None]


@pytest.fixture
def ends() -> Iterator[tuple[Connection, Connection]]:
    """Yield the two ends of a control channel: the reader and the writer."""
    subscriber, publisher = Pipe(True)
    with subscriber, publisher:
        yield subscriber, publisher


@pytest.mark.parametrize("contender", [*CONTENDERS, "limit"])
@pytest.mark.parametrize("size", SMALL)
def bench_queued(
    benchmark: BenchmarkFixture,
    scale: Scale,
    ends: tuple[Connection, Connection],
    size: int,
    contender: str,
) -> None:
    """Receive messages that are there already."""
    subscriber, publisher = ends
    messages = [message(number, size) for number in range(QUEUED)]

    def queue() -> None:
        for each in messages:
            publisher.send(each)

    with taking(contender, subscriber) as take:
        benchmark.pedantic(take, (QUEUED,), setup=queue, rounds=scale.repeats, warmup_rounds=1)
    benchmark.extra_info["messages"] = QUEUED


@pytest.mark.parametrize("contender", [*CONTENDERS, "limit"])
@pytest.mark.parametrize("size", LARGE)
def bench_streamed(
    benchmark: BenchmarkFixture,
    scale: Scale,
    ends: tuple[Connection, Connection],
    size: int,
    contender: str,
) -> None:
    """Receive messages that another process sends meanwhile: more than the channel holds."""
    subscriber, publisher = ends
    count = scale.streamed // size
    with taking(contender, subscriber) as take, sending(publisher, size, count) as start:

        def stream() -> None:
            start()
            take(count)

        benchmark.pedantic(stream, rounds=3, warmup_rounds=1)
    benchmark.extra_info["messages"] = count


def message(number: int, size: int) -> str:
    """Return a request to restart a process of its own name, of about this many bytes when it is pickled."""
    text = f"Sanic-Server-{number}-0:"
    return text + "x" * (size - len(pickle.dumps(text)))


@contextmanager
def taking(contender: str, subscriber: Connection) -> Iterator[Take]:
    """Return a function that takes this many messages from the channel."""
    if contender == "stock":

        def take(count: int) -> None:
            while count:
                if subscriber.poll(0.1):
                    names, *_ = subscriber.recv().split(":", 2)
                    [name.strip() for name in names.split(",")]
                    count -= 1

        yield take
    elif contender == "limit":
        yield _all_of(Reader(subscriber.fileno()).take)
    else:
        with closing(core(contender).Monitor(subscriber.fileno())) as monitor:
            yield _all_of(lambda: monitor.wait(None))


def _all_of(some: Callable[[], list[Any]]) -> Take:
    def take(count: int) -> None:
        while count > 0:
            count -= len(some())

    return take


@contextmanager
def sending(publisher: Connection, size: int, count: int) -> Iterator[Callable[[], object]]:
    """Yield a function that makes a process send this many messages."""
    # The reader is measured, so the writer has its pickles ready.
    payloads = [pickle.dumps(message(number, size)) for number in range(count)]
    told, telling = os.pipe()

    def send() -> None:
        while True:
            os.read(told, 1)
            for payload in payloads:
                publisher.send_bytes(payload)

    sender = get_context("fork").Process(target=send, daemon=True)
    sender.start()
    try:
        yield lambda: os.write(telling, b"!")
    finally:
        sender.kill()
        sender.join()
        os.close(told)
        os.close(telling)
