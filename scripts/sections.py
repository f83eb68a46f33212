"""Define the tables of the report: their benches, rows, columns and targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

NATIVE, PURE, STOCK, LIMIT = CONTENDERS = ("native", "pure", "stock", "limit")
SIZES = {3_000: "3 kB", 30_000: "30 kB", 300_000: "300 kB", 1_000_000: "1 MB"}

Entry = Mapping[str, Any]
"""One measurement: a bench, in one round, of one contender."""
Cells = dict[tuple[str, str], float]
"""Its figures, by (row, column)."""
Table = dict[str, dict[str, float]]
"""Row to column to the median of the rounds."""


@dataclass(frozen=True)
class Target:
    """A figure to be reached in the rows whose names end with ``rows``."""

    text: str
    met: Callable[[Table, str], bool]
    rows: str = ""


@dataclass(frozen=True)
class Section:
    """A table: its bench, its rows and columns, and its targets."""

    bench: str
    title: str
    unit: str
    about: str
    cells: Callable[[Entry], Cells]
    targets: tuple[Target, ...] = ()
    more_is_better: bool = False
    of_rounds: Callable[[list[float]], float] = median
    ratios: tuple[tuple[str, str], ...] = ()

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The columns whose quotients are shown."""
        if self.ratios:
            return self.ratios
        if self.more_is_better:
            return (NATIVE, STOCK), (PURE, STOCK)
        return (STOCK, NATIVE), (STOCK, PURE), (NATIVE, LIMIT)


def at_most(column: str, most: float, rows: str = "") -> Target:
    """Return a target: the figure is at most this."""
    return Target(f"{column} ≤ {most:g}", lambda table, row: table[row][column] <= most, rows)


def at_least(column: str, least: float, rows: str = "") -> Target:
    """Return a target: the figure is at least this."""
    return Target(f"{column} ≥ {least:,.0f}", lambda table, row: table[row][column] >= least, rows)


def faster(column: str, times: float, than: str = STOCK, rows: str = "") -> Target:
    """Return a target: the time is shorter by this factor."""
    text = f"{than} ÷ {column} ≥ {times:g}"
    return Target(text, lambda table, row: table[row][than] / table[row][column] >= times, rows)


def within(column: str, times: float, of: str = LIMIT, rows: str = "") -> Target:
    """Return a target: the figure is at most this many times that of another column."""
    text = f"{column} ÷ {of} ≤ {times:g}"
    return Target(text, lambda table, row: table[row][column] / table[row][of] <= times, rows)


def as_with(column: str, other: str, rows: str) -> Target:
    """Return a target: the figure is at least nine tenths of that of another row."""
    text = f"{column} ≥ 0.9 of that of {other}"
    return Target(text, lambda table, row: table[row][column] >= 0.9 * table[other][column], rows)


def as_slow(column: str, times: float, other: str, rows: str) -> Target:
    """Return a target: the figure is at most this many times that of another row."""
    text = f"{column} ≤ {times:g} times that of {other}"
    return Target(text, lambda table, row: table[row][column] <= times * table[other][column], rows)


def sooner(column: str, seconds: float) -> Target:
    """Return a target: the time is shorter than stock's by this many seconds."""
    text = f"stock - {column} ≥ {seconds:g}"
    return Target(text, lambda table, row: table[row][STOCK] - table[row][column] >= seconds)


def contender(entry: Entry) -> str:
    """Return the contender that was measured."""
    return str(entry["params"]["contender"])


def duration(
    row: Callable[[Mapping[str, Any]], str], scale: float, per: str = ""
) -> Callable[[Entry], Cells]:
    """Return a reader of a median duration, in units of which ``scale`` are a second.

    ``per`` is the key of a count: the duration is divided by it.
    """

    def cells(entry: Entry) -> Cells:
        count = entry["extra_info"][per] if per else 1
        seconds: float = entry["stats"]["median"] / count
        return {(row(entry["params"]), contender(entry)): seconds * scale}

    return cells


def flood(entry: Entry) -> Cells:
    """Return messages a second, by the number of processes."""
    found = entry["extra_info"]
    row = f"{entry['params']['processes']} processes"
    return {(row, contender(entry)): found["messages"] / found["seconds"]}


def alike(entry: Entry) -> Cells:
    """Return messages a second, and messages a call."""
    found, name = entry["extra_info"], contender(entry)
    return {
        ("messages a second", name): found["messages"] / found["seconds"],
        ("messages a call of restart()", name): found["messages"] / found["calls"],
    }


def samples(entry: Entry) -> Cells:
    """Return median and p99 of single events; one that never came was infinitely late."""
    found = [math.inf if value is None else value for value in entry["extra_info"]["samples"]]
    name = contender(entry)
    return {("median", name): median(found), ("p99", name): p99(found)}


def flooded(entry: Entry) -> Cells:
    """Return the same, by the kind of event."""
    kind = entry["params"]["kind"]
    return {(f"{kind}, {row}", column): value for (row, column), value in samples(entry).items()}


def rows(entry: Entry) -> Cells:
    """Return figures with names of their own."""
    params, name = entry["params"], contender(entry)
    about = {
        "read": "read a key",
        "write": "write",
        "all": f"all of {params.get('entries')} entries",
        "all-at-once": f"all of {params.get('entries')} entries, 4 processes at once",
        "lost": "lost",
    }[params["what"]]
    return {
        (f"{about}{', ' if row and params['what'] == 'read' else ' ' if row else ''}{row}", name): value
        for row, value in entry["extra_info"]["rows"].items()
    }


def at_rest(entry: Entry) -> Cells:
    """Return the resources used by an idle manager."""
    found, name = entry["extra_info"], contender(entry)
    about = f"{entry['params']['processes']} processes"
    units = {"switches": "switches a second", "cpu": "% of a processor", "memory": "MB"}
    return {(f"{about}, {unit}", name): found[key] for key, unit in units.items()}


def reloads(entry: Entry) -> Cells:
    """Return the delay from an edit to its message, and the resources used without edits."""
    found, name = entry["extra_info"], contender(entry)
    about = f"{entry['params'].get('files', 10_000):,} files"
    return {
        (f"{about}, ms to the message", name): median(found["samples"]),
        (f"{about}, % of a processor", name): found["cpu"],
        (f"{about}, MB", name): found["memory"],
    }


def gaps(entry: Entry) -> Cells:
    """Return the longest gaps, ms."""
    row, found = entry["params"]["doing"], entry["extra_info"]
    return {
        (row, "longest gap"): max(found["gaps"], default=0.0) * 1e3,
        (row, "longest kept"): max(found["kept"], default=0.0) * 1e3,
        (row, "p99 kept"): p99(found["kept"]) * 1e3,
    }


def p99(values: list[float]) -> float:
    """Return the value that one in a hundred exceeds; the greatest of fewer."""
    if len(values) < 100 or math.inf in values:
        return sorted(values)[math.ceil(len(values) * 0.99) - 1] if values else 0.0
    return quantiles(values, n=100, method="inclusive")[-1]


STATE = (
    Section(
        "bench_state",
        "The state of the processes",
        "µs; lost: %",
        "`app.m.state` and `app.m.workers`, with entries of 8 keys. All entries: one of them has changed "
        "since the last read. Lost: two processes write to one entry, each a key of its own, and read it "
        "back. Stock does a twentieth of these writes.",
        rows,
        (
            at_most(NATIVE, 2, "unchanged"),
            at_most(NATIVE, 2, "changed in between"),
            at_most(NATIVE, 6, "a str"),
            at_most(NATIVE, 6, "an int"),
            at_most(NATIVE, 6, "a bool"),
            at_most(NATIVE, 6, "a datetime"),
            at_most(NATIVE, 25, "of 8 entries"),
            at_most(NATIVE, 150, "of 64 entries"),
            as_slow(NATIVE, 2.5, "all of 64 entries", "all of 64 entries, 4 processes at once"),
            at_most(NATIVE, 0, "lost"),
        ),
    ),
    Section(
        "bench_beat",
        "A heartbeat",
        "µs",
        "`SharedState.beat()`, which records the time and a request served.",
        lambda entry: {("beat", contender(entry)): entry["extra_info"][""]},
        (at_most(NATIVE, 1),),
    ),
    Section(
        "bench_metrics",
        "The metrics for one request",
        "ms",
        "The snapshot of the server, and its text in each of the two formats. The workers sleep.",
        lambda entry: {
            (f"{entry['params']['workers']} workers, {entry['params']['kind']}", contender(entry)): (
                entry["extra_info"]["milliseconds"]
            )
        },
        (at_most(NATIVE, 5),),
    ),
    Section(
        "bench_inspector",
        "The inspector",
        "",
        "`GET /` with 8 workers, over one connection, and the wakeups when no client is connected. Switches "
        "are voluntary ones.",
        lambda entry: {
            ("an answer, ms", contender(entry)): entry["extra_info"]["milliseconds"],
            ("idle, switches a second", contender(entry)): entry["extra_info"]["switches"],
        },
        (faster(NATIVE, 4, rows="an answer"), at_most(NATIVE, 0.05, "switches a second")),
    ),
    Section(
        "bench_idle",
        "An idle manager",
        "the main process and its state's process",
        "The manager has this many idle processes. Switches are voluntary ones: each is a wakeup. Memory is "
        "resident memory, without CPython's resource tracker.",
        at_rest,
        (
            at_most(NATIVE, 0.05, "switches a second"),
            at_most(NATIVE, 0.01, "% of a processor"),
            at_most(NATIVE, 40, "64 processes, MB"),
        ),
    ),
    Section(
        "bench_start",
        "From the command to the first answer",
        "s",
        "A script with `install()`, whose application has one worker.",
        lambda entry: {("one worker", contender(entry)): entry["extra_info"]["seconds"]},
        (sooner(NATIVE, 0.15),),
    ),
)
RELOADS = (
    Section(
        "bench_edits",
        "From an edit to the message of the reloader",
        "the reloader's process",
        "The reloader of an application watches a tree with 20 files a directory. One file is edited again "
        "and again, then none. The limit is `watchfiles` alone, recursive: it looks every 50 ms, knows no "
        "application, and reports only that something has happened. In 3 of the rounds.",
        reloads,
        (
            at_most(NATIVE, 85, "ms to the message"),
            at_most(NATIVE, 0.2, "% of a processor"),
            at_most(NATIVE, 60, "100,000 files, MB"),
        ),
    ),
    Section(
        "bench_scanning",
        "The same without file events",
        "the reloader's process",
        "All files are scanned every second (`WATCHFILES_FORCE_POLLING`). In 3 of the rounds.",
        reloads,
        (at_most(NATIVE, 3, "% of a processor"),),
    ),
    Section(
        "bench_saved",
        "From a save to the new code",
        "ms",
        "A trivial application has one worker. The time runs from just before its file is written to the "
        "first answer of the new code. In 3 of the rounds.",
        samples,
        (faster(NATIVE, 3),),
    ),
)
SECTIONS = (
    Section(
        "bench_queued",
        "Queued messages",
        "µs a message",
        "150 messages are in the control channel. Both cores: `Monitor.wait`. Stock: for each message a "
        "poll, a `recv` and the splitting. The limit reads and frames the same bytes in Rust, and makes one "
        "`bytes` a message.",
        duration(lambda params: f"{params['size']} B", 1e6, "messages"),
        (faster(NATIVE, 10), within(NATIVE, 2.5), faster(PURE, 2)),
    ),
    Section(
        "bench_streamed",
        "Messages sent meanwhile",
        "µs a message",
        "Another process sends more than the control channel holds. The limit is the same as above. It is no "
        "lower bound: a reader that is quicker than the writer is woken more often, and reads less each "
        "time.",
        duration(lambda params: SIZES[params["size"]], 1e6, "messages"),
        (faster(NATIVE, 1), faster(PURE, 1)),
    ),
    Section(
        "bench_flood",
        "A flood in the running monitor",
        "messages a second",
        "The real `monitor()` has this many idle processes in its table. Another process writes restart "
        "requests, each for another name, in blocks of 64 KiB. The names that reach `restart()` are counted.",
        flood,
        (at_least(NATIVE, 150_000), as_with(NATIVE, "2 processes", "32 processes")),
        more_is_better=True,
    ),
    Section(
        "bench_alike",
        "A flood of the same request",
        "messages",
        "As above, with 2 processes and always the same name.",
        alike,
        more_is_better=True,
    ),
    Section(
        "bench_one_by_one",
        "From a message to its handler",
        "ms",
        "The time from just before `Connection.send` in another process to the first line of `restart()`, in "
        "an idle manager, one message at a time. The limit only reads, in Python: the rest is the sending, "
        "and the time in which the machine wakes a process.",
        samples,
        (at_most(NATIVE, 0.15, "median"),),
    ),
    Section(
        "bench_exits",
        "From an exit to its handler",
        "ms",
        "A managed process is killed with SIGKILL. The time runs from the moment at which another process "
        "sees its pidfd become readable, which may be later than in the manager. It ends at the first line "
        "of the manager that handles this exit. Stock looks around every tenth of a second. A round has few "
        "exits, so p99 is the latest.",
        samples,
        (at_most(NATIVE, 0.5, "median"), at_most(NATIVE, 3, "p99")),
    ),
    Section(
        "bench_in_a_flood",
        "From an exit, and from a signal, to its handler in a flood",
        "ms",
        "As above, or from just before a SIGTERM is sent. Meanwhile another process writes restart requests, "
        "each for another name, in blocks of 64 KiB, as many as the manager takes.",
        flooded,
        (at_most(NATIVE, 10),),
    ),
    Section(
        "bench_first_sweep",
        "A first sweep",
        "ms",
        "A tree with 20 files a directory is in the kernel's cache, and unknown to the scanner. The limit is "
        "`find`, which prints time, size and inode of each file; its start is included.",
        duration(lambda params: f"{params['files']:,} files", 1e3),
        (within(NATIVE, 1.3),),
    ),
    Section(
        "bench_later_sweep",
        "A later sweep",
        "ms",
        "The same tree is scanned again, unchanged. The limit calls `stat` for each full path, in Rust, on "
        "as many threads as the native core uses.",
        duration(lambda params: f"{params['files']:,} files", 1e3),
        (faster(NATIVE, 10), within(NATIVE, 1.3)),
    ),
    Section(
        "bench_first_modules",
        "The files of 1,500 modules, for the first time",
        "ms",
        "The modules are 10 a package, and those that the benches themselves have imported. Both cores: "
        "`Scanner.module_files`. Stock: `Reloader.python_files`. The limit calls `stat` for each file.",
        duration(lambda params: "all modules", 1e3),
        (faster(NATIVE, 1.5),),
    ),
    Section(
        "bench_later_modules",
        "The files of 1,500 modules, again",
        "ms",
        "While a directory has not changed, the native core looks at none of its files.",
        duration(lambda params: "all modules", 1e3),
        (faster(NATIVE, 5),),
    ),
    Section(
        "bench_interpreter",
        "How long another thread waits for the interpreter",
        "ms",
        "A second thread reads the clock as often as it can. Meanwhile the main thread is in the native core "
        "and sweeps the largest of the trees. *Gap*: the time from one reading to the next. *Kept*: the part "
        "of a gap in which neither thread was queued for a processor, so that the interpreter itself was "
        "withheld. Both are the worst of all rounds. *Nothing* is the main thread asleep. The pure core and "
        "stock are not measured: they release the interpreter at each system call. Beside such a thread, "
        "they get it back after 5 ms each time.",
        gaps,
        (at_most("longest kept", 1),),
        of_rounds=max,
    ),
    *RELOADS,
    *STATE,
)
