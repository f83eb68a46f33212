"""The three routes of ``docs/design.md``: a real message, exit and edit take them, step by step."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from sanic import Sanic
from support.routes import Call, Recorder, Step, read_route
from support.running import House, until

from worker.constants import Phase
from worker.loader import AppLoader
from worker.reloader import Reloader

pytestmark = [pytest.mark.usefixtures("main_is_heard"), pytest.mark.slow]


@pytest.mark.parametrize("title", ["A message", "An exit", "A file change"])
def test_the_functions_exist(title: str) -> None:
    """Python functions can be imported. Rust functions are called by those above them, in the same order."""
    steps = [*chain(*read_route(title))]
    assert len(steps) >= 15
    callers: list[str] = []
    for step in steps:
        if not step.is_rust:
            assert step.key is not None
            callers.clear()
            continue
        call = re.compile(rf"\b{step.name.rpartition('::')[2]}\(")
        while callers and not call.search(callers[-1]):
            callers.pop()
        if callers:
            # The next one is called behind this call.
            callers[-1] = call.split(callers[-1], maxsplit=1)[1]
        else:
            assert step.key is not None, f"no step above calls {step}"
        callers.append(step.body)


class Journey:
    """A manager, and the route of the page that an event is to take through it."""

    def __init__(self, title: str, folder: Path, plan: str = "serves", **settings: Any) -> None:
        self.parts = read_route(title)
        self.recorder = Recorder(folder / "calls", [*chain(*self.parts)])
        self.house = House(folder, plan, **settings)

    def take(self, cause: Callable[[], None]) -> None:
        """Cause the event once the server is ready; when the next process is ready, check its route."""
        calls: list[Call] = []

        def act() -> None:
            self.house.said("ready")
            manager = self.house.manager
            (slot,) = manager.transient_processes
            until(lambda: manager._supervisor.slot_phase(slot) is Phase.READY, "the server is ready")
            start = len(self.recorder.lines())
            cause()
            self.house.said("ready", 2)
            calls.extend(self.recorder.calls(start))

        with self.recorder.recording():
            self.house.run(act)
        passed: set[int] = set()
        last = -1
        for part in self.parts:
            steps = [step for step in part if step.key is not None]
            walked = walk(calls, steps)
            assert [str(call.step) for call in walked] == [str(step) for step in steps]
            assert last < walked[0].at, "it came before the end of the part above"
            assert walked[0].pid not in passed, "it is the process of a part above"
            last = walked[-1].at
            passed.add(walked[0].pid)


def walk(calls: Sequence[Call], steps: Sequence[Step]) -> list[Call]:
    """Return the calls of one process that led to the first call of the last step, in their order.

    Of each step as many calls count as the page has of it: the last ones that called another step, or, if
    none did, the last ones.
    """
    end = next((call for call in calls if call.step == steps[-1]), None)
    assert end is not None, f"{steps[-1]} was not called"
    walked = [end]
    for step in dict.fromkeys(steps[:-1]):
        found = [call for call in calls if call.step == step and call.pid == end.pid and call.at < end.at]
        found.sort(key=lambda call: call.leads_on)
        walked += found[-steps.count(step) :]
    return sorted(walked, key=lambda call: call.at)


def test_a_message_takes_its_route(tmp_path: Path) -> None:
    journey = Journey("A message", tmp_path, "asks_for_a_restart_behind_the_gate")

    def cause() -> None:
        journey.house.plan("serves")
        journey.house.open_gate()

    journey.take(cause)


def test_an_exit_takes_its_route(tmp_path: Path) -> None:
    journey = Journey("An exit", tmp_path, min_uptime=0.0)
    journey.take(lambda: os.kill(journey.house.said("ready")[0].pid, signal.SIGKILL))


class LooksOnce(Reloader):
    """A reloader that does not wait for more changes after the first one."""

    MAX_DEBOUNCE = 0.0


def test_a_file_change_takes_its_route(tmp_path: Path) -> None:
    # The calls are not recorded beside them: each line would be a file event.
    watched, aside = tmp_path / "site" / "watched", tmp_path / "aside"
    watched.mkdir(parents=True)
    for path in (watched / "a.txt", aside):
        path.write_text(path.name)
    journey = Journey("A file change", tmp_path)
    loader = AppLoader(factory=partial(Sanic, "Watched"))
    reloader = LooksOnce(journey.house.publisher, 3600.0, {watched}, loader)
    journey.house.manager.manage("Reloader", reloader, {})

    def cause() -> None:
        until(lambda: journey.recorder.is_waiting(journey.parts[0][0]), "the reloader waits")
        aside.replace(watched / "a.txt")

    journey.take(cause)
