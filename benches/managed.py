"""Measure a manager at work: ``managed.py CONTENDER LOAD PROCESSES AMOUNT`` prints the result as JSON.

This is a program of its own because a process has one core for good, which ``WORKER_CORE`` chooses. The
manager is a real one, with real processes that idle and a real shared state. Its verb ``restart`` is replaced
by one that records its calls; any user may replace it. Another process, the driver, makes the load. It begins
when the manager has obeyed a first message, and so is known to be at work.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from itertools import count, cycle, repeat
from multiprocessing import Pipe, active_children, get_context
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import RawValue
from random import Random
from select import POLLIN, poll
from time import monotonic, monotonic_ns, sleep
from typing import Any, Protocol

from usage import resident, used

# Packages that the tests need, and that Sanic imports if they are there, would count as memory of the
# manager.
sys.modules.update(dict.fromkeys(("aioquic", "trustme")))  # type: ignore[arg-type]

from sanic.exceptions import ServerKilled  # noqa: E402

CONTEXT = get_context("fork")
BLOCK = 64 * 1024
# Many more names than a wait takes at once, so that no name comes twice among them.
BLOCKS = 16
# How long the manager may go on with queued messages after the driver has stopped, seconds.
GRACE = 1.0
# The pause before each single event, in which the manager becomes idle, seconds.
PAUSE = 0.01
# How often a polling manager looks around, seconds: events are spread over it.
TICK = 0.1
# How long a manager is left alone before it is watched, seconds.
REST = 1.0
# After this time an exit counts as never noticed, seconds.
NEVER = 2.0


class Load(Protocol):
    """The load on a manager."""

    def prepare(self, manager: Any) -> None:
        """Take over a manager whose processes have been started."""

    def drive(self, publisher: Connection) -> None:
        """Make the load; runs in the driver."""

    def restart(self, *args: Any, **kwargs: Any) -> None:
        """Record a call, in place of the manager's verb."""

    def result(self, to_the_end: bool) -> dict[str, Any]:
        """Return the figures, and whether the manager has reached the end of the load."""


class Flood:
    """Write as many restart requests as the manager takes, in blocks; names and calls are counted.

    ``different`` says whether each message has a name of its own.
    """

    def __init__(self, seconds: float, *, different: bool) -> None:
        self._seconds = seconds
        self._different = different
        self._sent = RawValue("q", 0)
        self._began = self._ended = 0.0
        self._names = self._calls = 0

    def prepare(self, manager: Any) -> None:
        """Need nothing of the manager."""

    def drive(self, publisher: Connection) -> None:
        """Write blocks for some time, then the end."""
        numbers = count() if self._different else repeat(0)
        blocks = [_block(lambda: next(numbers)) for _ in range(BLOCKS)]
        deadline = monotonic() + self._seconds
        for messages, block in cycle(blocks):
            if monotonic() > deadline:
                break
            view = memoryview(block)
            while view:
                view = view[os.write(publisher.fileno(), view) :]
            self._sent.value += messages
        publisher.send("__TERMINATE__")

    def restart(self, process_names: list[str], **kwargs: Any) -> None:
        """Count the names."""
        now = monotonic()
        if not self._calls:
            self._began = now
        self._calls += 1
        self._names += len(process_names)
        self._ended = now
        if now - self._began > self._seconds + GRACE:
            raise ServerKilled

    def result(self, to_the_end: bool) -> dict[str, Any]:
        """Return the number of messages and of calls, and the time they took."""
        # Where several messages became one call, only the driver knows their number.
        messages = self._sent.value if to_the_end else self._names
        if self._different and messages != self._names:
            raise SystemExit(f"{messages} messages were sent, and {self._names} obeyed")
        return {"messages": messages, "calls": self._calls, "seconds": self._ended - self._began}


def _block(number: Callable[[], int]) -> tuple[int, bytes]:
    frames: list[bytes] = []
    size = 0
    while size < BLOCK:
        payload = pickle.dumps(f"Sanic-Server-{number()}-0:")
        frames.append(struct.pack("!i", len(payload)) + payload)
        size += len(frames[-1])
    return len(frames), b"".join(frames)


class OneByOne:
    """Send one message at a time to an idle manager; measure the time from before the sending to the verb."""

    def __init__(self, times: float) -> None:
        self._times = int(times)
        self._samples: list[float] = []

    def prepare(self, manager: Any) -> None:
        """Need nothing of the manager."""

    def drive(self, publisher: Connection) -> None:
        """Send messages that carry the time of their sending, then the end."""
        for _ in range(self._times):
            sleep(PAUSE)
            publisher.send(f"Sanic-Server-0-0:{monotonic_ns()}")
        sleep(PAUSE)
        publisher.send("__TERMINATE__")

    def restart(self, reloaded_files: str, **kwargs: Any) -> None:
        """Record the delay."""
        self._samples.append((monotonic_ns() - int(reloaded_files)) / 1e6)

    def result(self, to_the_end: bool) -> dict[str, Any]:
        """Return the times, ms."""
        return {"samples": self._samples}


@contextmanager
def flooding(publisher: Connection) -> Iterator[None]:
    """Let another process write as many requests as the manager takes."""

    def write() -> None:
        numbers = count()
        for _, block in cycle([_block(lambda: next(numbers)) for _ in range(BLOCKS)]):
            os.write(publisher.fileno(), block)

    writer = CONTEXT.Process(target=write)
    writer.start()
    try:
        yield
    finally:
        writer.kill()
        writer.join()


class Exits:
    """Kill one process at a time; measure the time from the kernel's report until the manager knows.

    ``flooded`` says whether messages are written meanwhile, as many as the manager takes.
    """

    def __init__(self, times: float, *, stock: bool, flooded: bool) -> None:
        self._times = int(times)
        self._stock = stock
        self._flooded = flooded
        self._hearing, self._telling = Pipe(False)
        self._result, self._reporting = Pipe(False)

    def prepare(self, manager: Any) -> None:
        """Send the driver the pids; hook the first line of the manager that handles an exit."""
        self._telling.send([process.pid for process in manager.processes])
        if self._stock:
            kind = import_module("sanic.worker.process").WorkerProcess
            self._tell(
                kind, "set_state", lambda process, state, *_: process.pid if state.name == "FAILED" else 0
            )
        else:
            # Not at the top: stock has a process of its own.
            from worker._supervisor.supervisor import Supervisor

            def pid(supervisor: Supervisor, key: str, exitcode: int | None) -> int:
                return supervisor.children[key].base.pid or 0

            self._tell(Supervisor, Supervisor.on_exit.__name__, pid)

    def _tell(self, kind: Any, name: str, dead: Callable[..., int]) -> None:
        original = getattr(kind, name)

        def telling(*args: Any, **kwargs: Any) -> Any:
            now = monotonic_ns()
            if pid := dead(*args):
                self._telling.send((pid, now))
            return original(*args, **kwargs)

        setattr(kind, name, telling)

    def drive(self, publisher: Connection) -> None:
        """Kill one process after the other, then send the end."""
        pids = self._hearing.recv()
        random = Random(0)
        samples = []
        with flooding(publisher) if self._flooded else nullcontext():
            for pid in pids[: self._times]:
                sleep(PAUSE + TICK * random.random())
                ready = _kill(pid)
                noticed = self._noticed(pid)
                samples.append(None if noticed is None else (noticed - ready) / 1e6)
        self._reporting.send(samples)
        publisher.send("__TERMINATE__")

    def _noticed(self, pid: int) -> int | None:
        while self._hearing.poll(NEVER):
            who, when = self._hearing.recv()
            if who == pid:
                return int(when)
        return None

    def restart(self, *args: Any, **kwargs: Any) -> None:
        """Record nothing."""

    def result(self, to_the_end: bool) -> dict[str, Any]:
        """Return the times, ms; ``None`` for an exit that was not noticed."""
        return {"samples": self._result.recv()}


class Signals:
    """Send one SIGTERM at a time in a flood of messages; measure the time from its sending to the manager's
    verb.
    """

    def __init__(self, times: float) -> None:
        self._times = int(times)
        self._sent = RawValue("q", 0)
        self._samples: list[float] = []

    def prepare(self, manager: Any) -> None:
        """Record the call, in place of the manager's verb, and let the manager go on."""

        def noting(*_: Any) -> None:
            self._samples.append((monotonic_ns() - self._sent.value) / 1e6)

        manager.shutdown_signal = noting

    def drive(self, publisher: Connection) -> None:
        """Send signals, then the end."""
        with flooding(publisher):
            for _ in range(self._times):
                sleep(PAUSE + TICK / 2)
                self._sent.value = monotonic_ns()
                os.kill(os.getppid(), signal.SIGTERM)
            sleep(PAUSE + TICK / 2)
        publisher.send("__TERMINATE__")

    def restart(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing."""

    def result(self, to_the_end: bool) -> dict[str, Any]:
        """Return the times, ms."""
        return {"samples": self._samples}


class Idle:
    """Make no load; measure the main process, and the process of its state, while they wait."""

    def __init__(self, seconds: float, helpers: list[int]) -> None:
        self._seconds = seconds
        self._helpers = helpers
        self._hearing, self._telling = Pipe(False)
        self._result, self._reporting = Pipe(False)

    def prepare(self, manager: Any) -> None:
        """Send the driver the pids to watch."""
        self._telling.send([os.getpid(), *self._helpers])

    def drive(self, publisher: Connection) -> None:
        """Watch the processes, then send the end."""
        pids = self._hearing.recv()
        sleep(REST)
        before = [used(pid) for pid in pids]
        sleep(self._seconds)
        after = [used(pid) for pid in pids]
        switches, running = (
            sum(now[one] for now in after) - sum(then[one] for then in before) for one in range(2)
        )
        self._reporting.send(
            {
                "switches": switches / self._seconds,
                "cpu": running / self._seconds / 1e9 * 100,
                "memory": sum(resident(pid) / 1000 for pid in pids),
            }
        )
        publisher.send("__TERMINATE__")

    def restart(self, *args: Any, **kwargs: Any) -> None:
        """Record nothing."""

    def result(self, to_the_end: bool) -> dict[str, Any]:
        """Return switches a second, percent of a processor, MB."""
        found: dict[str, Any] = self._result.recv()
        return found


def _kill(pid: int) -> int:
    """Kill a process; return the time at which the kernel reported its exit."""
    pidfd = os.pidfd_open(pid)
    try:
        waiting = poll()
        waiting.register(pidfd, POLLIN)
        os.kill(pid, signal.SIGKILL)
        waiting.poll()
        return monotonic_ns()
    finally:
        os.close(pidfd)


def idle() -> None:
    """Idle: the target of the processes in the table."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_DFL)
    while True:
        signal.pause()


class Least:
    """The limit of one message at a time, without a manager: it reads a message and calls the verb."""

    processes = ()
    restart: Callable[..., None]

    def __init__(self, ends: tuple[Connection, Connection]) -> None:
        self.monitor_publisher, self._subscriber = ends

    def start(self) -> None:
        """Start nothing."""

    def monitor(self) -> None:
        """Read until the end."""
        # A read of the descriptor is enough: the frame's header comes along with its payload.
        while (text := pickle.loads(os.read(self._subscriber.fileno(), BLOCK)[4:])) != "__TERMINATE__":
            name, _, files = text.partition(":")
            self.restart(process_names=[name], reloaded_files=files)


@contextmanager
def state_of(contender: str) -> Iterator[tuple[Any, list[int]]]:
    """Return the state of the processes, and the manager of its process."""
    if contender == "stock":
        from multiprocessing.managers import SyncManager

        with SyncManager(ctx=CONTEXT) as server:
            yield server.dict(), [server._process.pid]  # type: ignore[attr-defined]
    elif contender == "limit":
        yield None, []
    else:
        manager = import_module("worker.integration").StateManager()
        yield manager.dict(), [] if manager._process is None else [manager._process._process.pid]
        manager.shutdown()


def load_of(name: str, amount: float, stock: bool, helpers: list[int]) -> Load:
    """Return the load of that name; ``amount`` is the seconds of a flood, else the number of events."""
    if name.startswith("exits"):
        return Exits(amount, stock=stock, flooded=name == "exits-in-a-flood")
    if name == "idle":
        return Idle(amount, helpers)
    if name == "signals-in-a-flood":
        return Signals(amount)
    return OneByOne(amount) if name == "one-by-one" else Flood(amount, different=name == "different")


def work(manager: Any, load: Load, go: Any) -> bool:
    """Run the manager until the driver ends it; return whether it ended in order."""

    def begin(**kwargs: Any) -> None:
        manager.restart = load.restart
        go.set()

    manager.restart = begin
    manager.start()
    for process in manager.processes:
        manager.worker_state[process.name] = {
            **manager.worker_state[process.name],
            "state": "ACKED",
            "serving": True,
        }
    load.prepare(manager)
    manager.monitor_publisher.send("Sanic-Server-0-0:")
    try:
        manager.monitor()
    except ServerKilled:
        return False
    return True


def main() -> None:
    """Make the manager and the driver, let them work, print the result, and leave nothing behind."""
    contender, name, processes, amount = sys.argv[1:]
    stock = contender == "stock"
    subscriber, publisher = Pipe(True)
    go = CONTEXT.Event()
    try:
        with state_of(contender) as (state, helpers):
            load = load_of(name, float(amount), stock, helpers)

            def drive() -> None:
                go.wait()
                load.drive(publisher)

            CONTEXT.Process(target=drive).start()
            manager: Any = Least((publisher, subscriber))
            if contender != "limit":
                module = import_module("sanic.worker.manager" if stock else "worker.manager")
                ends = publisher, subscriber
                manager = module.WorkerManager(int(processes), idle, {}, CONTEXT, ends, state)
            print(json.dumps(load.result(work(manager, load, go))))
    finally:
        for child in active_children():
            child.kill()
            child.join()


if __name__ == "__main__":
    main()
