from __future__ import annotations

from typing import Any

import pytest
from support.fakes import FakeProcess

from worker.constants import ProcessState, RestartOrder
from worker.restarter import Restarter

SHUTDOWN_FIRST = {"restart_order": RestartOrder.SHUTDOWN_FIRST}
FINAL = {ProcessState.COMPLETED, ProcessState.FAILED, ProcessState.NONE}


def restart(transient: list[FakeProcess], durable: list[FakeProcess], *args: Any, **kwargs: Any) -> None:
    Restarter().restart(transient, durable, *args, **kwargs)  # type: ignore[arg-type]


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    assert {record.name for record in caplog.records} <= {"sanic.error"}
    return [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize("names", [None, []])
def test_without_names_all_transient_processes_restart(
    names: list[str] | None, caplog: pytest.LogCaptureFixture
) -> None:
    a, b, durable = FakeProcess("a"), FakeProcess("b"), FakeProcess("c", ProcessState.COMPLETED)
    restart([a, b], [durable], names)
    assert a.restarts == b.restarts == [SHUTDOWN_FIRST]
    assert durable.restarts == []
    assert errors(caplog) == []


def test_named_processes_restart() -> None:
    a, b, durable = FakeProcess("a"), FakeProcess("b"), FakeProcess("c", ProcessState.COMPLETED)
    restart([a, b], [durable], ["b", "c"])
    assert a.restarts == []
    assert b.restarts == durable.restarts == [SHUTDOWN_FIRST]


def test_further_arguments_are_passed_on() -> None:
    process, durable = FakeProcess("a"), FakeProcess("b", ProcessState.NONE)
    restart([process], [durable], ["a", "b"], RestartOrder.STARTUP_FIRST, reloaded_files="x.py")
    expected = {"restart_order": RestartOrder.STARTUP_FIRST, "reloaded_files": "x.py"}
    assert process.restarts == durable.restarts == [expected]


def test_processes_that_are_not_restartable_stay(caplog: pytest.LogCaptureFixture) -> None:
    process = FakeProcess("a", restartable=False)
    durable = FakeProcess("b", ProcessState.COMPLETED, restartable=False)
    restart([process], [durable])
    restart([process], [durable], ["a", "b"])
    assert process.restarts == durable.restarts == []
    assert errors(caplog) == ["Failed to restart processes: a, b"]


def test_unknown_names_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    process = FakeProcess("a")
    restart([process], [], ["x", "y"])
    assert errors(caplog) == ["Failed to restart processes: x, y"]
    caplog.clear()
    restart([process], [], ["a", "y"])
    assert process.restarts == [SHUTDOWN_FIRST]
    assert errors(caplog) == ["Failed to restart processes: y"]
    caplog.clear()
    restart([process], [], [f"n{number}" for number in range(1000)])
    assert errors(caplog) == [
        f"Failed to restart processes: {', '.join(f'n{number}' for number in range(20))} and 980 more"
    ]


@pytest.mark.parametrize("state", ProcessState)
def test_durable_processes_restart_only_in_a_final_state(
    state: ProcessState, caplog: pytest.LogCaptureFixture
) -> None:
    durable = FakeProcess("d", state)
    restart([], [durable], ["d"])
    if state in FINAL:
        assert durable.restarts == [SHUTDOWN_FIRST]
        assert errors(caplog) == []
    else:
        assert durable.restarts == []
        assert errors(caplog) == [
            f"Cannot restart process d because it is not in a final state. Current state is: {state.name}.",
            "Failed to restart processes: d",
        ]


def test_a_failed_restart_does_not_prevent_others(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(FakeProcess):
        def restart(self, *_: object, **__: object) -> None:
            raise RuntimeError(f"no {self.name}")

    one, other, last = Failing("a"), Failing("b"), FakeProcess("c")
    with pytest.raises(RuntimeError, match="no a"):
        restart([one, other, last], [], ["a", "b", "c", "d"])
    assert last.restarts == [SHUTDOWN_FIRST]
    assert errors(caplog) == ["Failed to restart processes: d", "Failed to restart b: RuntimeError: no b"]
    assert caplog.records[-1].exc_info


def test_restarts_that_fail_for_one_reason_are_one_line(caplog: pytest.LogCaptureFixture) -> None:
    class Refused(FakeProcess):
        def restart(self, *_: object, **__: object) -> None:
            raise ConnectionError("no state")

    with pytest.raises(ConnectionError):
        restart([Refused(name) for name in "abcd"], [])
    assert errors(caplog) == ["Failed to restart b, c, d: ConnectionError: no state"]
    assert not caplog.records[-1].exc_info
