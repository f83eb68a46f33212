from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import Manager
from typing import Any

import pytest
from support.fakes import FakePublisher

from worker.integration import StateManager
from worker.multiplexer import WorkerMultiplexer
from worker.state import WorkerState

NAME = "Sanic-Server-0-0"


@pytest.fixture
def publisher() -> FakePublisher:
    return FakePublisher()


@pytest.fixture
def state() -> dict[str, Any]:
    return {NAME: {"foo": "bar"}, "Sanic-Main": {"pid": 1}}


@pytest.fixture
def m(publisher: FakePublisher, state: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> WorkerMultiplexer:
    monkeypatch.setenv("SANIC_WORKER_NAME", NAME)
    return WorkerMultiplexer(publisher, state)


def function() -> None:
    """Something to manage."""


def test_attributes_in_a_worker(m: WorkerMultiplexer, state: dict[str, Any]) -> None:
    assert m.name == NAME
    assert m.pid == os.getpid()
    assert isinstance(m.state, WorkerState)
    assert m.state == state[NAME]
    assert m.workers == state


def test_use_outside_of_a_worker(publisher: FakePublisher) -> None:
    m = WorkerMultiplexer(publisher, {})
    assert m.name == ""
    m.terminate(True)
    assert publisher.sent == ["__TERMINATE_EARLY__"]


def test_attributes_used_by_sanic_extensions(
    m: WorkerMultiplexer, publisher: FakePublisher, state: dict[str, Any]
) -> None:
    m.state["request_count"] = 1
    assert state[NAME]["request_count"] == 1
    assert m._monitor_publisher is publisher
    assert m._state is m.state


def test_ack_changes_only_the_key_state(
    m: WorkerMultiplexer, state: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "sanic.root"):
        m.ack()
    assert state == {NAME: {"foo": "bar", "state": "ACKED"}, "Sanic-Main": {"pid": 1}}
    assert "Process ack: " in caplog.text


def test_set_serving(m: WorkerMultiplexer, state: dict[str, Any]) -> None:
    m.set_serving(True)
    assert state[NAME] == {"foo": "bar", "serving": True}
    m.set_serving(False)
    assert state[NAME] == {"foo": "bar", "serving": False}


def test_writes_are_merges(publisher: FakePublisher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANIC_WORKER_NAME", NAME)
    manager = StateManager()
    state = manager.dict()
    state[NAME] = {"foo": "bar"}
    m = WorkerMultiplexer(publisher, state)
    m.ack()
    m.set_serving(True)
    ready_at = state[NAME]["ready_at"]
    assert state.copy() == {NAME: {"foo": "bar", "state": "ACKED", "serving": True, "ready_at": ready_at}}
    assert ready_at.utcoffset() == timedelta(0)
    manager.shutdown()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, f"{NAME}:"),
        ({"name": "foo"}, "foo:"),
        ({"name": "foo:"}, "foo:"),
        ({"name": "foo,bar"}, "foo,bar:"),
        ({"all_workers": True}, "__ALL_PROCESSES__:"),
        ({"zero_downtime": True}, f"{NAME}::STARTUP_FIRST"),
        ({"name": "foo", "zero_downtime": True}, "foo::STARTUP_FIRST"),
        ({"all_workers": True, "zero_downtime": True}, "__ALL_PROCESSES__::STARTUP_FIRST"),
    ],
)
def test_restart_sends_its_message(
    m: WorkerMultiplexer, publisher: FakePublisher, arguments: dict[str, Any], message: str
) -> None:
    m.restart(**arguments)
    m.reload(**arguments)
    assert publisher.sent == [message, message]
    assert m.reload == m.restart


def test_restart_of_a_name_and_all_is_refused(m: WorkerMultiplexer, publisher: FakePublisher) -> None:
    with pytest.raises(ValueError, match="Ambiguous restart with both a named process and all_workers=True"):
        m.restart("foo", all_workers=True)
    assert publisher.sent == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.scale(9), "__SCALE__:9"),
        (lambda m: m.terminate(), "__TERMINATE__"),
        (lambda m: m.terminate(early=True), "__TERMINATE_EARLY__"),
    ],
)
def test_commands_send_their_messages(
    m: WorkerMultiplexer, publisher: FakePublisher, call: Callable[[WorkerMultiplexer], None], message: str
) -> None:
    call(m)
    assert publisher.sent == [message]


def test_manage_sends_a_tuple(m: WorkerMultiplexer, publisher: FakePublisher) -> None:
    m.manage("NEW", function, {"a": 1})
    m.manage("NEW", function, {}, True, False, True, False, 3)
    assert publisher.sent == [
        ("NEW", function, {"a": 1}, False, None, False, True, 1),
        ("NEW", function, {}, True, False, True, False, 3),
    ]


def test_manage_accepts_keywords_of_later_releases(m: WorkerMultiplexer, publisher: FakePublisher) -> None:
    m.manage(name="NEW", func=function, kwargs={})  # type: ignore[call-arg]
    assert publisher.sent == [("NEW", function, {}, False, None, False, True, 1)]
    assert "name" not in inspect.signature(m.manage).parameters


def test_exit_removes_the_entry(m: WorkerMultiplexer, state: dict[str, Any]) -> None:
    m.exit()
    assert state == {"Sanic-Main": {"pid": 1}}
    m.exit()


@pytest.mark.parametrize(
    "error",
    [ConnectionRefusedError, BrokenPipeError, ConnectionResetError, FileNotFoundError, EOFError, KeyError],
)
def test_exit_ignores_an_unavailable_state(
    publisher: FakePublisher, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    class Gone(dict[str, Any]):
        def __delitem__(self, name: str) -> None:
            asked.append(name)
            raise error

    asked: list[str] = []
    monkeypatch.setenv("SANIC_WORKER_NAME", NAME)
    WorkerMultiplexer(publisher, Gone()).exit()
    assert asked == [NAME]


@pytest.mark.slow
def test_exit_ignores_a_stopped_sync_manager(
    publisher: FakePublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANIC_WORKER_NAME", NAME)
    with Manager() as manager:
        m = WorkerMultiplexer(publisher, manager.dict({NAME: {}}))
        m.ack()
        assert m.workers == {NAME: {"state": "ACKED"}}
    m.exit()
