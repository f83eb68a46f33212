"""An application that writes files beside its code: its own output does not reload it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from threading import Event, Thread

import pytest

from .harness import Server
from .tools import TIMEOUT

pytestmark = [pytest.mark.ours, pytest.mark.operations]

CODE = """\
import logging
import os
import sqlite3
from logging.handlers import RotatingFileHandler
from pathlib import Path

from sanic import Sanic, json

HERE = Path(__file__).parent
WAY = os.environ["WAY"]
app = Sanic("noisy")
app.reload_process_start(lambda *_: print("watching", flush=True))
audit = logging.getLogger("audit")
audit.setLevel("INFO")
audit.propagate = False


def line():
    with open(HERE / "audit.txt", "a") as file:
        file.write("a line of some length\\n")


def stored():
    with sqlite3.connect(HERE / "data.store", isolation_level=None) as base:
        base.execute("create table if not exists t (x)")
        base.execute("insert into t values (1)")
    base.close()


if WAY.startswith("rotating") and os.environ.get("SANIC_WORKER_NAME", "").startswith("Sanic-Server"):
    later = WAY.endswith("later")
    audit.addHandler(RotatingFileHandler(HERE / "audit.txt", maxBytes=200, backupCount=3, delay=later))
writes = {"a line": line, "a database": stored}.get(WAY, lambda: audit.info("a line of some length"))
if WAY.endswith("at the start"):
    app.before_server_start(lambda *_: (HERE / "started.txt").write_text(str(os.getpid())) and None)
elif WAY.endswith("with its pid"):
    app.before_server_start(lambda *_: (HERE / f"started-{os.getpid()}.txt").write_text("x") and None)


@app.get("/")
async def home(request):
    writes()
    return json({"pid": os.getpid()})
"""


class Noisy:
    """An application, its server and its directory."""

    def __init__(self, root: Path, way: str, workers: int, *options: str) -> None:
        self.root = root / "noisy"
        self.root.mkdir()
        (self.root / "__init__.py").touch()
        (self.root / "app.py").write_text(CODE)
        self._fences = count()
        self.server = Server.run(
            "noisy.app:app", "--reload", *options, workers=workers, cwd=root, env={"WAY": way}
        )

    def changes(self, since: int) -> list[str]:
        """Return the reports since then, after a change made now has been reported."""
        fence = f"fence{next(self._fences)}.html"
        (self.root / fence).write_text("x")
        try:
            self.server.wait_line(f"files? changed .*{fence}", since=since, timeout=TIMEOUT / 3)
        except AssertionError:
            # A reloader that has just started may know the file already, and no change of it.
            (self.root / fence).write_text("more")
            self.server.wait_line(f"files? changed .*{fence}", since=since)
        lines = [line.text for line in self.server.output.lines[since:]]
        found = [match[1] for text in lines if (match := re.search(r"changed \((.*)\)\. Restarting", text))]
        return [text for text in found if "fence" not in text]

    def get(self) -> None:
        self.server.get("/")

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Send requests one after the other while the body runs."""
        over = Event()

        def ask() -> None:
            while not over.is_set():
                self.get()

        thread = Thread(target=ask)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


@pytest.fixture
def noisy(tmp_path: Path) -> Iterator[Callable[..., Noisy]]:
    started: list[Noisy] = []

    def start(way: str, workers: int = 1, *options: str) -> Noisy:
        started.append(Noisy(tmp_path, way, workers, *options))
        server = started[-1].server
        server.wait_ready("/")
        server.wait_line("^watching$")
        return started[-1]

    yield start
    for one in started:
        with one.server as server:
            assert server.stop() == 0


@pytest.mark.parametrize("way", ["rotating", "rotating later"])
def test_an_open_log_does_not_reload(noisy: Callable[..., Noisy], way: str) -> None:
    shop = noisy(way)
    since = shop.server.mark()
    for _ in range(40):
        shop.get()
    assert shop.changes(since) == []
    assert (shop.root / "audit.txt.3").exists()
    # In the next worker, too, and while one replaces the other.
    for _ in range(40):
        shop.get()
    assert shop.changes(since) == []


@pytest.mark.parametrize(("way", "name"), [("a line", "audit.txt"), ("a database", "data.store")])
def test_a_file_written_per_request_is_no_longer_watched(
    noisy: Callable[..., Noisy], way: str, name: str
) -> None:
    """The file is never seen open, and changes in every rollout."""
    shop = noisy(way)
    with shop.busy():
        shop.server.wait_line(
            rf"not watching .*/{name}\. The server|"
            rf"rollouts only this changed: noisy/{name}\. .* not watched any more.*IGNORE='/{name}'"
        )
        since = shop.server.mark()
        assert shop.changes(since) == []


@pytest.mark.parametrize("way", ["a file at the start", "a file with its pid"])
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.soak)])
def test_a_file_written_at_each_start_is_no_longer_watched(
    noisy: Callable[..., Noisy], way: str, workers: int
) -> None:
    shop = noisy(way, workers)
    since = shop.server.mark()
    shop.changes(since)
    line = shop.server.wait_line("in each of the last 3 rollouts only this changed", since=since)
    assert re.search(r" noisy/started(-\*)?\.txt\. The servers write it", line.text)
    since = shop.server.mark()
    shop.changes(since)
    assert shop.changes(shop.server.mark()) == []
