"""Messages that are tuples and begin with a verb: operations, upgrades, pings and limits."""

from __future__ import annotations

from typing import Any

import pytest

from worker._control.receive import interpret
from worker._core.messages import Busy, Invalid, Ping, Recycle, Requested, Scale, Upgrade


def test_an_operation_carries_a_command() -> None:
    message = ("__OPERATION__", "__SCALE__:4", "3f2a", "inspector 127.0.0.1", 1.5)
    assert interpret(message) == Requested(Scale(4), "3f2a", "inspector 127.0.0.1", 1.5)


@pytest.mark.parametrize("text", ["", "__TERMINATE_EARLY__", "__SCALE__"])
def test_an_operation_is_a_restart_a_scaling_or_a_stop(text: str) -> None:
    found = interpret(("__OPERATION__", text, "3f2a", "me", 1.5))
    assert isinstance(found, Invalid)
    assert found.reason.startswith("an operation is a restart, a scaling or a stop")


@pytest.mark.parametrize(
    "message",
    [
        ("__OPERATION__", "__SCALE__:4", "x" * 33, "me", 1.5),
        ("__UPGRADE__", "x" * 33, "me", 1.5),
        ("__PING__", "x" * 33),
    ],
)
def test_a_long_id_is_refused(message: Any) -> None:
    found = interpret(message)
    assert isinstance(found, Invalid)
    assert "at most 32 characters" in found.reason


@pytest.mark.parametrize(
    "message",
    [
        ("__OPERATION__", "__SCALE__:4", "3f2a", "me"),
        ("__OPERATION__", "__SCALE__:4", 3, "me", 1.5),
        ("__UPGRADE__", "3f2a", "me", 1),
        ("__PING__", 1),
        ("__PONG__", "1"),
    ],
)
def test_other_tuples_manage_no_process(message: Any) -> None:
    found = interpret(message)
    assert isinstance(found, Invalid)
    assert found.reason.startswith("a tuple of ")


def test_an_upgrade_is_an_operation() -> None:
    message = ("__UPGRADE__", "3f2a", "inspector 127.0.0.1", 1.5)
    assert interpret(message) == Requested(Upgrade(), "3f2a", "inspector 127.0.0.1", 1.5)


def test_a_ping_has_a_token() -> None:
    assert interpret(("__PING__", "one")) == Ping("one")


def test_a_server_reports_that_it_is_busy() -> None:
    assert interpret(("__BUSY__",)) == Busy()
    assert isinstance(interpret(("__BUSY__", 1)), Invalid)


def test_a_server_names_the_limit_that_it_has_reached() -> None:
    assert interpret(("__RECYCLE__", "max_rss", 210, 200.5)) == Recycle("max_rss", 210, 200.5)


@pytest.mark.parametrize(
    "message",
    [
        ("__RECYCLE__", "max_everything", 2, 1),
        ("__RECYCLE__", "max_rss", float("nan"), 1),
        ("__RECYCLE__", "max_rss", 2, float("inf")),
        ("__RECYCLE__", "max_rss", "2", 1),
    ],
)
def test_other_limits_are_refused(message: Any) -> None:
    assert isinstance(interpret(message), Invalid)
