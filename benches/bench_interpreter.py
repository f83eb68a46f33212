"""Measure how long the native core keeps the interpreter from another thread that always wants it."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from contextlib import closing
from multiprocessing import Pipe
from time import perf_counter, sleep, thread_time

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from scale import Scale, core
from trees import Trees

LIBC = ctypes.PyDLL(None)
# Files a directory.
EACH = 20
# The shortest gap that is noted, seconds: longer than a turn of the loop, shorter than a gap that matters.
NOTED = 50e-6
# How long the main thread sleeps or waits, seconds.
REST = 0.3


class Busy(threading.Thread):
    """Read the clock as often as possible, and note the gaps.

    Attributes:
        gaps: The length of each gap, seconds.
        kept: The part of each gap that was not the scheduler's doing, seconds. In it this thread neither had
            a processor nor was queued for one, and the main thread was not queued. It waited for the
            interpreter.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gaps: list[float] = []
        self.kept: list[float] = []
        self._ready = threading.Event()
        self._over = False

    def run(self) -> None:
        """Turn until told to stop."""
        with _Queue(os.getpid()) as mains, _Queue(threading.get_native_id()) as own:

            def account() -> tuple[float, float, float]:
                return thread_time(), own.seconds(), mains.seconds()

            before, last = account(), perf_counter()
            self._ready.set()
            over = False
            while not over:
                # Read before the gap is noted, so that the gap at the end counts too.
                over = self._over
                # The account is taken before a gap may begin, and once more when it is over.
                until_now, now = account(), perf_counter()
                if now - last > NOTED:
                    worked, queued, main_queued = (
                        new - old for new, old in zip(account(), before, strict=True)
                    )
                    self.gaps.append(now - last)
                    # Both threads may have been queued at the same time.
                    self.kept.append(max(0.0, now - last - worked - max(queued, main_queued)))
                before, last = until_now, now

    def during(self, act: Callable[[], object]) -> None:
        """Turn while ``act`` runs in the calling thread."""
        self.start()
        self._ready.wait()
        try:
            # Held until the end: releasing many objects takes time too.
            result = act()
        finally:
            self._over = True
            self.join()
        del result


class _Queue:
    """The time for which a thread of this process has been queued for a processor."""

    def __init__(self, thread: int) -> None:
        self._file = open(f"/proc/self/task/{thread}/schedstat", "rb")  # noqa: SIM115
        self._text = ctypes.create_string_buffer(100)

    def __enter__(self) -> _Queue:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def seconds(self) -> float:
        """Return the time so far."""
        # Not os.pread: that releases the interpreter.
        LIBC.pread(self._file.fileno(), self._text, len(self._text), 0)
        return int(self._text.value.split()[1]) / 1e9


@pytest.mark.parametrize("doing", ["nothing", "waiting", "first sweep", "later sweep", "all changed"])
def bench_interpreter(benchmark: BenchmarkFixture, scale: Scale, trees: Trees, doing: str) -> None:
    """Measure the longest gaps of a busy thread while another thread is in the core."""
    files = scale.trees[-1]
    scanner = core("native").Scanner([trees.root(files, EACH)])
    busy = Busy()
    if doing == "nothing":
        benchmark.pedantic(busy.during, (lambda: sleep(REST),))
    elif doing == "waiting":
        subscriber, publisher = Pipe(True)
        with subscriber, publisher, closing(core("native").Monitor(subscriber.fileno())) as monitor:
            benchmark.pedantic(busy.during, (lambda: monitor.wait(REST),))
    else:
        if doing != "first sweep":
            scanner.scan()
        if doing == "all changed":
            for path in trees.paths(files, EACH):
                os.utime(path)
        benchmark.pedantic(busy.during, (scanner.scan,))
    benchmark.extra_info.update(gaps=busy.gaps, kept=busy.kept)
