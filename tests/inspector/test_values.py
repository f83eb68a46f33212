"""Values in an answer: any value in the state or of an action becomes valid JSON."""

from __future__ import annotations

import json
import math
from datetime import datetime, timezone
from typing import Any

import pytest
from support.inspecting import ask, make

from worker.inspector import Inspector

NOW = datetime(2024, 2, 3, 4, 5, 6, tzinfo=timezone.utc)


class Custom(Inspector):
    def odd(self) -> Any:
        return {"nan": math.nan, "deep": [math.inf, {"y": -math.inf}], "at": NOW, "fine": 0.5}


def result(answer: Any) -> Any:
    assert answer.status == 200
    return json.loads(answer.text, parse_constant=pytest.fail)["result"]


def test_a_number_that_is_not_finite_is_null() -> None:
    inspector = make(Custom, worker_state={"a": Custom.odd(make(Custom))})(run=False)
    expected = {"nan": None, "deep": [None, {"y": None}], "at": NOW.isoformat(), "fine": 0.5}
    assert result(ask(inspector, "GET", "/"))["workers"] == {"a": expected}
    assert result(ask(inspector, "POST", "/odd")) == expected


def test_an_object_in_itself_or_too_deep_is_cut() -> None:
    loop: list[Any] = [1]
    loop += [loop, {"loop": loop}]
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    state = {"a": {"loop": loop, "twice": [[0]] * 2, "deep": deep}}
    found = result(ask(make(worker_state=state)(run=False), "GET", "/"))["workers"]["a"]
    assert (found["loop"], found["twice"]) == ([1, "...", {"loop": "..."}], [[0], [0]])
    assert json.dumps(found["deep"]).strip("[]") == '"..."'
