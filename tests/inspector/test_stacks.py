"""The inspector shows the stacks of a process by its name."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from support.inspecting import Shared, ask, make
from support.processes import Children

from worker._inspect import stacks
from worker._state.shared import SharedState
from worker._system.stacks import Collection
from worker.inspector import Inspector

NAME = "Sanic-Server-0-0"
Call = Callable[..., Any]


@pytest.fixture
def call(shared: Shared) -> Call:
    inspector = make(worker_state=shared.state)(run=False)
    return lambda method, path, data=None: ask(inspector, method, path, data)


def test_a_process_that_answers_no_questions_is_described_by_the_kernel(
    call: Call, shared: Shared, children: Children
) -> None:
    pid = children.fork(signal.pause)
    shared.state[NAME] = {"pid": pid, "server": True}
    answer = call("POST", "/stacks", {"name": NAME})
    assert (answer.status, answer.json["meta"]) == (200, {"action": "stacks"})
    result = answer.json["result"]
    assert f"Thread {pid} " in result.pop("text")
    assert result == {"name": NAME, "pid": pid, "way": "kernel", "debugger": None}


@pytest.mark.native
def test_a_process_that_answers_tells_its_stacks(
    call: Call, shared: Shared, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stacks, "Collection", partial(Collection, patience=30))
    state = shared.state
    assert isinstance(state, SharedState)
    state[NAME] = {"server": True}
    ready, write = os.pipe()

    def child() -> None:
        state.questions.open()
        os.close(write)
        number = 1
        while number := state.questions.next(number):
            answer = {"stacks": "mine", "stacks_question": number, "stacks_debugger": "pdb"}
            state.update_entry(NAME, answer, os.getpid())
            state.questions.answer(number)

    pid = children.fork(child)
    state.update_entry(NAME, {"pid": pid})
    os.close(write)
    os.read(ready, 1)
    os.close(ready)
    result = call("GET", f"/stacks?name={NAME}").json["result"]
    assert result == {"name": NAME, "pid": pid, "way": "interpreter", "debugger": "pdb", "text": "mine"}
    # The answer is no part of the state that others are shown.
    shown = call("GET", "/").json["result"]["workers"][NAME]
    assert "pid" in shown
    assert not [key for key in shown if key.startswith("stacks")]


@pytest.mark.native
def test_a_staged_answer_is_found(shared: Shared) -> None:
    """While a slot is handed over, the new process has staged its entry."""
    state = shared.state
    assert isinstance(state, SharedState)
    state[NAME] = {"pid": 1, "server": True, "stacks": "of the first", "stacks_question": 9}
    state.update_entry(NAME, {"stacks": "staged", "stacks_question": 2, "stacks_debugger": ""}, os.getpid())
    assert state.stacks(NAME, os.getpid(), 2) == ("staged", "")
    assert state.stacks(NAME, os.getpid(), 3) is None
    assert state.stacks("nothing", os.getpid(), 2) is None


def test_an_unknown_process_is_a_404(call: Call) -> None:
    answer = call("POST", "/stacks", {"name": "Nothing-0"})
    assert answer.status == 404
    assert "unknown process: 'Nothing-0'; processes: Sanic-Main, Sanic-Server-0-0" in answer.json["message"]


@pytest.mark.parametrize("entry", [{}, {"pid": None}, {"pid": 0}, {"pid": "1"}, {"pid": 2**22 + 1}])
def test_a_slot_without_a_process_is_a_404(call: Call, shared: Shared, entry: dict[str, Any]) -> None:
    shared.state[NAME] = {"server": True, **entry}
    answer = call("POST", "/stacks", {"name": NAME})
    assert (answer.status, answer.json["message"]) == (404, f"{NAME} has no process at present")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"name": 1}, "name must be the name of a process, not 1"),
        ({"name": ["Sanic-Main"]}, "name must be the name of a process"),
        ({}, "stacks takes name"),
        ({"names": "Sanic-Main"}, "stacks takes name"),
    ],
)
def test_wrong_arguments_are_a_400(call: Call, data: Any, text: str) -> None:
    answer = call("POST", "/stacks", data)
    assert answer.status == 400
    assert text in answer.json["message"]


def test_a_subclass_may_have_an_action_of_this_name() -> None:
    class Custom(Inspector):
        def stacks(self) -> str:  # type: ignore[override]
            return "mine"

    inspector = make(Custom)(run=False)
    assert ask(inspector, "POST", "/stacks").json["result"] == "mine"
    # It is not known to change nothing.
    assert ask(inspector, "GET", "/stacks").status == 405


def test_the_description_has_its_argument_and_its_answer() -> None:
    spec = ask(make()(run=False), "GET", "/openapi.json").json
    post, get = spec["paths"]["/stacks"]["post"], spec["paths"]["/stacks"]["get"]
    assert post["requestBody"]["content"]["application/json"]["schema"]["required"] == ["name"]
    assert [one["name"] for one in get["parameters"]] == ["name"]
    for one in (post, get):
        result = one["responses"]["200"]["content"]["application/json"]["schema"]["properties"]["result"]
        assert result == {"$ref": "#/components/schemas/Stacks"}
    assert "202" not in post["responses"]
