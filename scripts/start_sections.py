"""Define the tables of the report on the starts of servers (``benches/starts.py``)."""

from __future__ import annotations

from collections.abc import Callable

from sections import STOCK, Cells, Entry, Section, at_most, contender, within

OFF, FRAMEWORK, APP = "off", "framework", "app"
ONE_IMPORT = "one import"
BENCH = "bench_starts"
BESIDE_STOCK = ((FRAMEWORK, STOCK), (APP, STOCK))
BESIDE_OFF = ((FRAMEWORK, OFF), (APP, OFF))


def only(*titles: str) -> Callable[[Entry], Cells]:
    """Return a reader of the figures with these titles, which may end with the unit of the table."""

    def cells(entry: Entry) -> Cells:
        figures, name = entry["extra_info"]["figures"], contender(entry)
        return {
            (title.removesuffix(", ms").removesuffix(", MB").removesuffix(", CPU"), name): figures[title]
            for title in titles
            if title in figures
        }

    return cells


STARTS = (
    Section(
        BENCH,
        "From the command until all workers serve",
        "s",
        "`sanic-worker`, without preloading (`off`) and at both depths of it, and Sanic's command "
        "(*stock*) start a trivial application; `framework` is the default. The last row is a script that "
        "calls `install()` first. A worker of Sanic serves once its `after_server_start` listener has run. "
        "The other servers have an ASGI handler without a framework, so their processes import far less; a "
        "worker of theirs serves once it is asked to start the application (`lifespan.startup`). gunicorn "
        "runs `uvicorn` workers; uvicorn with one worker has no main process.",
        only("1 worker", "8 workers", "32 workers", "a script, 8 workers"),
        (
            within(FRAMEWORK, 0.75, STOCK, "1 worker"),
            within(FRAMEWORK, 0.5, STOCK, "8 workers"),
            within(FRAMEWORK, 0.35, STOCK, "32 workers"),
        ),
        ratios=BESIDE_STOCK,
    ),
    Section(
        BENCH,
        "The CPU time of these starts",
        "s",
        "The time that all processes of the server have run when all workers serve. It depends little on "
        "other load of the machine.",
        only("1 worker, CPU", "8 workers, CPU", "32 workers, CPU"),
        ratios=BESIDE_STOCK,
    ),
    Section(
        BENCH,
        "From the command until all workers serve, with an application that takes long to import",
        "s",
        "The import takes 1.5 s of CPU time. *One import* is an interpreter that only imports the same "
        "application.",
        only("1.5 s of imports, 8 workers"),
        (within(APP, 1.2, ONE_IMPORT),),
        ratios=(*BESIDE_STOCK, (APP, ONE_IMPORT)),
    ),
    Section(
        BENCH,
        "The first request",
        "ms",
        "To a server with one worker, 0.3 s after the worker has begun to serve, then to 7 replacements "
        "after a SIGKILL. The time runs from just before the connection until the answer is complete.",
        only("first request, ms"),
        (within(FRAMEWORK, 1, OFF), within(APP, 1, OFF)),
        ratios=BESIDE_OFF,
    ),
    Section(
        BENCH,
        "From the end of a worker until its replacement serves",
        "ms",
        "Each of 3 workers is killed once with SIGKILL, with `min_uptime` 0 and so without a backoff. "
        "Stock replaces none. Granian, which waits 3.5 s before a replacement, is told to wait 0.01 s.",
        only("a killed worker, ms"),
        (at_most(FRAMEWORK, 120), at_most(APP, 60)),
        ratios=BESIDE_OFF,
    ),
    Section(
        BENCH,
        "From SIGHUP until all workers are replaced",
        "s",
        "8 new workers serve, and the previous ones have ended. sanic-worker replaces one worker at a "
        "time, beginning with a canary, and first imports the code again with `app`. gunicorn starts all "
        "at once, and with `--preload` it keeps the old code. Granian is told to wait 0.01 s in place of "
        "3.5 s. Sanic's manager ends at this signal.",
        only("8 workers replaced"),
        (within(FRAMEWORK, 0.4, OFF), within(APP, 0.4, OFF)),
        ratios=BESIDE_OFF,
    ),
    Section(
        BENCH,
        "The memory of a server",
        "MB",
        "The PSS of all processes of a server with 8 workers, after 400 requests. The large application "
        "imports 300 modules of classes and functions, which take 60 MB in each process.",
        only("trivial application, MB", "large application, MB"),
        (within(FRAMEWORK, 0.7, OFF, "large application"), within(APP, 0.5, OFF, "large application")),
        ratios=(*BESIDE_STOCK, *BESIDE_OFF),
    ),
)
