"""The event log: what the main process appends is kept, counted, logged, and read by any process."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from worker._core import IS_NATIVE
from worker._spawn.state_process import StateProcess
from worker._state import events, schema
from worker._state.event_log import EventLog, read_events, read_operations, read_pong, read_totals
from worker._state.shared import SharedState

STARTED = events.ProcessStarted(
    text="Sanic-Server-0-0 [7] started.", slot="Sanic-Server-0-0", pid=7, reason="exit"
)
EXITED = events.ProcessExited(
    text="Sanic-Server-0-0 [7] exited.",
    level=logging.ERROR,
    slot="Sanic-Server-0-0",
    pid=7,
    exit_code=3,
    signal=None,
    uptime=1.5,
    attempt=2,
    next_restart_in=0.4,
)


@pytest.fixture
def state() -> Iterator[Any]:
    """The shared state of the core at work."""
    if IS_NATIVE:
        own = SharedState()
        yield own
        own.close()
    else:
        process = StateProcess(schema.SHEETS)
        mapping = process.dict()
        yield mapping
        mapping.close()
        process.shutdown()


def test_events_are_read_in_order_with_their_fields(state: Any) -> None:
    log = EventLog(state)
    log.append(STARTED)
    log.append(EXITED)
    first, second = read_events(state)
    assert (first["seq"], first["type"], first["pid"], first["reason"]) == (1, "process_started", 7, "exit")
    assert second["type"] == "process_exited"
    assert second["level"] == "error"
    assert second["text"] == EXITED.text
    assert {key: second[key] for key in EXITED.fields} == EXITED.fields
    assert read_events(state, since=1) == [second]


def test_the_last_thousand_events_are_kept(state: Any) -> None:
    log = EventLog(state)
    for _ in range(1_003):
        log.append(STARTED)
    assert [event["seq"] for event in read_events(state)] == [*range(4, 1_004)]


def test_the_last_hundred_operations_are_kept_newest_first(state: Any) -> None:
    log = EventLog(state)
    for number in range(102):
        assert log.new_operation() == number + 1
        log.show_operation(number + 1, {"id": f"{number}", "status": "running"})
    log.show_operation(102, {"id": "101", "status": "done"})
    found = read_operations(state)
    assert [operation["id"] for operation in found] == [str(number) for number in range(101, 1, -1)]
    assert found[0] == {"id": "101", "status": "done"}


def test_an_operation_that_runs_is_kept_while_others_come(state: Any) -> None:
    log = EventLog(state)
    slow = log.new_operation()
    log.show_operation(slow, {"id": "slow", "status": "running"})
    for _ in range(250):
        number = log.new_operation()
        log.show_operation(number, {"id": f"{number}", "status": "done"})
    log.show_operation(slow, {"id": "slow", "status": "done"})
    found = [operation["id"] for operation in read_operations(state)]
    assert found == [*(str(number) for number in range(251, 152, -1)), "slow"]


def test_an_operation_that_lost_its_cell_takes_no_other(state: Any) -> None:
    log = EventLog(state)
    for number in range(1, 102):
        log.new_operation()
        log.show_operation(number, {"id": f"{number}", "status": "running"})
    log.show_operation(1, {"id": "1", "status": "done"})
    assert [operation["id"] for operation in read_operations(state)] == [str(n) for n in range(101, 1, -1)]


@pytest.mark.parametrize("letter", ["x", "\N{SNOWMAN}", "\U0001f40d", "\udc80", '"', "\x00"])
def test_an_event_that_is_too_long_is_cut(state: Any, letter: str) -> None:
    files = tuple(f"{letter * 300}{number}" for number in range(100))
    long = events.FilesChanged(text=letter * 5_000, files=files, by=letter * 5_000, operation="1f")
    EventLog(state).append(long)
    (event,) = read_events(state)
    assert event["type"] == "files_changed"
    assert event["operation"] == "1f"
    assert event["files"][-1] == "and 95 more"


def test_totals_are_counted(state: Any) -> None:
    log = EventLog(state)
    assert read_totals(state)["starts"] == 0
    for event in (
        STARTED,
        EXITED,
        events.ProcessExited(text="", slot="a", pid=8, exit_code=None, signal="SIGKILL", uptime=0.0),
        events.ProcessExited(text="", slot="a", pid=None, exit_code=None, signal=None, uptime=0.0),
        *(
            events.HangDetected(text="", slot="a", pid=7, cause=cause, seconds=2.1, limit=2.0)
            for cause in ("loop", "frozen", "loop")
        ),
        events.ProcessReady(text="", slot="a", pid=7, seconds=0.3),
        events.ProcessReady(text="", slot="a", pid=7, seconds=1_000.0),
        events.ProcessReady(text="", slot="inspector", pid=9, seconds=0.0, server=False),
    ):
        log.append(event)
    totals = read_totals(state)
    assert totals["starts"] == 1
    assert totals["restarts"] == {"exit": 1, "request": 0, "reload": 0}
    assert totals["exits"] == {"3": 1, "SIGKILL": 1, "unknown": 1}
    assert totals["hangs"] == {"loop": 2, "frozen": 1}
    seconds = totals["start_seconds"]
    assert seconds["counts"][seconds["bounds"].index(0.5)] == 1
    assert seconds["counts"][-1] == 1
    assert seconds["sum"] == 1_000.3


def test_only_rollouts_that_succeeded_are_timed(state: Any) -> None:
    log = EventLog(state)
    for kind, outcome in (("restart", "done"), ("reload", "done"), ("restart", "failed"), ("scale", "done")):
        ended = events.OperationEnded(
            text="", operation="1", kind=kind, outcome=outcome, seconds=2.0, reason="", done=1, total=1
        )
        log.append(ended)
    assert sum(read_totals(state)["rollout_seconds"]["counts"]) == 2


def test_a_line_of_the_log_carries_the_fields(state: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    log = EventLog(state)
    log.append(STARTED)
    log.append(EXITED)
    (record,) = caplog.records
    assert record.getMessage() == EXITED.text
    fields = vars(record)
    assert (fields["slot"], fields["pid"], fields["exit_code"], fields["signal"]) == (
        "Sanic-Server-0-0",
        7,
        3,
        None,
    )
    assert (fields["uptime"], fields["attempt"], fields["next_restart_in"]) == (1.5, 2, 0.4)


def test_no_field_has_the_name_of_an_attribute_of_a_log_record() -> None:
    """:mod:`logging` refuses such an ``extra``."""
    record = logging.LogRecord("", 0, "", 0, "", (), None)
    kinds = [
        kind for kind in vars(events).values() if isinstance(kind, type) and issubclass(kind, events.Event)
    ]
    assert len(kinds) > 10
    for kind in kinds:
        own = {*kind.__match_args__} - {*events.Event.__match_args__}
        assert own.isdisjoint(vars(record) | {"message": "", "asctime": ""})


def test_the_last_ping_is_answered(state: Any) -> None:
    assert read_pong(state) == ""
    log = EventLog(state)
    log.pong("one")
    log.pong("two")
    assert read_pong(state) == "two"


def test_a_state_that_keeps_no_events_only_logs(caplog: pytest.LogCaptureFixture) -> None:
    EventLog({}).append(EXITED)
    assert caplog.messages == [EXITED.text]
    assert read_events({}) == read_operations({}) == []
    assert read_pong({}) == ""
    assert read_totals({})["starts"] == 0


@pytest.mark.native
def test_a_closed_state_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    state = SharedState()
    log = EventLog(state)
    state.close()
    log.append(EXITED)
    assert caplog.messages == [EXITED.text]


def test_recycled_servers_and_kills_for_want_of_memory_are_counted(state: Any) -> None:
    log = EventLog(state)
    for cause in ("max_rss", "max_requests", "max_rss"):
        log.append(events.Recycled(text="", slot="s", pid=7, cause=cause, value=2.5, limit=2.0))
    log.append(EXITED)
    log.append(EXITED.replace(exit_code=None, signal="SIGKILL", oom=True))
    totals = read_totals(state)
    assert totals["recycles"] == {"max_rss": 2, "max_requests": 1}
    assert totals["oom_kills"] == 1
    assert totals["exits"] == {"3": 1, "SIGKILL": 1}
    assert [event["oom"] for event in read_events(state) if event["type"] == "process_exited"] == [
        False,
        True,
    ]
