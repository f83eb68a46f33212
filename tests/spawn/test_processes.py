from __future__ import annotations

import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from multiprocessing.managers import SyncManager
from typing import Any

import pytest
from support import targets
from support.running import wait_for_end

from worker._child import bootstrap, descriptors, parent_watch
from worker._reload.outputs import Processes
from worker._spawn import liveness, processes
from worker._spawn.processes import ManagedProcess, factory
from worker._state.shared import SharedState
from worker.settings import resolve

pytestmark = pytest.mark.slow

METHODS = ["spawn", "fork", "forkserver"]
NAME = "Sanic-Server-0-0"


def birth(gate: Connection, journal: Connection, **kwargs: Any) -> None:
    """Report how the process was started, then wait for the gate."""
    context: dict[str, Any] = {"monitor_publisher": None, "worker_state": {NAME: {}}}
    me = targets.Me(targets.WorkerMultiplexer(**context), None, journal, gate, kwargs)  # type: ignore[arg-type]
    me.multiplexer.ack = lambda: None  # type: ignore[method-assign]
    targets.shows_its_birth(me)


def deaf(gate: Connection) -> None:
    os.read(gate.fileno(), 1)


class NeverComes:
    """A value for which a spawned child waits before it begins."""

    def __init__(self, gate: Connection) -> None:
        self._gate = gate

    def __reduce__(self) -> Any:
        return deaf, (self._gate,)


def holds_back(gate: Connection, journal: Connection) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, targets.STOPS)
    journal.send("held back")
    gate.recv_bytes()
    journal.send(signal.sigwait(targets.STOPS))


def handles_stop_itself(journal: Connection) -> None:
    journal.send(signal.getsignal(signal.SIGINT) is signal.SIG_DFL)


handles_stop_itself.handles_stop_itself = True  # type: ignore[attr-defined]


def tells_the_state(journal: Connection) -> None:
    state = bootstrap.current_state()
    journal.send(None if state is None else (state[NAME], Processes(state).pids()))


class BringsChanges:
    """A target with the attributes of a reloader."""

    is_reloader = True

    def __call__(self, journal: Connection) -> None:
        tells_the_state(journal)


def fails() -> None:
    bootstrap.mark_failed()


def start(method: str, target: Callable[..., None], **kwargs: Any) -> ManagedProcess:
    process: ManagedProcess = factory(get_context(method), resolve({"graceful_timeout": 5}))(
        name=NAME, target=target, kwargs=kwargs, daemon=True
    )
    process.start()
    return process


def end(process: Any, *connections: Connection) -> int:
    process.join(15)
    code: int = process.exitcode
    process.close()
    for connection in connections:
        connection.close()
    return code


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANIC_WORKER_NAME", NAME)
    monkeypatch.setenv("SANIC_WORKER_IDENTIFIER", "Srv 0")


class TestFactory:
    @pytest.mark.parametrize(
        ("method", "kind"),
        [
            ("spawn", processes.SpawnProcess),
            ("fork", processes.ForkProcess),
            ("forkserver", processes.ForkServerProcess),
            (None, processes.SpawnProcess),
        ],
    )
    def test_of_a_context(
        self, method: str | None, kind: type[ManagedProcess], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        context = get_context(method)
        if method is None:
            monkeypatch.setattr(context, "get_start_method", lambda: "spawn")
        settings = resolve({"graceful_timeout": 2.5})
        make = factory(context, settings)
        process = make(name="x", target=targets.nothing, kwargs={}, daemon=True)
        assert type(process) is kind
        assert (process.settings, process.main_pid, process.name, process.daemon) == (
            settings,
            os.getpid(),
            "x",
            True,
        )

    def test_of_an_unknown_context(self) -> None:
        class Foreign:
            Process = object()

        assert factory(Foreign()) is Foreign.Process

    def test_of_a_context_with_processes_of_its_own(self) -> None:
        class Mine(multiprocessing.context.SpawnProcess):
            pass

        class Context(multiprocessing.context.SpawnContext):
            Process = Mine

        assert factory(Context()) is Mine

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("proxied", [pytest.param(False, marks=pytest.mark.native), True])
    def test_a_reloader_is_given_the_state(self, method: str, proxied: bool) -> None:
        with ExitStack() as stack:
            if proxied:
                state = stack.enter_context(SyncManager(ctx=get_context("fork"))).dict()
            else:
                state = SharedState()
                stack.callback(state.close)
            state[NAME] = {"pid": 7}
            reading, journal = map(stack.enter_context, Pipe(False))
            for target, told in ((BringsChanges(), ({"pid": 7}, {7})), (tells_the_state, None)):
                process = factory(get_context(method), state=state)(
                    name="Sanic-Reloader-0", target=target, kwargs={"journal": journal}, daemon=True
                )
                process.start()
                assert reading.recv() == told
                process.join()
                process.close()

    def test_handles_stop_itself_is_read_from_the_target(self) -> None:
        make = factory(get_context("spawn"))
        assert make(target=handles_stop_itself).handles_stop_itself is True
        assert make(target=deaf).handles_stop_itself is False
        # An object with every attribute, such as a Mock, does not have this one set.
        assert make(target=type("Yes", (), {"handles_stop_itself": "yes"})()).handles_stop_itself is False


@pytest.mark.usefixtures("named")
class TestStart:
    @pytest.mark.parametrize("method", METHODS)
    def test_a_child_has_its_own_session_and_default_signals(self, method: str) -> None:
        gate, opener = Pipe(False)
        journal, writer = Pipe(False)
        handlers = [signal.getsignal(signum) for signum in targets.STOPS]
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        process = start(method, birth, gate=gate, journal=writer)
        assert process.pid is not None
        assert journal.poll(20), "the child says nothing"
        name, pid, found = journal.recv()
        assert (name, pid) == (NAME, process.pid)
        assert found == {
            "sid": pid,
            "pgid": pid,
            "blocked": [],
            "sigint": True,
            "sigterm": True,
            "wakeup": -1,
            "identifier": "Srv 0",
            "config": None,
            "has": [],
        }
        # The main process is unchanged.
        assert [signal.getsignal(signum) for signum in targets.STOPS] == handlers
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
        assert os.getsid(0) != pid
        assert liveness.has_begun(process)
        assert liveness.leads_session(process)
        assert liveness.stop_signal(process) is signal.SIGINT
        assert journal.recv() == (NAME, pid, "ready")
        os.kill(pid, signal.SIGTERM)
        assert end(process, gate, opener, writer) == 0
        assert journal.recv() == (NAME, pid, "SIGTERM")
        journal.close()

    def test_each_child_of_a_fork_server_has_its_own_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        journal, writer = Pipe(False)
        gate, opener = Pipe(False)
        opener.send_bytes(b"12345678")
        for name in ("Sanic-A-0", "Sanic-B-0"):
            monkeypatch.setenv("SANIC_WORKER_NAME", name)
            process = start("forkserver", targets.errand, journal=writer, gate=gate)
            assert journal.recv()[0] == name
            assert end(process) == 0
        for connection in (journal, writer, gate, opener):
            connection.close()

    def test_a_target_that_handles_its_stop_sets_its_own_handlers(self) -> None:
        journal, writer = Pipe(False)
        assert end(start("fork", handles_stop_itself, journal=writer), writer) == 0
        assert journal.recv() is True
        journal.close()

    @pytest.mark.parametrize(
        ("signum", "method", "code"),
        [
            (signal.SIGTERM, "spawn", -signal.SIGTERM),
            (signal.SIGINT, "fork", -signal.SIGINT),
            (signal.SIGTERM, "fork", -signal.SIGTERM),
        ],
    )
    def test_a_stop_before_the_target_runs_ends_the_process_quietly(
        self, signum: int, method: str, code: int, capfd: pytest.CaptureFixture[str]
    ) -> None:
        gate, opener = Pipe(False)
        process = factory(get_context(method), resolve({"graceful_timeout": 5}))(
            target=deaf, kwargs={"gate": NeverComes(gate) if method == "spawn" else gate}
        )
        # A signal pending in the main process is not inherited; the child has to have one of its own.
        began = process.run

        def late() -> None:
            os.kill(os.getpid(), signum)
            began()

        if method == "fork":
            process.run = late
            process.start()
        else:
            process.start()
            assert liveness.stop_signal(process) is signum
            os.kill(process.pid, signum)
        assert end(process, gate, opener) == code
        assert capfd.readouterr().err == ""

    def test_a_failed_start_shows_in_the_exit_code(self) -> None:
        assert end(start("fork", fails)) == 1
        assert end(start("fork", targets.nothing)) == 0

    def test_the_mark_of_a_failed_start_is_not_inherited(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bootstrap, "_failed", True)
        assert end(start("fork", targets.nothing)) == 0

    def test_a_forked_child_closes_files_of_the_main_process(self) -> None:
        gate, opener = Pipe(False)
        journal, writer = Pipe(False)
        one, other = Pipe(True)
        files = {end.fileno(): targets.file_of(end.fileno()) for end in (one, other)}
        descriptors.close_in_children(one)
        descriptors.close_in_children(other)
        descriptors.forget(other)
        try:
            process = start("fork", birth, gate=gate, journal=writer, files=files)
            assert journal.recv()[2]["has"] == [other.fileno()]
            assert process.pid is not None
            os.kill(process.pid, signal.SIGTERM)
            end(process, gate, opener, writer, journal)
            assert all(targets.file_of(fd) == file for fd, file in files.items())
        finally:
            descriptors.forget(one)
            one.close()
            other.close()

    def test_files_of_the_main_process_may_be_closed_already(self) -> None:
        class Closed:
            def close(self) -> None:
                raise OSError("closed")

        owned = Closed()
        descriptors.close_in_children(owned)
        try:
            assert end(start("fork", targets.nothing)) == 0
        finally:
            descriptors.forget(owned)
        with pytest.raises(ValueError, match="not in list"):
            descriptors.forget(owned)


class TestHasBegun:
    def test_foreign_processes_have_not_begun(self) -> None:
        assert not liveness.leads_session(object())
        assert not liveness.has_begun(object())
        assert not liveness.has_begun(get_context("fork").Process(target=targets.nothing))

    def test_a_process_that_was_never_started_has_not_begun(self) -> None:
        assert not liveness.has_begun(factory(get_context("fork"))(target=targets.nothing))

    def test_an_exited_process_has_begun(self) -> None:
        process = start("fork", targets.nothing)
        process.join()
        assert liveness.has_begun(process)
        assert not liveness.leads_session(process)

    def test_a_process_without_its_session_has_not_begun(self) -> None:
        gate, opener = Pipe(False)
        process = factory(get_context("fork"))(target=targets.nothing)
        began = process.run

        def late() -> None:
            os.read(gate.fileno(), 1)
            began()

        process.run = late
        process.start()
        assert not liveness.has_begun(process)
        opener.send_bytes(b"12345678")
        assert end(process, gate, opener) == 0


class TestReap:
    @pytest.mark.parametrize("method", ["fork", "forkserver"])
    def test_returns_the_exit_code_of_a_killed_child(self, method: str) -> None:
        gate, opener = Pipe(False)
        process = start(method, deaf, gate=gate)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        wait_for_end(process.pid)
        # The fork server reports "255": it has not waited for the signal itself.
        assert liveness.reap(process) == -signal.SIGKILL
        assert liveness.reap(process) == -signal.SIGKILL
        end(process, gate, opener)

    def test_returns_none_if_the_exit_code_stays_unknown(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(liveness, "_EXITCODE_TIMEOUT", 0.01)
        reader, writer = Pipe(False)

        class Unknown:
            exitcode = None
            sentinel = reader.fileno()

        assert liveness.reap(Unknown()) is None  # type: ignore[arg-type]
        reader.close()
        writer.close()


class TestLeadSession:
    def test_a_process_that_leads_a_session_already(self) -> None:
        """`setsid` is refused to the leader of a group."""
        process = start("fork", parent_watch.lead_session)
        assert end(process) == 0


def test_the_signal_mask_is_restored_when_a_start_fails() -> None:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    process = factory(get_context("spawn"))(target=lambda: None)
    with pytest.raises(Exception, match="lambda"):
        process.start()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask


@pytest.mark.parametrize(("name", "has"), [("Sanic-X-0", True), ("Sanic-Servers-0", False)])
def test_only_servers_have_the_listening_socket(name: str, has: bool) -> None:
    """Under fork, another process would hold its port after the end of the main process."""
    reader, writer = Pipe(False)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        descriptors.close_in_children(listening, servers_too=True)
        file = targets.file_of(listening.fileno())
        make = factory(get_context("fork"), resolve({"graceful_timeout": 5}), is_server=has)
        process = make(name=name, target=tells_of, args=(writer, listening.fileno()), daemon=True)
        process.start()
        assert (reader.recv() == file) is has
        assert end(process, reader, writer) == 0
        descriptors.forget(listening)
        assert not descriptors._owned_by_servers


def tells_of(journal: Connection, descriptor: int) -> None:
    journal.send(targets.file_of(descriptor))
