"""The findings of a check: the events of the throw-away processes, put together."""

from __future__ import annotations

import re
import signal
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from worker.cli.check.exits import ExitCode
from worker.cli.inspect.text import harmless, one_line
from worker.cli.program import PROGRAM

__all__ = ["SHOWN_LINES", "Findings", "Step"]

# How much of the output is kept.
MAX_LINES, MAX_LINE = 200, 1000
SHOWN_LINES = 25
REQUEST = ("path", "status", "seconds", "bytes", "ok")
VERSIONS = ("python", "sanic", "sanic_worker", "core")
MESSAGE = f"{PROGRAM}: "
# A line of the log that is no reason for an end.
INFORMATION = re.compile(r"\d\d:\d\d:\d\d.*?\b(?:DEBUG|INFO)\b")
# The step that fails if a process does not end after its last step.
ENDS = {"after_server_stop": "end of the worker", "main_process_stop": "end of the main process"}


@dataclass
class Step:
    """A step of the start or of the stop.

    Attributes:
        process: ``"main"`` or ``"worker"``.
        began: When it began, on the monotonic clock.
        seconds: How long it took; ``None`` while it is under way.
        error: Why it has failed; empty if it has not.
        traceback: The traceback of the error.
        note: Its result.
    """

    name: str
    process: str
    began: float
    seconds: float | None = None
    error: str = ""
    traceback: str = ""
    note: str = ""

    @property
    def is_ok(self) -> bool:
        """Whether it has ended well."""
        return self.seconds is not None and not self.error

    def fail(self, error: str, now: float) -> None:
        """End it with an error."""
        self.error = error
        self.seconds = max(0.0, now - self.began)


@dataclass
class Findings:
    """The findings of a check so far.

    Attributes:
        target: The application.
        steps: The steps in the order in which they began.
        requests: The requests and their results.
        warnings: Warnings, each one once.
        versions: The versions of Python, Sanic and this package.
        stacks: The stacks of the step that took too long; empty without one.
        limit: When the process that works has to be done, on the monotonic clock, and after how many seconds.
    """

    target: str
    steps: list[Step] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    stacks: str = ""
    limit: tuple[float, float] | None = None
    has_overrun: bool = False
    was_interrupted: bool = False
    code: ExitCode = ExitCode.FAILED
    output: deque[str] = field(default_factory=lambda: deque(maxlen=MAX_LINES))
    _keys: dict[str, Step] = field(default_factory=dict)
    _main_error: dict[str, str] | None = None
    _worker_code: int | None = None
    _worker_was_ready: bool = False

    def apply(self, event: dict[str, Any]) -> Step | None:
        """Take an event; return the step that has ended with it."""
        match event:
            case {"event": "begin", "key": key, "name": name, "process": process, "at": at}:
                step = self._keys[key] = Step(name, process, at)
                self.steps.append(step)
            case {"event": "end"}:
                return self._end(event)
            case {"event": "limit", "seconds": seconds, "at": at}:
                self.limit = None if seconds is None else (at + seconds, seconds)
            case {"event": "overrun", "stacks": stacks}:
                self.has_overrun = True
                self.stacks = stacks
            case {"event": "warning", "text": text}:
                self.warnings.append(text)
            case {"event": "request", **request}:
                self.requests.append({name: request[name] for name in REQUEST})
            case {"event": "versions", **versions}:
                self.versions = {name: versions[name] for name in VERSIONS}
            case {"event": "target", "target": target}:
                self.target = target
            case {"event": "error", "problem": problem}:
                self._main_error = problem
            case {"event": "exit", "code": code}:
                self._worker_code = code
        return None

    def conclude(self, main_code: int | None, now: float) -> list[Step]:
        """Judge the findings, when all processes have ended; return the steps that end with that.

        Args:
            main_code (int | None): The exit code of the main process; ``None`` if it was killed here.
            now (float): The time, on the monotonic clock.
        """
        ended = [step for step in self.steps if step.seconds is None]
        if self.was_interrupted:
            self.code = ExitCode.INTERRUPTED
            reason = "interrupted"
        elif self.has_overrun:
            self.code = ExitCode.TIMEOUT
            reason = f"not done within {self.limit[1]:g} s" if self.limit else "not done in time"
        else:
            self.code, reason = self._judge(main_code)
        for step in ended:
            step.fail(reason, now)
        failed = self.failed
        if failed is None and self.code:
            last = self.steps[-1].name if self.has_overrun and self.steps else ""
            step = Step(ENDS.get(last, "the server"), "main", now)
            step.fail(reason, now)
            self.steps.append(step)
            ended.append(step)
        if failed is not None and self.code is ExitCode.USAGE:
            # The message of the command says more than the error behind it.
            failed.error, failed.traceback = reason, ""
        return ended

    @property
    def failed(self) -> Step | None:
        """The first step that has failed."""
        # A step inside of another one fails first, and is the cause.
        failed = [step for step in self.steps if step.error]
        return min(failed, key=lambda step: step.began + (step.seconds or 0.0), default=None)

    def report(self) -> dict[str, Any]:
        """Return the report as values of JSON."""
        failed = self.failed
        began = min((step.began for step in self.steps), default=0.0)
        ended = max((step.began + (step.seconds or 0.0) for step in self.steps), default=0.0)
        return {
            "ok": self.code is ExitCode.FINE,
            "exit_code": int(self.code),
            "target": self.target,
            "failed": failed and failed.name,
            "error": failed and failed.error,
            "seconds": round(ended - began, 6),
            "steps": [
                {
                    "name": step.name,
                    "ok": step.is_ok,
                    "seconds": round(step.seconds or 0.0, 6),
                    "error": step.error or None,
                    "traceback": step.traceback or None,
                }
                for step in self.steps
            ],
            "requests": self.requests,
            "warnings": self.warnings,
            "output": [] if self.code is ExitCode.FINE else [*self.output][-SHOWN_LINES:],
            "stacks": self.stacks or None,
            "versions": self.versions,
        }

    def add_output(self, line: bytes) -> None:
        """Keep a line of the output."""
        self.output.append(harmless(line.decode(errors="replace").rstrip())[:MAX_LINE])

    def _end(self, event: dict[str, Any]) -> Step | None:
        step = self._keys.get(event["key"])
        if step is None or step.seconds is not None:
            return None
        step.seconds = max(0.0, event["at"] - step.began)
        step.note = event.get("note", "")
        if problem := event.get("problem"):
            step.error, step.traceback = in_one_line(problem), problem["traceback"]
        self._worker_was_ready = self._worker_was_ready or step.name == "ready"
        return step

    def _judge(self, main_code: int | None) -> tuple[ExitCode, str]:
        if main_code == ExitCode.USAGE:
            return ExitCode.USAGE, self._last_line()
        if self._main_error and self.failed is None:
            return ExitCode.FAILED, in_one_line(self._main_error)
        if self._worker_code:
            return ExitCode.FAILED, f"the worker {_ending(self._worker_code)}"
        if main_code:
            # A message is the last line of a process that has ended by itself.
            message = self._last_line() if main_code > 0 else ""
            return ExitCode.FAILED, f"the main process {_ending(main_code)}: {message}".rstrip(": ")
        if self.failed is not None:
            return ExitCode.FAILED, self.failed.error
        if not self._worker_was_ready:
            return ExitCode.FAILED, "the process ended with exit code 0 before it was ready"
        if any(step.seconds is None for step in self.steps):
            return ExitCode.FAILED, "the process ended with exit code 0 before this step was done"
        return ExitCode.FINE, "the process ended with exit code 0"

    def _last_line(self) -> str:
        """Return the last message of the command in the output, else the last line that may be a reason."""
        lines = [one_line(line) for line in self.output if line.strip() and not INFORMATION.search(line)]
        messages = [line.removeprefix(MESSAGE) for line in lines if line.startswith(MESSAGE)]
        return [*lines[-1:], *messages][-1] if lines else ""


def in_one_line(problem: Mapping[str, Any]) -> str:
    """Return an error of a process with its place."""
    return f"{problem['text']} ({problem['where']})" if problem["where"] else problem["text"]


def _ending(code: int) -> str:
    """Return how a process ended, in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    with suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"
