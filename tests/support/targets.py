"""Targets of processes under test. Each start reads its behaviour anew from a file, the plan."""

from __future__ import annotations

import atexit
import errno
import faulthandler
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from worker._child.busy import BusyReporter
from worker._control.send import Publisher
from worker._state.foreign import adapted
from worker.multiplexer import WorkerMultiplexer

STOPS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Me:
    """A process under test: its channel to the main process, its pipe to the test, and the gate that the test
    opens.
    """

    multiplexer: WorkerMultiplexer
    publisher: Publisher
    journal: Connection
    gate: Connection
    kwargs: dict[str, Any]

    def say(self, what: Any) -> None:
        """Report to the test; less than PIPE_BUF, so that no two reports mix."""
        self.journal.send((os.environ["SANIC_WORKER_NAME"], os.getpid(), what))

    def await_stop(self) -> None:
        """Wait for a stop signal, without a moment in which one would be lost, and report it."""
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        self.say("ready")
        self.say(signal.Signals(signal.sigwait(STOPS)).name)


def server(
    monitor_publisher: Publisher,
    worker_state: Any,
    journal: Connection,
    gate: Connection,
    plan: str,
    **kwargs: Any,
) -> None:
    """Call the function below that the file ``plan`` names, with its arguments."""
    me = Me(WorkerMultiplexer(monitor_publisher, worker_state), monitor_publisher, journal, gate, kwargs)
    name, *args = Path(plan).read_text().split()
    behaviour: Callable[..., None] = globals()[name]
    behaviour(me, *args)


def speaks_last() -> None:
    """Report the pid, wait for a stop signal, and register a report for the exit."""
    atexit.register(print, "the last word")
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    print(os.getpid(), flush=True)
    signal.sigwait(STOPS)


def serves(me: Me) -> None:
    me.multiplexer.ack()
    me.multiplexer.set_serving(True)
    me.await_stop()
    me.multiplexer.set_serving(False)


def asks_for_a_restart_behind_the_gate(me: Me) -> None:
    """Serve; when the gate opens, ask for a new process that starts first."""
    me.multiplexer.ack()
    me.multiplexer.set_serving(True)
    me.say("ready")
    os.read(me.gate.fileno(), 1)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    me.multiplexer.restart(zero_downtime=True)
    signal.sigwait(STOPS)


def leaves_orphans(me: Me) -> None:
    """Leave a descendant without a parent, which lives in the session until the gate is opened."""
    if os.fork() == 0:
        if os.fork() == 0:
            me.say("orphan")
            me.journal.close()
            os.read(me.gate.fileno(), 1)
        os._exit(0)
    os.wait()
    serves(me)


def serves_and_counts(me: Me) -> None:
    """Write into the entry all the time, to the end."""
    me.multiplexer.ack()
    me.multiplexer.set_serving(True)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    me.say("ready")
    number = 0
    while (stop := signal.sigtimedwait(STOPS, 0)) is None:
        number += 1
        me.multiplexer.state["number"] = number
    me.say(signal.Signals(stop.si_signo).name)
    me.multiplexer.set_serving(False)


def serves_under_load(me: Me, path: str) -> None:
    """Serve, and beat often; the file has the share of time in which the event loop is busy."""
    me.multiplexer.ack()
    me.multiplexer.set_serving(True)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    me.say("ready")
    reporter = BusyReporter(me.multiplexer._report_busy)
    stop = None
    while stop is None:
        share = float(Path(path).read_text())
        adapted(me.multiplexer._all_entries).beat(in_flight=9, loop_busy=share)  # type: ignore[union-attr]
        reporter.note(share)
        stop = signal.sigtimedwait(STOPS, 0.01)
    me.multiplexer.set_serving(False)


def only_serves(me: Me) -> None:
    """Lose the ack, and serve."""
    me.multiplexer.set_serving(True)
    me.await_stop()


def acks_then_serves_behind_the_gate(me: Me) -> None:
    me.multiplexer.ack()
    me.say("acked")
    os.read(me.gate.fileno(), 1)
    me.multiplexer.set_serving(True)
    me.await_stop()


def fails_with(me: Me, *words: str) -> None:
    """Fail to start, as a worker reports it."""
    name = os.environ["SANIC_WORKER_NAME"]
    state = adapted(me.multiplexer._state._state)
    state.update_entry(name, {"start_error": " ".join(words)}, os.getpid())
    me.multiplexer.terminate(early=True)
    raise SystemExit(1)


def binds_its_own(me: Me, where: str) -> None:
    """Bind an address, which no other process of this name can do meanwhile."""
    with socket.socket(socket.AF_UNIX) as bound:
        try:
            bound.bind(f"\0{where}/{os.environ['SANIC_WORKER_NAME']}")
        except OSError as error:
            fails_with(me, f"{errno.errorcode[error.errno]}: {error}")
        serves(me)


def leaves_behind_the_gate(me: Me) -> None:
    """Take a while to exit after a stop."""
    serves(me)
    os.read(me.gate.fileno(), 1)


def never_acks(me: Me) -> None:
    me.await_stop()


def acks_behind_the_gate(me: Me) -> None:
    me.say("at the gate")
    os.read(me.gate.fileno(), 1)
    serves(me)


def exits(me: Me, code: str) -> None:
    raise SystemExit(int(code))


def kills_itself(me: Me, number: str) -> None:
    faulthandler.disable()
    os.kill(os.getpid(), int(number))


def acks_and_exits(me: Me, code: str) -> None:
    me.multiplexer.ack()
    me.say("acked")
    os.read(me.gate.fileno(), 1)
    raise SystemExit(int(code))


def terminates_and_exits(me: Me, early: str = "") -> None:
    """Do as ``app.stop()`` does: send one message to the main process, and exit."""
    if not early:
        me.multiplexer.ack()
    me.multiplexer.terminate(bool(early))


def terminates_behind_the_gate(me: Me) -> None:
    me.multiplexer.ack()
    me.say("at the gate")
    os.read(me.gate.fileno(), 1)
    me.multiplexer.terminate()


def fails_late(me: Me) -> None:
    """Report a failed start after the first starts have succeeded."""
    me.multiplexer.terminate(early=True)
    never_acks(me)


def stubborn(me: Me) -> None:
    """Ignore every signal, with a child that does too."""
    for signum in STOPS:
        signal.signal(signum, signal.SIG_IGN)
    pid = os.fork()
    if not pid:
        while True:
            signal.pause()
    me.multiplexer.ack()
    me.say(pid)
    while True:
        signal.pause()


def stubborn_without_ack(me: Me) -> None:
    me.multiplexer.ack = lambda: None  # type: ignore[method-assign]
    stubborn(me)


# The time for which a stopped process waits for further stops, seconds: longer than the interval of a sender
# that repeats them.
LISTENS = 0.8


def tells_its_stops(me: Me, stoppable: str = "") -> None:
    """Serve; at the first stop, report it and all that follow."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    if stoppable:
        me.multiplexer._state._state.flag(stoppable=True)  # type: ignore[attr-defined]
    me.multiplexer.ack()
    me.multiplexer.set_serving(True)
    me.say("ready")
    tells_all_stops(me)


def loses_a_stop(me: Me) -> None:
    """Miss a stop, as while Sanic sets up its handlers; then report all that follow."""
    for signum in STOPS:
        signal.signal(signum, signal.SIG_IGN)
    me.multiplexer.ack()
    me.say("deaf")
    os.read(me.gate.fileno(), 1)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    for signum in STOPS:
        signal.signal(signum, signal.SIG_DFL)
    me.multiplexer._state._state.flag(stoppable=True)  # type: ignore[attr-defined]
    tells_all_stops(me)


def tells_all_stops(me: Me) -> None:
    stop: Any = signal.sigwaitinfo(STOPS)
    while stop is not None and stop.si_signo in STOPS:
        me.say(signal.Signals(stop.si_signo).name)
        stop = signal.sigtimedwait(STOPS, LISTENS)


def shows_its_birth(me: Me) -> None:
    """Report the state of a child at its start."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    me.say(
        {
            "sid": os.getsid(0),
            "pgid": os.getpgid(0),
            "blocked": sorted(signum.name for signum in mask & set(STOPS)),
            "sigint": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
            "sigterm": signal.getsignal(signal.SIGTERM) is signal.SIG_DFL,
            "wakeup": signal.set_wakeup_fd(-1),
            "identifier": os.environ["SANIC_WORKER_IDENTIFIER"],
            "config": me.kwargs.get("config"),
            "has": [fd for fd, file in me.kwargs.get("files", {}).items() if file_of(fd) == file],
        }
    )
    serves(me)


def file_of(fd: int) -> str:
    """Return the target of a file descriptor; empty where it is closed."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""


@dataclass
class Watches:
    """A fake reloader: its attributes declare it one."""

    journal: Connection
    restart_policy = "always"
    is_reloader = True
    absence = "No file change is noticed until it runs."

    def __call__(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        self.journal.send((os.environ["SANIC_WORKER_NAME"], os.getpid(), "ready"))
        signal.sigwait(STOPS)


def errand(journal: Connection, gate: Connection, **kwargs: Any) -> None:
    """A function without config, which returns when the gate opens."""
    journal.send((os.environ["SANIC_WORKER_NAME"], os.getpid(), sorted(kwargs)))
    os.read(gate.fileno(), 1)


def nothing() -> None:
    """Exit at once."""
