"""The verb that shows the stacks of a process."""

from __future__ import annotations

import json

from support.fake_inspector import STACKS, FakeInspector

from .conftest import Run

NAME = "Sanic-Server-0-0"


def test_it_prints_the_text(inspector: FakeInspector, run: Run) -> None:
    code, out, err = run("inspect", "stacks", NAME, *inspector.args)
    assert (code, err) == (0, "")
    assert out == f"{NAME} [4250], as its interpreter tells\n\n{STACKS}"
    assert inspector.posted == [("/stacks", {"name": NAME}, "")]


def test_it_names_a_debugger(inspector: FakeInspector, run: Run) -> None:
    inspector.stacks.update(way="faulthandler", debugger="pdb")
    out = run("inspect", "stacks", NAME, *inspector.args)[1]
    expected = f"{NAME} [4250], as faulthandler tells: C code holds the GIL; a debugger is at work in it: pdb"
    assert out.splitlines()[0] == expected


def test_json_is_the_result_unchanged(inspector: FakeInspector, run: Run) -> None:
    code, out, err = run("inspect", "stacks", NAME, "--json", *inspector.args)
    assert (code, err, json.loads(out)) == (0, "", {"name": NAME, **inspector.stacks})


def test_a_refusal_is_an_error(inspector: FakeInspector, run: Run) -> None:
    inspector.refusals["/stacks"] = (404, f"{NAME} has no process at present")
    code, out, err = run("inspect", "stacks", NAME, *inspector.args)
    assert (code, out, err) == (1, "", f"sanic-worker: {NAME} has no process at present\n")


def test_it_takes_one_name(inspector: FakeInspector, run: Run) -> None:
    assert run("inspect", "stacks", *inspector.args)[0] == 2
    assert run("inspect", "stacks", "a", "b", *inspector.args)[0] == 2
    assert not inspector.requests
