"""Make a report of a run of the benches: medians, ratios, the limit beside them, and the targets met.

``benchmarks.py RESULTS [REPORT]``: ``RESULTS`` is the file that ``pytest benches --benchmark-json`` wrote.
The report is printed, and written to ``REPORT`` if that is given.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from textwrap import wrap
from typing import Any

from sections import CONTENDERS, SECTIONS, STOCK, Entry, Section, Table
from start_sections import STARTS

WIDTH = 120


def table_of(section: Section, entries: Iterable[Entry]) -> Table:
    """Return the medians of the rounds."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for entry in entries:
        if entry["name"].partition("[")[0] == section.bench:
            for (row, column), value in section.cells(entry).items():
                found[row][column].append(value)
    return {
        row: {column: section.of_rounds(values) for column, values in columns.items()}
        for row, columns in found.items()
    }


def ratios(section: Section, row: Mapping[str, float]) -> dict[str, float]:
    """Return the ratios of the contenders of a row, by their names."""
    return {
        f"{one} ÷ {other}": ratio(row[one], row[other])
        for one, other in section.pairs
        if {one, other} <= {*row}
    }


def ratio(one: float, other: float) -> float:
    """Return the quotient of two figures: infinite if only the other is 0, and 1 if both are."""
    return one / other if other else math.inf if one else 1.0


def judged(section: Section, table: Table) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield each target, with the rows that meet it and those that miss it."""
    for target in section.targets:
        met: list[str] = []
        missed: list[str] = []
        for row in table:
            # A run may have only some of the benches.
            with suppress(KeyError):
                if row.endswith(target.rows):
                    (met if target.met(table, row) else missed).append(row)
        yield target.text, met, missed


def slower(section: Section, table: Table) -> Iterator[str]:
    """Yield the rows in which this package is slower than stock."""
    for name, row in table.items():
        for one, other in section.pairs:
            if STOCK not in (one, other) or not {one, other} <= {*row}:
                continue
            ours = other if one == STOCK else one
            gain = row[ours] - row[STOCK] if section.more_is_better else row[STOCK] - row[ours]
            if gain < 0:
                words = f"{one} ÷ {other} is {number(ratio(row[one], row[other]))}"
                yield f"{section.title}, {name}: {words} ({ours})"


def number(value: float) -> str:
    """Format a figure with three significant digits."""
    if math.isinf(value):
        return "never"
    if value >= 100:
        return f"{value:,.0f}"
    digits = 2 - math.floor(math.log10(value)) if value > 0 else 2
    return f"{value:.{min(max(digits, 0), 3)}f}"


def times(value: float) -> str:
    """Format a ratio."""
    return "∞" if math.isinf(value) else number(value)


def lines(rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """Yield the lines of a table; the first of its rows is the head."""
    for index, row in enumerate(rows):
        cells = [*row]
        yield f"| {' | '.join(cells)} |"
        if index == 0:
            yield f"| --- |{' ---: |' * (len(cells) - 1)}"


def chapter(section: Section, table: Table) -> Iterator[str]:
    """Yield the lines of a section."""
    first = next(iter(table.values()))
    columns = [*filter(first.__contains__, CONTENDERS), *(one for one in first if one not in CONTENDERS)]
    compared = [*ratios(section, first)]
    yield from ("", f"## {section.title}", "", *wrap(section.about, WIDTH), "")
    body = [
        [
            name,
            *(number(row[one]) if one in row else "-" for one in columns),
            *map(times, ratios(section, row).values()),
        ]
        for name, row in table.items()
    ]
    yield from lines([[section.unit, *columns, *compared], *body])
    if section.targets:
        yield ""
    for text, met, missed in judged(section, table):
        verdicts = [f"met: {', '.join(met)}"] if met else []
        verdicts += [f"**missed: {', '.join(missed)}**"] if missed else []
        yield f"- {text}: {'; '.join(verdicts)}"


def head(results: Mapping[str, Any], tables: Mapping[Section, Table]) -> Iterator[str]:
    """Yield the first lines: the contenders, the machine, and the outcome in short."""
    machine = results["machine_info"]
    rounds = len({entry["params"]["turn"] for entry in results["benchmarks"]})
    rustc = subprocess.check_output(["rustc", "--version"], text=True).strip()
    yield from (
        "# Benchmarks",
        "",
        *wrap(
            "`make bench` measures both cores of this package, *native* and *pure*, and *stock*, the manager "
            "that comes with Sanic, in turns. Every round has all of them. The figures are medians of "
            f"{rounds} rounds. *Limit* is the time that the machine itself takes for the work.",
            WIDTH,
        ),
        "",
        (
            f"- {machine['cpu'].get('brand_raw', machine['machine'])}, {machine['cpu']['count']} cores, "
            f"{machine['system']} {machine['release']}"
        ),
        (
            f"- {machine['python_implementation']} {machine['python_version']}, Sanic {version('sanic')}, "
            f"sanic-worker {version('sanic-worker')}, {rustc}"
        ),
        f"- {', '.join(machine['peers']) or 'No other servers are installed; they are not measured.'}",
        f"- {results['datetime'][:10]}",
        "",
    )
    verdicts = [
        (section, text, met, missed)
        for section, table in tables.items()
        for text, met, missed in judged(section, table)
    ]
    met = sum(len(rows) for *_, rows, _missed in verdicts)
    missed = sum(len(rows) for *_, rows in verdicts)
    yield f"{met} of {met + missed} targets are met." + (" Missed:" if missed else "")
    yield ""
    for section, text, _, rows in verdicts:
        if rows:
            yield f"- {section.title}: {text} ({', '.join(rows)})"
    worse = [line for section, table in tables.items() for line in slower(section, table)]
    if worse:
        yield from ("", "Not faster than stock:", "", *(f"- {line}" for line in worse))


def report(results: Mapping[str, Any]) -> str:
    """Return the whole report, as Markdown."""
    tables = {section: table_of(section, results["benchmarks"]) for section in (*SECTIONS, *STARTS)}
    tables = {section: table for section, table in tables.items() if table}
    chapters = (line for section, table in tables.items() for line in chapter(section, table))
    return "\n".join([*head(results, tables), *chapters, ""])


def main() -> None:
    """Print the report, and write it if a path is given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("report", type=Path, nargs="?")
    arguments = parser.parse_args()
    text = report(json.loads(arguments.results.read_text()))
    print(text)
    if arguments.report:
        arguments.report.write_text(text)


if __name__ == "__main__":
    main()
