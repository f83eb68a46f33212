"""A server with `preload=app` gets new code at a restart, and keeps the old code if the new one is broken."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from signal import SIGHUP, SIGKILL, SIGSTOP, SIGTERM, Signals
from threading import Thread
from time import monotonic
from typing import Any

import pytest
from integration.harness import Server
from integration.tools import free_port, wait_until

pytestmark = [pytest.mark.operations, pytest.mark.modes("framework")]

APP = """\
import asyncio
import os

import prices
from apps.steering import steerable
from sanic import Sanic, json

app = Sanic("shop")
steerable(app)


@app.get("/")
async def home(request):
    return json({"pid": os.getpid(), "parent": os.getppid(), "price": prices.PRICE})


@app.get("/slow")
async def slow(request):
    def read():
        with open("gate") as gate:
            return gate.read()

    return json(await asyncio.get_running_loop().run_in_executor(None, read))


@app.before_server_start
async def check(app):
    if prices.PRICE < 0:
        raise ValueError("a negative price")
"""
SCRIPT = """\
import multiprocessing
import os

import worker
from sanic import Sanic

multiprocessing.set_forkserver_preload(["prices"])
worker.install()

from app import app

if __name__ == "__main__":
    app.run(host="127.0.0.1", port=int(os.environ["PORT"]), workers=2, motd=False)
"""
HELD = "open('gate').read()\n"
RESTARTED = "Restart finished: 2 of 2 workers replaced"


class Shop:
    """A server whose workers sell at a price, which is a matter of code."""

    def __init__(self, root: Path, command: list[str] | None = None) -> None:
        self.root = root
        (root / "app.py").write_text(APP)
        os.mkfifo(root / "gate")
        self.edit("PRICE = 1")
        if command is None:
            self.server = Server.run("app:app", "--preload=app", cwd=root, start_method="spawn")
        else:
            env = {"START_METHOD": "spawn"}
            self.server = Server([sys.executable, *command], cwd=root, env=env, port=free_port())

    def __enter__(self) -> Shop:
        self.server.__enter__()
        self.server.wait_ready().settled(2)
        self.titled()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.__exit__(*error)

    def edit(self, code: str) -> None:
        """Save the code of the price. A file that is read by then stays as it was."""
        new = self.root / "prices.new"
        new.write_text(f"{code}\n")
        new.replace(self.root / "prices.py")

    def restart(self) -> int:
        """Request a restart; return the position in the output before it."""
        since = self.server.mark()
        self.server.signal(SIGHUP)
        self.server.wait_line("Restart of 2 processes requested", since=since)
        return since

    def workers(self) -> dict[int, dict[str, Any]]:
        """Return the answers of both workers, by pid."""
        found: dict[int, dict[str, Any]] = {}

        def look() -> dict[int, dict[str, Any]]:
            with suppress(OSError):
                answer = self.server.get("/")
                found[answer["pid"]] = answer
            pids = {entry["pid"] for entry in self.server.settled(2).values()}
            return {pid: found[pid] for pid in pids} if pids <= found.keys() else {}

        return wait_until(look, "an answer of each worker")

    def prices(self) -> set[int]:
        return {answer["price"] for answer in self.workers().values()}

    def titled(self) -> set[int]:
        """Wait until there is one preload process, which has a title after its imports; return its pid."""
        return wait_until(lambda: len(found := self.preloads()) == 1 and found, "one preload process")

    def forked(self) -> None:
        """Wait until all workers are children of one preload process; the first may have been spawned."""
        while {answer["parent"] for answer in self.workers().values()} != self.titled():
            self.server.wait_line(RESTARTED, since=self.restart())

    def preloads(self) -> set[int]:
        """Return the pids of all preload processes."""
        return {pid for pid, command in self.server.processes().items() if "preload process" in command}

    @contextmanager
    def importing(self) -> Iterator[int]:
        """Begin a restart whose import is held while the body runs; yield the pid of the preload process."""
        before = self.preloads()
        self.edit(f"{HELD}PRICE = 2")
        self.restart()
        gate = wait_until(self.open_gate, "an import at the gate")
        try:
            (pid,) = self.preloads() - before
            yield pid
        finally:
            os.close(gate)

    def open_gate(self) -> int:
        """Return a descriptor for which a reader of the gate waits until it is closed; 0 if there is none."""
        with suppress(OSError):
            return os.open(self.root / "gate", os.O_WRONLY | os.O_NONBLOCK)
        return 0

    def lines(self, pattern: str, since: int) -> list[str]:
        return [line.text for line in self.server.output.lines[since:] if re.search(pattern, line.text)]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with Shop(tmp_path_factory.mktemp("shop")) as shop:
        yield shop
        assert shop.server.stop() == 0


@pytest.fixture
def shop(running: Shop) -> Shop:
    """A server that sells at the price 1, and has one preload process."""
    if running.prices() != {1}:
        running.edit("PRICE = 1")
        running.server.wait_line(RESTARTED, since=running.restart())
    running.forked()
    return running


def test_all_workers_come_from_a_preload_process_with_the_new_code(shop: Shop) -> None:
    before = shop.preloads()
    shop.edit("PRICE = 2\nprint('imported', flush=True)")
    since = shop.restart()
    shop.server.wait_line(RESTARTED, since=since)
    assert shop.prices() == {2}
    (parent,) = {answer["parent"] for answer in shop.workers().values()}
    assert parent not in {shop.server.pid, *before}
    # Each worker that imports it prints that, too.
    assert len(shop.lines("^imported$", since)) == 1
    wait_until(lambda: shop.preloads() == {parent}, "the end of the old preload process")


def test_a_restart_of_one_worker_has_the_new_code(shop: Shop) -> None:
    shop.edit("PRICE = 2")
    since = shop.server.mark()
    shop.server.post("/m/restart", {"zero_downtime": True})
    shop.server.wait_line("Restart finished: 1 of 1 worker replaced", since=since)
    assert sorted(answer["price"] for answer in shop.workers().values()) == [1, 2]
    # The worker with the old code is a child of the old one.
    assert len(shop.preloads()) == 2


def test_code_that_cannot_be_imported_changes_nothing(shop: Shop) -> None:
    before = shop.workers()
    shop.edit("PRICE = = 2")
    since = shop.restart()
    shop.server.wait_line("Keeping the previous workers; rollout aborted, 2 workers not rest", since=since)
    # Another process logs it, perhaps on the other stream.
    shop.server.wait_line("PRICE = = 2", since=since)
    assert shop.workers() == before
    assert len(shop.lines("PRICE = = 2", since)) == len(shop.lines("Traceback", since)) == 1
    assert not shop.lines("Starting worker", since)
    shop.edit("PRICE = 3")
    shop.server.wait_line(RESTARTED, since=shop.restart())
    assert shop.prices() == {3}


def test_code_that_does_not_start_is_not_used_for_replacements(shop: Shop) -> None:
    before = shop.workers()
    shop.edit("PRICE = -1")
    since = shop.restart()
    shop.server.wait_line("Keeping the previous worker; rollout aborted, 1 worker not restarted", since=since)
    shop.server.wait_line("is used again: the new code does not start", since=since)
    assert shop.workers() == before
    os.kill(min(before), SIGKILL)
    wait_until(lambda: shop.workers().keys() != before.keys(), "another worker")
    assert shop.prices() == {1}
    assert len(shop.lines("ERROR: a negative price", since)) == 1


def test_a_worker_is_replaced_while_the_new_code_is_imported(shop: Shop) -> None:
    before = shop.workers()
    since = shop.server.mark()
    with shop.importing():
        os.kill(min(before), SIGKILL)
        wait_until(lambda: shop.workers().keys() != before.keys(), "another worker")
        assert shop.prices() == {1}
    # Not even the worker that was replaced meanwhile keeps the old code.
    shop.server.wait_line(RESTARTED, since=since)
    assert shop.prices() == {2}


def test_a_second_restart_imports_the_newest_code(shop: Shop) -> None:
    since = shop.server.mark()
    with shop.importing() as first:
        shop.edit("PRICE = 3")
        shop.restart()
        wait_until(lambda: first not in shop.preloads(), "the end of the first import")
        wait_until(lambda: shop.prices() == {3}, "the newest price")
    shop.server.wait_line(RESTARTED, since=since)
    assert len(shop.lines("Starting worker", since)) == 2


@pytest.mark.parametrize("signum", [SIGKILL, SIGSTOP])
def test_workers_are_spawned_if_the_import_is_killed_or_stopped(shop: Shop, signum: Signals) -> None:
    since = shop.server.mark()
    with shop.importing() as pid:
        shop.edit("PRICE = 3")
        os.kill(pid, signum)
        shop.server.wait_line(r"WARNING: The preload process .*Workers are spawned until", since=since)
        shop.server.wait_line(RESTARTED, since=since)
    assert shop.prices() == {3}
    (line,) = shop.lines("WARNING: The preload process", since)
    assert f"[{pid}]: it was {'killed by SIGKILL' if signum == SIGKILL else 'stopped by a signal'}" in line


def test_a_killed_preload_process_is_replaced(shop: Shop) -> None:
    before, since = shop.workers(), shop.server.mark()
    (pid,) = shop.preloads()
    os.kill(pid, SIGKILL)
    shop.server.wait_line(
        rf"The preload process \[{pid}\]: it was killed by SIGKILL\. Workers are", since=since
    )
    wait_until(lambda: len(shop.preloads() - {pid}) == 1, "another preload process")
    assert shop.workers().keys() == before.keys()
    # Only the preload process that was killed would have known how it ended.
    os.kill(min(before), SIGKILL)
    shop.server.wait_line(rf"\[{min(before)}\] .* unknown", since=since)
    wait_until(lambda: shop.workers().keys() != before.keys(), "another worker")


def test_a_stop_does_not_wait_for_an_import(tmp_path: Path) -> None:
    with Shop(tmp_path) as shop, shop.importing():
        began = monotonic()
        assert shop.server.stop() == 0
        assert monotonic() - began < 5


def test_a_preload_process_ends_with_its_last_child(tmp_path: Path) -> None:
    with Shop(tmp_path) as shop:
        shop.forked()
        (old,) = shop.preloads()
        request = Thread(target=shop.server.get, args=("/slow",), kwargs={"timeout": 60})
        request.start()
        gate = wait_until(shop.open_gate, "a request at the gate")
        shop.server.wait_line(RESTARTED, since=shop.restart())
        assert old in shop.preloads() and len(shop.preloads()) == 2
        os.close(gate)
        request.join()
        wait_until(lambda: old not in shop.preloads(), "the end of the old preload process")
        assert shop.server.stop() == 0


def test_a_stop_of_all_processes_knows_all_exit_codes(tmp_path: Path) -> None:
    """A service manager sends its signal to each process of the service."""
    with Shop(tmp_path) as shop:
        since = shop.server.mark()
        assert shop.server.stop(SIGTERM, to="all") == 0
        assert not shop.lines("WARNING|ERROR|unknown", since)


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Shop]:
    (tmp_path / "main.py").write_text(SCRIPT)
    with Shop(tmp_path, ["main.py"]) as shop:
        yield shop
        assert shop.server.stop() == 0


def test_a_module_of_the_framework_that_has_changed_is_imported_anew(script: Shop) -> None:
    (before,) = script.preloads()
    script.server.wait_line(RESTARTED, since=script.restart())
    assert script.preloads() == {before}
    script.edit("PRICE = 2")
    since = script.restart()
    script.server.wait_line(rf"\[{before}\]: \S+/prices\.py has changed since its import", since=since)
    script.server.wait_line(RESTARTED, since=since)
    assert script.prices() == {2}
    wait_until(lambda: len(script.preloads()) == 1 and before not in script.preloads(), "another one")
