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
from support import modes, targets
from support.processes import is_stopped
from worker._core import IS_NATIVE
from worker._spawn.state_process import StateProcess, StateProxy
from worker._state import schema
from worker._state.shared import SharedState
from worker._supervisor.child import ChildProcess
from worker.constants import ProcessState
from worker.manager import WorkerManager

TIMEOUT = 15.0
FINAL = {None, "TERMINATED", "FAILED", "COMPLETED", "NONE"}
TESTS = Path(__file__).parent.parent
PACKAGE = Path(worker.__file__).parent.parent

T = TypeVar("T")


def until(look: Callable[[], T], what: str, timeout: float = TIMEOUT) -> T:
    """Return the result of ``look`` as soon as it is true."""
    pause = threading.Event()
    deadline = monotonic() + timeout
    while not (value := look()):
        if monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what}; last seen: {value!r}")
        pause.wait(0.005)
    return value


async def until_in_loop(look: Callable[[], Any]) -> None:
    """Let the loop run until ``look`` returns a true value; the caller sets a limit."""
    while not look():
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 0.01)


def suspend(pid: int) -> None:
    """Stop a process by SIGSTOP, and wait until it is stopped."""
    os.kill(pid, signal.SIGSTOP)
    until(lambda: is_stopped(pid), f"the stop of {pid}")


def wait_for_end(pid: int, timeout: float = TIMEOUT) -> None:
    """Wait until a process has exited, a child or not."""
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
    """Whether a process has not exited; a zombie has."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


@contextlib.contextmanager
def listening(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Capture the manager's log; then release the processes that it names, and all exited ones."""
    caplog.set_level(logging.INFO, "sanic.root")
    yield
    caplog.get_records("call").clear()
    gc.collect()


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the log's lines of level ERROR."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def logged(caplog: pytest.LogCaptureFixture, text: str) -> str:
    """Wait for a line of the log that contains ``text``."""
    return until(
        lambda: next((line for line in [*caplog.messages] if text in line), ""), f"{text!r} in the log"
    )


class Said(NamedTuple):
    """A report of a process under test."""

    name: str
    pid: int
    what: Any


class House:
    """A manager over a real channel and a real shared mapping, for one :meth:`run`.

    ``plan`` is the behaviour of the servers (see :mod:`.targets`); ``number`` is their initial number. The
    mapping is ``SharedState``, in shared memory. With ``proxied`` it is that of a ``SyncManager``, which the
    native core can use too, and in place of which the pure one has its own.
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
                self._server = StateProcess(schema.SHEETS)
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

    # Verbs of the acting thread

    def plan(self, plan: str) -> None:
        """Set the behaviour of processes that start from now on."""
        new = self._plan.with_suffix(".new")
        new.write_text(plan)
        new.replace(self._plan)

    def open_gate(self, times: int = 1) -> None:
        """Let this many processes pass."""
        os.write(self._gate.fileno(), b"x" * times)

    def send(self, message: Any) -> None:
        """Send a message to the main process, as a worker does."""
        self.publisher.send(message)

    def send_raw(self, data: bytes) -> None:
        """Write bytes on the channel, as a frame or not."""
        os.write(self._publisher.fileno(), data)

    def said(self, what: Any, count: int = 1) -> list[Said]:
        """Wait until ``what`` was reported this often since the start (``None``: any report); return all
        reports.
        """
        deadline = monotonic() + TIMEOUT
        while True:
            found = [said for said in self.heard if what is None or said.what == what]
            if len(found) >= count:
                return found
            left = max(0.0, deadline - monotonic())
            assert self._journal.poll(left), f"{what!r} was not said {count} times; heard: {self.heard}"
            self.heard.append(Said(*self._journal.recv()))

    def entry(self, name: str) -> dict[str, Any]:
        """Return an entry of the state; empty where there is none."""
        return dict(self.state.copy().get(name, {}))

    def until(self, name: str, **wanted: Any) -> dict[str, Any]:
        """Wait until an entry of the state has these values."""

        def look() -> dict[str, Any]:
            entry = self.entry(name)
            return entry if wanted.items() <= entry.items() else {}

        return until(look, f"{wanted} in the entry of {name}")

    def watched(self, pid: int) -> ChildProcess:
        """Return a process as the main process sees it. A child may run before its start returns."""
        return until(lambda: self.manager._supervisor.children.by_pid(pid), "a watched process")  # type: ignore[return-value]

    def all_acked(self, but: str = "") -> None:
        """Wait until the main process knows of the ack of every transient process, except this one."""
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
        """Call a function in the loop, after all that came before; wait until it has returned."""
        verb()
        done = threading.Event()
        self.manager._loop.do(done.set)
        assert done.wait(TIMEOUT), "the loop does not turn"

    # The run

    def run(self, act: Callable[[], None] = lambda: None, *, stops: bool = True) -> None:
        """Run the manager here while ``act`` runs in another thread; then stop it, unless it stops itself."""
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
        """Release everything; a process that still lives is killed and reported."""
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
        # Objects of this run that pytest keeps must not hold its processes.
        for whole in (self.manager._loop, self.manager, self):
            vars(whole).clear()
        self.heard = heard
        active_children()
        assert not left, f"left alive: {left}"
        assert set(states.values()) <= FINAL, states


def python(
    code: str, *args: str, cwd: Path, env: dict[str, str] | None = None, timeout: float = 50
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
    """Return the command that runs ``code``, which is written to a file in ``cwd``."""
    program = cwd / "program.py"
    program.write_text(textwrap.dedent(code))
    return [sys.executable, str(program), *args]


def environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a program under test: without traces of Sanic, with its import paths."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("SANIC_")}
    env["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(PACKAGE)])
    modes.choose(env)
    return {**env, **(extra or {})}
