from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from multiprocessing import get_context
from signal import SIGINT
from types import SimpleNamespace
from typing import Any

import pytest
from support.fakes import FakeBase, OpenMailbox
from support.targets import nothing

from worker import process
from worker._spawn import processes
from worker.constants import ProcessState, RestartOrder
from worker.process import Worker, WorkerProcess, get_now
from worker.settings import resolve

STARTUP_FIRST = RestartOrder.STARTUP_FIRST


@pytest.fixture
def base() -> type[FakeBase]:
    return type("Base", (FakeBase,), {"made": []})


@pytest.fixture
def kills(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, signum: sent.append((pid, signum)))
    return sent


def plain(a: int = 1) -> None:
    """A target without a config."""


def with_config(config: Any = None) -> None: ...


def with_kwargs(**kwargs: Any) -> None: ...


def make(
    base: Callable[..., Any], target: Any = plain, name: str = "Sanic-Server-0-0", **options: Any
) -> WorkerProcess:
    return WorkerProcess(base, name, target, {"a": 1}, options.pop("state", {}), **options)


def debug_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the lines of the debug log, without colours, names and pids."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", record.getMessage()) for record in caplog.records]
    return [line.split(":")[0] for line in lines]


class TestBegin:
    def test_the_factory_is_called_with_the_stock_arguments(self, base: type[FakeBase]) -> None:
        one = make(base)
        (made,) = base.made
        assert made.kwargs == {"name": one.name, "target": plain, "kwargs": {"a": 1}, "daemon": True}
        assert one.worker_state == {"Sanic-Server-0-0": {"server": True}}
        assert (one.state, one.pid, one.exitcode, one.is_alive()) == (ProcessState.IDLE, None, None, False)

    def test_an_existing_entry_is_kept(self, base: type[FakeBase]) -> None:
        state = {"Sanic-X-0": {"mine": 1}}
        assert not make(base, name="Sanic-X-0", state=state).is_server
        assert state == {"Sanic-X-0": {"mine": 1}}

    def test_spawn_needs_an_idle_slot(self, base: type[FakeBase]) -> None:
        one = make(base)
        one.spawn()
        one.start()
        with pytest.raises(Exception, match=r"^Cannot spawn a worker process until it is idle\.$"):
            one.spawn()

    def test_start_sets_environment_and_entry(self, base: type[FakeBase]) -> None:
        one = make(base)
        one.ident = "Srv 0"
        before = dict(os.environ)
        one.start()
        assert base.made[0].environment == {
            "SANIC_WORKER_NAME": "Sanic-Server-0-0",
            "SANIC_WORKER_IDENTIFIER": "Srv 0",
        }
        assert os.environ == before
        entry = one.worker_state[one.name]
        started = entry.pop("start_at")
        assert timedelta() <= get_now() - started < timedelta(seconds=10)
        assert entry == {"server": True, "state": "STARTED", "pid": one.pid, "starts": 1}
        assert one.state is ProcessState.STARTED

    def test_a_failed_start_restores_the_environment(self, base: type[FakeBase]) -> None:
        def fails(base: FakeBase) -> None:
            raise OSError("no more processes")

        base.on_start = staticmethod(fails)
        before = dict(os.environ)
        with pytest.raises(OSError, match="no more processes"):
            make(base).start()
        assert os.environ == before

    def test_a_quick_ack_is_not_overwritten(self, base: type[FakeBase]) -> None:
        state: dict[str, Any] = {}

        def acks(base: FakeBase) -> None:
            state["Sanic-Server-0-0"] = {**state["Sanic-Server-0-0"], "state": "ACKED", "mine": 1}

        base.on_start = staticmethod(acks)
        one = make(base, state=state)
        one.start()
        entry = state[one.name]
        assert (entry["state"], entry["mine"], entry["starts"], entry["pid"]) == ("ACKED", 1, 1, one.pid)

    def test_an_ack_during_the_start_is_kept(self, base: type[FakeBase]) -> None:
        one = make(base)
        base.on_start = staticmethod(lambda base: one.set_state(ProcessState.ACKED))
        one.start()
        assert one.state is ProcessState.ACKED
        assert one.worker_state[one.name]["state"] == "ACKED"


class TestState:
    @pytest.mark.parametrize("state", ProcessState)
    @pytest.mark.parametrize("new", ProcessState)
    def test_moves_forward_only(self, base: type[FakeBase], state: ProcessState, new: ProcessState) -> None:
        one = make(base)
        one.set_state(state, force=True)
        if new < state:
            with pytest.raises(Exception, match=f"cannot go back from {state.name} to {new.name} "):
                one.set_state(new)
            assert one.state is state
            one.set_state(new, True)
        else:
            one.set_state(new)
        assert one.state is new
        assert one.worker_state[one.name] == {"server": True, "state": new.name}

    @pytest.mark.parametrize(
        "error", [KeyError("x"), BrokenPipeError(), ConnectionResetError(), EOFError()], ids=repr
    )
    def test_an_unavailable_mapping_is_ignored(
        self, base: type[FakeBase], error: Exception, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Gone(dict[str, Any]):
            def __getitem__(self, name: str) -> Any:
                raise error

            __setitem__ = __delitem__ = lambda self, *args: self[""]

        caplog.set_level(logging.DEBUG, "sanic.root")
        one = make(base)
        one.worker_state = Gone()
        one.set_state(ProcessState.ACKED)
        assert one.state is ProcessState.ACKED
        one.forget()
        one.acknowledge()
        text = " ".join(record.getMessage() for record in caplog.records)
        assert "State entry of Sanic-Server-0-0 is gone. Not recorded: state." in text
        why = (
            "Could not find worker state"
            if isinstance(error, KeyError)
            else "Monitor process has already exited."
        )
        assert why in text


class TestEnd:
    def test_join_waits_for_the_process(self, base: type[FakeBase]) -> None:
        one = make(base)
        one.start()
        one.join()
        assert (one.state, base.made[0].joined) == (ProcessState.JOINED, [None])

    @pytest.mark.parametrize("alive", [True, False])
    def test_exit_waits_and_removes_the_entry(self, base: type[FakeBase], alive: bool) -> None:
        one = make(base)
        one.start()
        base.made[0].alive = alive
        one.exit()
        assert base.made[0].joined == ([process.EXIT_TIMEOUT] if alive else [])
        # A process that does not exit keeps its entry, to remain visible.
        assert (one.name in one.worker_state) is alive

    def test_terminate_sends_one_signal(self, base: type[FakeBase], kills: list[tuple[int, int]]) -> None:
        one = make(base)
        one.start()
        one.terminate()
        one.terminate()
        assert kills == [(one.pid, SIGINT)]
        assert one.worker_state[one.name]["state"] == "TERMINATED"

    def test_terminate_sends_no_signal_to_an_exited_process(
        self, base: type[FakeBase], kills: list[tuple[int, int]]
    ) -> None:
        one = make(base)
        one.start()
        base.made[0].alive = False
        one.terminate()
        assert (kills, one.state) == ([], ProcessState.TERMINATED)

    def test_terminate_ignores_an_exit_during_the_call(
        self, base: type[FakeBase], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def kill(pid: int, signum: int) -> None:
            raise ProcessLookupError

        monkeypatch.setattr(os, "kill", kill)
        one = make(base)
        one.start()
        one.terminate()
        assert one.state is ProcessState.TERMINATED


class TestRestart:
    def test_shutdown_first_stops_the_process_before_the_start(
        self, base: type[FakeBase], caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG, "sanic.root")
        one = make(base)
        one.start()
        first = one.worker_state[one.name] = {**one.worker_state[one.name], "serving": True, "mine": 1}
        one.restart(reloaded_files="x.py")
        old, new = base.made
        assert (old.terminated, new.terminated) == (1, 0)
        assert (one.pid, one.previous, one.state) == (new.pid, None, ProcessState.STARTED)
        entry = dict(one.worker_state[one.name])
        again = entry.pop("restart_at")
        assert isinstance(again, datetime) and again.tzinfo is not None and again >= first["start_at"]
        assert entry == {**first, "pid": new.pid, "state": "STARTED", "starts": 2, "serving": False}
        assert new.kwargs["kwargs"] == {"a": 1}
        assert debug_lines(caplog) == [
            "Starting a process",
            "Restarting a process",
            "Begin restart termination",
            "Starting a process",
        ]

    def test_an_exited_process_is_not_stopped(self, base: type[FakeBase]) -> None:
        one = make(base)
        one.start()
        base.made[0].alive = False
        one.restart()
        assert (base.made[0].terminated, one.pid) == (0, base.made[1].pid)

    def test_startup_first_of_an_exited_process(self, base: type[FakeBase]) -> None:
        one = make(base)
        one.start()
        base.made[0].alive = False
        one.restart(STARTUP_FIRST)
        assert (base.made[0].terminated, one.pid, one.previous) == (0, base.made[1].pid, None)

    def test_a_process_that_never_ran_is_started(self, base: type[FakeBase]) -> None:
        one = make(base)
        one.set_state(ProcessState.NONE, True)
        one.restart()
        assert one.pid == base.made[1].pid
        assert one.worker_state[one.name]["starts"] == 2

    @pytest.mark.parametrize("target", [with_config, with_kwargs, partial(with_config, config=1)])
    def test_a_target_with_a_config_receives_the_reason(self, base: type[FakeBase], target: Any) -> None:
        one = make(base, target)
        one.start()
        one.restart(reloaded_files="x.py", other=1)
        expected = {"a": 1, "config": {"RELOADED_FILES": "x.py", "OTHER": 1}}
        assert base.made[1].kwargs["kwargs"] == expected

    @pytest.mark.parametrize("target", [plain, type, "no function"])
    def test_a_target_without_a_config_receives_no_reason(self, base: type[FakeBase], target: Any) -> None:
        one = make(base, target)
        one.restart(reloaded_files="x.py")
        assert base.made[1].kwargs["kwargs"] == {"a": 1}

    def test_an_error_of_the_factory_fails_the_restart(self, base: type[FakeBase]) -> None:
        one = make(base)
        one.start()
        one.factory = object()  # type: ignore[assignment]
        one.factory = lambda **kwargs: kwargs.nothing  # type: ignore[attr-defined]
        with pytest.raises(RuntimeError, match=r"^Restart failed$"):
            one.restart()

    @pytest.mark.parametrize("serving", [True, False])
    def test_startup_first_waits_for_the_ack(
        self, base: type[FakeBase], serving: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG, "sanic.root")
        one = make(base)
        one.start()
        if serving:
            one.worker_state[one.name]["serving"] = True
        threads = threading.active_count()
        one.restart(STARTUP_FIRST)
        old, new = base.made
        assert threading.active_count() == threads + 1
        assert (old.terminated, one.pid, one.previous) == (0, new.pid, old)
        # From here on it is the newcomer's word.
        assert one.worker_state[one.name].get("serving", False) is False
        (waiting,) = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
        one.set_state(ProcessState.ACKED)
        waiting.join(10)
        assert (old.terminated, new.terminated, one.previous) == (1, 0, None)
        assert debug_lines(caplog) == [
            "Starting a process",
            "Restarting a process",
            "Starting a process",
            "Begin restart termination",
            "Waiting for process to be acked",
            "Process acked. Terminating",
        ]

    def test_the_wait_for_the_ack_times_out(
        self, base: type[FakeBase], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also if the thread's target runs at once, in the thread that holds the state."""
        monkeypatch.setattr(threading.Thread, "start", lambda thread: thread.run())
        monkeypatch.setattr(WorkerProcess, "THRESHOLD", 1)
        one = make(base)
        one.start()
        with pytest.raises(
            TimeoutError, match=r"^Worker Sanic-Server-0-0 failed to come ack within 0\.1 seconds$"
        ):
            one.restart(STARTUP_FIRST)
        assert base.made[0].terminated == 0

    def test_no_thread_waits_if_a_loop_runs(self, base: type[FakeBase]) -> None:
        one = make(base)
        one.start()
        one.mailbox = OpenMailbox()
        threads = threading.active_count()
        one.restart(STARTUP_FIRST)
        assert (one.previous, len(base.made)) == (None, 1)
        one.replace_process(STARTUP_FIRST, {})
        assert threading.active_count() == threads
        assert one.previous is base.made[0]

    def test_stop_current_starts_no_process(self, base: type[FakeBase]) -> None:
        """The next process is started when it is time."""
        one = make(base)
        one.start()
        one.worker_state[one.name]["serving"] = True
        one.mailbox = OpenMailbox()
        one.stop_current()
        assert (base.made[0].terminated, len(base.made)) == (1, 1)
        entry = one.worker_state[one.name]
        assert (entry["state"], entry["serving"]) == ("RESTARTING", False)
        base.made[0].alive = False
        one.replace_process(RestartOrder.SHUTDOWN_FIRST, {})
        assert (base.made[0].terminated, one.pid) == (1, base.made[1].pid)
        assert one.worker_state[one.name]["starts"] == 2

    def test_a_second_replacement_stops_the_starting_process(self, base: type[FakeBase]) -> None:
        one = make(base)
        one.start()
        one.mailbox = OpenMailbox()
        one.replace_process(STARTUP_FIRST, {})
        one.replace_process(STARTUP_FIRST, {})
        old, _, second = base.made
        assert [made.terminated for made in base.made] == [0, 1, 0]
        assert (one.previous, one.pid) == (old, second.pid)
        one.hand_over()
        assert [made.terminated for made in base.made] == [1, 1, 0]
        assert one.previous is None

    def test_shutdown_first_during_a_handover_stops_both_processes(self, base: type[FakeBase]) -> None:
        one = make(base)
        one.start()
        one.mailbox = OpenMailbox()
        one.replace_process(STARTUP_FIRST, {})
        one.replace_process(RestartOrder.SHUTDOWN_FIRST, {})
        assert [made.terminated for made in base.made] == [1, 1, 0]
        assert one.previous is None

    def test_roll_back_restores_the_previous_process(self, base: type[FakeBase]) -> None:
        one = make(base)
        one.start()
        one.mailbox = OpenMailbox()
        one.replace_process(STARTUP_FIRST, {})
        one.roll_back()
        assert (one.pid, one.previous, one.state) == (base.made[0].pid, None, ProcessState.ACKED)
        entry = one.worker_state[one.name]
        assert (entry["pid"], entry["state"], entry["serving"]) == (base.made[0].pid, "ACKED", True)

    def test_continue_alone_forgets_the_previous_process(self, base: type[FakeBase]) -> None:
        one = make(base)
        one.start()
        one.mailbox = OpenMailbox()
        one.replace_process(STARTUP_FIRST, {})
        one.continue_alone()
        assert (one.pid, one.previous) == (base.made[1].pid, None)

    def test_overwritten_keys_are_written_again(self, base: type[FakeBase]) -> None:
        """Over a foreign mapping, one of two simultaneous writes is lost."""
        one = make(base)
        one.start()
        right = one.worker_state[one.name]
        one.worker_state[one.name] = {"server": True, "mine": 1}
        one.acknowledge()
        acked = {**right, "mine": 1, "state": "ACKED"}
        assert (one.state, one.worker_state[one.name]) == (ProcessState.ACKED, acked)
        one.on_exit(SimpleNamespace(pid=one.pid + 1), is_ready=True)
        assert one.worker_state[one.name] == {**acked, "serving": True}


class TestWorker:
    def test_has_the_requested_processes(self) -> None:
        state: dict[str, Any] = {}
        worker = Worker("X", nothing, {"a": 1}, get_context("spawn"), state, num=3, restartable=True)
        assert sorted(one.name for one in worker.processes) == ["Sanic-X-0", "Sanic-X-1", "Sanic-X-2"]
        assert all(one.restartable and one.ident == "X" for one in worker.processes)
        assert set(state) == {"Sanic-X-0", "Sanic-X-1", "Sanic-X-2"}
        one, other, _ = worker.processes
        assert one.kwargs == other.kwargs == {"a": 1}
        assert one.kwargs is not other.kwargs
        assert worker.name == worker.ident
        assert (worker.tracked, worker.auto_start) == (True, True)

    def test_passes_label_and_settings_on(self) -> None:
        settings = resolve({"graceful_timeout": 3.5})
        worker = Worker("X", nothing, {}, get_context("spawn"), {}, label="Srv 1", settings=settings)
        (one,) = worker.processes
        assert one.ident == "Srv 1"
        assert isinstance(one._current_process, processes.SpawnProcess)
        assert one._current_process.settings is settings

    def test_runs_real_processes(self) -> None:
        state: dict[str, Any] = {}
        worker = Worker("X", nothing, {}, get_context("fork"), state, num=2)
        assert not worker.has_alive_processes()
        for one in worker.processes:
            one.start()
        for one in worker.processes:
            one.join()
            assert one.exitcode == 0
            one.exit()
        assert not worker.has_alive_processes()
        assert state == {}


def test_get_now_is_in_utc() -> None:
    assert get_now().utcoffset() == timedelta()
