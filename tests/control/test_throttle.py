"""The throttle bounds the log lines about bad messages."""

from __future__ import annotations

import math
from time import monotonic

import pytest
from support.running import errors

from worker._control.throttle import MAX_LINES, SPAN, LogThrottle


def test_lines_over_the_limit_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    names = {1: "one", 2: "two", None: "nobody"}
    throttle = LogThrottle(lambda sender: names[sender])
    assert throttle.flush_at == math.inf
    before = monotonic()
    for sender, count in {1: MAX_LINES + 5, 2: MAX_LINES, None: MAX_LINES + 1}.items():
        for number in range(count):
            throttle.log(sender, lambda sender=sender, number=number: f"{sender} {number}")  # type: ignore[misc]
    assert before + SPAN <= throttle.flush_at <= monotonic() + SPAN
    told = [f"{sender} {number}" for sender in (1, 2, None) for number in range(MAX_LINES)]
    assert errors(caplog) == told

    # A sender that has exited meanwhile is still named.
    names.clear()
    throttle.flush()
    assert errors(caplog)[len(told) :] == [
        "Monitor suppressed 5 more lines like these within a second, about one.",
        "Monitor suppressed 1 more lines like these within a second, about nobody.",
    ]
    assert throttle.flush_at == math.inf


def test_a_flush_resets_the_count(caplog: pytest.LogCaptureFixture) -> None:
    throttle = LogThrottle(str)
    for _ in range(2):
        for _ in range(MAX_LINES):
            throttle.log(1, lambda: "again")
        throttle.flush()
    assert errors(caplog) == ["again"] * 2 * MAX_LINES


def test_a_traceback_is_logged_on_request(caplog: pytest.LogCaptureFixture) -> None:
    throttle = LogThrottle(str)
    try:
        raise ValueError("no")
    except ValueError:
        throttle.log(1, lambda: "plain")
        throttle.log(1, lambda: "traced", exc_info=True)
    assert [bool(record.exc_info) for record in caplog.records] == [False, True]
    assert "ValueError: no" in caplog.text


def test_suppressed_lines_are_not_formatted() -> None:
    throttle = LogThrottle(str)
    made: list[int] = []
    for number in range(MAX_LINES + 3):
        throttle.log(1, lambda number=number: made.append(number) or "text")  # type: ignore[misc]
    assert made == list(range(MAX_LINES))
