"""The routes that ``docs/design.md`` lists, and a recorder of the calls that a real one makes."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

from worker import _core

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "design.md"
STEP = re.compile(r"`((?:python/worker|src)/[\w/]+\.(?:py|rs)):([\w.:]+)`")


@dataclass(frozen=True)
class Step:
    """A function of a route, ``path:name`` in the page."""

    path: str
    name: str

    def __str__(self) -> str:
        return f"{self.path}:{self.name}"

    @property
    def is_rust(self) -> bool:
        return self.path.endswith(".rs")

    @property
    def is_wait(self) -> bool:
        """Whether it waits: it is called before the event, and ends with it."""
        return re.split(r"\W+", self.name)[-1] == "wait"

    @cached_property
    def key(self) -> Any:
        """The key of a recorded call: a code object, or the class and the name of a native method.

        ``None`` for a Rust function that Python cannot call.
        """
        if not self.is_rust:
            found: Any = import_module(self.path[len("python/") : -len(".py")].replace("/", "."))
            for name in self.name.split("."):
                found = getattr(found, name)
            return inspect.unwrap(found).__code__
        kind, _, name = self.name.rpartition("::")
        if not (kind and self.path.startswith("src/python/")):
            return None
        owner = getattr(_core, kind)
        return getattr(getattr(owner, name), "__code__", (owner, name))

    @cached_property
    def body(self) -> str:
        """The source of a Rust function, behind its name."""
        kind, _, name = self.name.rpartition("::")
        source = (ROOT / self.path).read_text()
        scopes = [source]
        if kind:
            blocks = re.finditer(rf"^impl(<.*?>)? {kind}\b", source, re.MULTILINE)
            scopes = [_block(source, found.start()) for found in blocks]
        for scope in scopes:
            if found := re.search(rf"\bfn {name}\b", scope):
                return _block(scope, found.end())
        raise AssertionError(f"there is no {self}")


def _block(source: str, start: int) -> str:
    """Return the source from ``start`` to the end of the next block in braces."""
    depth = 0
    for found in re.compile("[{}]").finditer(source, start):
        depth += 1 if found[0] == "{" else -1
        if depth == 0:
            return source[start : found.end()]
    raise AssertionError("the block does not end")


def read_route(title: str) -> list[list[Step]]:
    """Return the steps of a route in the page: one list for each process that it passes through."""
    _, _, section = PAGE.read_text().partition(f"\n### {title}\n")
    _, *parts = re.split(r"\nIn the [\w ]+:\n", re.split(r"\n##+ ", section)[0])
    return [[Step(*found) for found in STEP.findall(part)] for part in parts]


@dataclass
class Call:
    """A recorded call. ``leads_on``: it called another step of the route."""

    step: Step
    pid: int
    at: int
    leads_on: bool = False


class Recorder:
    """Appends each call of a step to a file, in this process and in those that are forked while it records.

    A line holds a pid, ``call``, ``wait`` or ``return``, and the number of the step. A wait counts as called
    when it ends, and so does, once more, the step to which it returns.

    Args:
        file (Path): The file.
        steps (Sequence[Step]): The steps.
    """

    def __init__(self, file: Path, steps: Sequence[Step]) -> None:
        self.file = file
        self._steps = [*dict.fromkeys(step for step in steps if step.key is not None)]
        self._numbers = {step.key: number for number, step in enumerate(self._steps)}

    @contextmanager
    def recording(self) -> Iterator[None]:
        self._fd = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        before = sys.getprofile()
        sys.setprofile(self._profile)
        try:
            yield
        finally:
            sys.setprofile(before)
            os.close(self._fd)

    def _profile(self, frame: FrameType | None, event: str, arg: Any) -> None:
        assert frame is not None
        if event.startswith("c_"):
            number = self._numbers.get((type(getattr(arg, "__self__", None)), arg.__name__))
        else:
            number, frame = self._numbers.get(frame.f_code), frame.f_back
        if number is None:
            return
        is_call = event.endswith("call")
        if not self._steps[number].is_wait:
            self._write("call" if is_call else "return", number)
        elif is_call:
            self._write("wait", number)
        else:
            self._write("call", number)
            self._write("return", number)
            if frame is not None and frame.f_code in self._numbers:
                self._write("call", self._numbers[frame.f_code])

    def _write(self, event: str, number: int) -> None:
        os.write(self._fd, f"{os.getpid()} {event} {number}\n".encode())

    def lines(self) -> list[tuple[int, str, Step]]:
        """Return the content of the file."""
        # A write across the end of a page is visible in parts: the last line may not be whole yet.
        found = (line.split() for line in self.file.read_text().split("\n")[:-1])
        return [(int(pid), event, self._steps[int(number)]) for pid, event, number in found]

    def is_waiting(self, step: Step) -> bool:
        """Return whether a process waits in this step."""
        last = {pid: (event, step) for pid, event, step in self.lines()}
        return ("wait", step) in last.values()

    def calls(self, start: int) -> list[Call]:
        """Return the calls from this line on."""
        calls: list[Call] = []
        stacks: dict[int, list[Call]] = {}
        for at, (pid, event, step) in enumerate(self.lines()[start:]):
            stack = stacks.setdefault(pid, [])
            if event == "call":
                if stack and stack[-1].step != step:
                    stack[-1].leads_on = True
                stack.append(Call(step, pid, at))
                calls.append(stack[-1])
            elif event == "return" and any(call.step == step for call in stack):
                while stack.pop().step != step:
                    pass
        return calls
