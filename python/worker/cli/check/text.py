"""The report of a check as text."""

from __future__ import annotations

from worker.cli.check.exits import ExitCode
from worker.cli.check.findings import SHOWN_LINES, Findings, Step
from worker.cli.check.imports import Imports
from worker.cli.inspect.text import duration, harmless, one_line
from worker.cli.program import PROGRAM

__all__ = ["show", "step_line"]

NAME_WIDTH = 26
BEGIN = "Traceback (most recent call last):"


def step_line(step: Step) -> str:
    """Return the line of a step that has ended."""
    mark = "FAIL" if step.error else "ok"
    line = f"{mark:4}  {one_line(step.name):{NAME_WIDTH}} {duration(step.seconds):>7}"
    note = one_line(step.error or step.note)
    return f"{line}  {note}" if note else line


def show(findings: Findings, imports: Imports | None) -> None:
    """Print all but the steps."""
    failed = findings.failed
    traceback = harmless(failed.traceback).rstrip() if failed else ""
    if traceback:
        _show_part(f"The error in {one_line(failed.name) if failed else ''}", traceback)
    if findings.stacks:
        _show_part("The stacks", harmless(findings.stacks).rstrip())
    if findings.code not in (ExitCode.FINE, ExitCode.USAGE):
        output = _without(traceback, [*findings.output])[-SHOWN_LINES:]
        if output:
            _show_part("The last lines of the output", "\n".join(output))
    if imports is not None:
        _show_part(*_import_table(imports))
    if findings.warnings:
        _show_part("Warnings", "\n".join(one_line(warning) for warning in findings.warnings))
    if findings.failed is not None or findings.warnings or imports is not None:
        print()
    print(f"{PROGRAM}: {_result(findings)}")


def _without(traceback: str, output: list[str]) -> list[str]:
    """Return the lines of the output without the same traceback, as the server has logged it."""
    last = traceback.rpartition("\n")[2]
    if last and BEGIN in output and last in output[(begin := output.index(BEGIN)) :]:
        del output[begin : output.index(last, begin) + 1]
    return output


def _show_part(title: str, content: str) -> None:
    indented = "\n".join(f"  {line}" if line else "" for line in content.split("\n"))
    print(f"\n{title}:\n{indented}")


def _import_table(imports: Imports) -> tuple[str, str]:
    head = f"{'own':>8} {'in all':>8}  module"
    times = [(duration(one["own"]), duration(one["cumulative"]), one["name"]) for one in imports["longest"]]
    title = f"{imports['count']} imports took {duration(imports['seconds'])}. The longest are"
    return title, "\n".join([head, *(f"{own:>8} {whole:>8}  {name}" for own, whole, name in times)])


def _result(findings: Findings) -> str:
    target = one_line(findings.target)
    if findings.code is ExitCode.FINE:
        return f"{target} starts, serves and stops ({duration(findings.report()['seconds'])})"
    failed = findings.failed
    if findings.code is ExitCode.USAGE or failed is None:
        return one_line(failed.error) if failed else "failed"
    return f"{target} fails in {one_line(failed.name)}: {one_line(failed.error)}"
