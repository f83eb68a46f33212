"""A real manager with real processes: it runs in the test's main thread while the test acts from another."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import select
import signal
import subprocess
import sys
import textwrap
import threading
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import Pipe, active_children, get_context
from multiprocessing.managers import SyncManager
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple, TypeVar

import pytest

import worker
from support import targets
from worker._core import IS_NATIVE
from worker._spawn.state_process import StateProcess, StateProxy
from worker._state.shared import SharedState
from worker.constants import ProcessState
from worker.manager import WorkerManager

TIMEOUT = 15.0
FINAL = {None, "TERMINATED", "FAILED", "COMPLETED", "NONE"}
TESTS = Path(__file__).parent.parent
PACKAGE = Path(worker.__file__).parent.parent

T = TypeVar("T")


def until(look: Callable[[], T], what: str, timeout: float = TIMEOUT) -> T:
    """What ``look`` returns as soon as that is true."""
    pause = threading.Event()
    deadline = monotonic() + timeout
    while not (value := look()):
        if monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what}; last seen: {value!r}")
        pause.wait(0.005)
    return value


async def until_in_loop(look: Callable[[], Any]) -> None:
    """Let the loop run until ``look`` returns something true; the caller sets a limit."""
    while not look():
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 0.01)


def wait_for_end(pid: int, timeout: float = TIMEOUT) -> None:
    """Wait until a process is dead, be it our child or not."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        assert poll.poll(timeout * 1000), f"process {pid} lives on"
    finally:
        os.close(pidfd)


def lives(pid: int) -> bool:
    """Whether a process has not ended; a zombie has."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


@contextlib.contextmanager
def listening(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Hear what the manager logs; then let go of the processes that it names, and of all that had ended."""
    caplog.set_level(logging.INFO, "sanic.root")
    yield
    caplog.get_records("call").clear()
    gc.collect()


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The lines of the log that tell of an error."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def logged(caplog: pytest.LogCaptureFixture, text: str) -> str:
    """Wait for a line of the log that has ``text`` in it."""
    return until(
        lambda: next((line for line in [*caplog.messages] if text in line), ""), f"{text!r} in the log"
    )


class Said(NamedTuple):
    """A word of a process under test."""

    name: str
    pid: int
    what: Any


class House:
    """A manager over a real pipe and a real shared mapping, for one :meth:`run`.

    ``plan`` is what the servers do (see :mod:`.targets`); ``number`` how many there are at first. The mapping
    is ours, in shared memory; or with ``proxied`` that of a ``SyncManager``, which the native core can do
    without, and in place of which the pure one has its own.
    """

    def __init__(
        self,
        folder: Path,
        plan: str = "serves",
        *,
        number: int = 1,
        method: str = "fork",
        target: Callable[..., Any] = targets.server,
        state: Any = None,
        proxied: bool = not IS_NATIVE,
        kwargs: dict[str, Any] | None = None,
        subscriber: Any = None,
        publisher: Any = None,
        **settings: Any,
    ) -> None:
        self._handlers = {signum: signal.getsignal(signum) for signum in signal.valid_signals()}
        self._server: SyncManager | StateProcess | None = None
        self._own: SharedState | None = None
        if state is None:
            if not IS_NATIVE:
                self._server = StateProcess()
            elif proxied:
                self._server = SyncManager(ctx=get_context("fork"))
                self._server.start()
            else:
                self._own = SharedState()
            state = self._own if self._server is None else self._server.dict()
        self.state: Any = state
        self._subscriber, self._publisher = Pipe(True)
        self.publisher = publisher or self._publisher
        self._journal, journal = Pipe(False)
        gate, self._gate = Pipe(False)
        self._ends = [self._subscriber, self._publisher, self._journal, journal, gate, self._gate]
        self.heard: list[Said] = []
        self._plan = folder / "plan"
        self.plan(plan)
        self.kwargs = {
            "monitor_publisher": self.publisher,
            "worker_state": state,
            "journal": journal,
            "gate": gate,
            "plan": str(self._plan),
            **(kwargs or {}),
        }
        self.manager = WorkerManager(
            number,
            target,
            self.kwargs,
            get_context(method),
            (self.publisher, subscriber or self._subscriber),
            state,
            **settings,
        )

    # What the acting thread does

    def plan(self, plan: str) -> None:
        """Say what the processes do that start from now on."""
        new = self._plan.with_suffix(".new")
        new.write_text(plan)
        new.replace(self._plan)

    def open_gate(self, times: int = 1) -> None:
        """Let as many processes pass."""
        os.write(self._gate.fileno(), b"x" * times)

    def send(self, message: Any) -> None:
        """Send a message to main, as a worker does."""
        self.publisher.send(message)

    def send_raw(self, data: bytes) -> None:
        """Write bytes on the pipe, be they a frame or not."""
        os.write(self._publisher.fileno(), data)

    def said(self, what: Any, count: int = 1) -> list[Said]:
        """Wait until ``what`` was said so many times since the start (``None``: anything); all of it."""
        deadline = monotonic() + TIMEOUT
        while True:
            found = [said for said in self.heard if what is None or said.what == what]
            if len(found) >= count:
                return found
            left = max(0.0, deadline - monotonic())
            assert self._journal.poll(left), f"{what!r} was not said {count} times; heard: {self.heard}"
            self.heard.append(Said(*self._journal.recv()))

    def entry(self, name: str) -> dict[str, Any]:
        """An entry of the state; empty where there is none."""
        return dict(self.state.copy().get(name, {}))

    def until(self, name: str, **wanted: Any) -> dict[str, Any]:
        """Wait until an entry of the state has these values."""

        def look() -> dict[str, Any]:
            entry = self.entry(name)
            return entry if wanted.items() <= entry.items() else {}

        return until(look, f"{wanted} in the entry of {name}")

    def all_acked(self, but: str = "") -> None:
        """Wait until main knows of the ack of every transient process; one name may be left out."""
        until(
            lambda: all(
                one.state is ProcessState.ACKED or one.name == but for one in self.manager.transient_processes
            ),
            "the acks of all",
        )

    @property
    def state_pid(self) -> int:
        """The pid of the process that holds the state; 0 where it is in shared memory."""
        pid: int = 0 if self._server is None else self._server._process.pid  # type: ignore[union-attr]
        return pid

    def call(self, verb: Callable[[], None]) -> None:
        """Have the loop do something, and wait until it has done all that came before."""
        verb()
        done = threading.Event()
        self.manager._loop.do(done.set)
        assert done.wait(TIMEOUT), "the loop does not turn"

    # The run

    def run(self, act: Callable[[], None] = lambda: None, *, stops: bool = True) -> None:
        """Run the manager here while ``act`` runs in another thread; then stop it, if it is to be stopped."""
        errors: list[BaseException] = []
        over = threading.Event()

        def acting() -> None:
            try:
                act()
            except BaseException as error:
                errors.append(error)
            times = 3 if errors else int(stops)
            for _ in range(times):
                if not over.is_set():
                    os.kill(os.getpid(), signal.SIGTERM)
                    over.wait(5)

        thread = threading.Thread(target=acting)
        thread.start()
        try:
            self.manager.run()
        except BaseException as error:
            # Its frames hold the processes, and those their descriptors.
            traceback.clear_frames(error.__traceback__)
            raise
        finally:
            over.set()
            thread.join()
            try:
                if errors:
                    raise errors[0]
            finally:
                errors.clear()
                self.close()

    def close(self) -> None:
        """Let go of everything; what lives is ended by force and told."""
        for signum, handler in self._handlers.items():
            if signal.getsignal(signum) is not handler:
                signal.signal(signum, handler)
        while self._journal.poll(0):
            self.heard.append(Said(*self._journal.recv()))
        heard = self.heard
        left = [said.pid for said in self.heard if lives(said.pid)]
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        states = {name: entry.get("state") for name, entry in self.state.copy().items()}
        for end in self._ends:
            end.close()
        if isinstance(self.kwargs["worker_state"], StateProxy):
            self.kwargs["worker_state"].close()
        if self._server is not None:
            self._server.shutdown()
        if self._own is not None:
            self._own.close()
        # What pytest still holds of this run is not to hold its processes.
        for whole in (self.manager._loop, self.manager, self):
            vars(whole).clear()
        self.heard = heard
        active_children()
        assert not left, f"left alive: {left}"
        assert set(states.values()) <= FINAL, states


def python(
    code: str, *args: str, cwd: Path, env: dict[str, str] | None = None, timeout: float = 30
) -> subprocess.CompletedProcess[str]:
    """Run a program in an interpreter of its own, from a file, so that children can import it."""
    return subprocess.run(
        command(code, *args, cwd=cwd),
        cwd=cwd,
        env=environment(env),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def command(code: str, *args: str, cwd: Path) -> list[str]:
    """The command that runs ``code``, which is written to a file in ``cwd``."""
    program = cwd / "program.py"
    program.write_text(textwrap.dedent(code))
    return [sys.executable, str(program), *args]


def environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """The environment of a program under test: without traces of Sanic, with what it has to import."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("SANIC_")}
    env["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(PACKAGE)])
    return {**env, **(extra or {})}
