"""A preload process finds what the import of the application has left and forks must not share."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.preloaded import load

from worker._spawn.preload.process import PreloadError, UnsafeError

pytestmark = pytest.mark.slow

LIBRARY = """
import socket
import threading

async def connect():
    return socket.socket()

def begin():
    threading.Thread(target=threading.Event().wait, name="library", daemon=True).start()
"""

UNSAFE = """\
import asyncio
import mmap
import signal
import socket
import sqlite3
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

import library
from shop import stock

with ThreadPoolExecutor() as pool:
    pool.submit(print)
threading.Thread(target=threading.Event().wait, name="poller", daemon=True).start()
executor = ThreadPoolExecutor(thread_name_prefix="pool"); executor.submit(print)
loop = asyncio.new_event_loop()
pair = stock.pair()
database = sqlite3.connect("shop.db")
database.execute("CREATE TABLE things (name)")
page = mmap.mmap(-1, 4096)
library.begin()
ended = subprocess.run(["true"])
process = subprocess.Popen(["sleep", "1000"], start_new_session=True)
connection = asyncio.run(library.connect())
signal.setitimer(signal.ITIMER_VIRTUAL, 1000)
"""

STOCK = """\
import socket

def pair():
    return socket.socketpair()

listener = socket.create_server(("127.0.0.1", 0))
output = open("output", "w")
"""


def unsafe(folder: Path, monkeypatch: pytest.MonkeyPatch, **modules: str) -> list[dict[str, Any]]:
    """Return the findings of a preload process that has imported the module ``front``."""
    process = load(folder, monkeypatch, **modules)
    with suppress(UnsafeError):
        assert process.update(30)
    found: list[dict[str, Any]] = process.report.get("unsafe", [])
    return found


def test_what_forks_must_not_share_is_found_with_module_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = {"front": UNSAFE, "shop__stock": STOCK, "site-packages__library": LIBRARY}
    findings = unsafe(tmp_path, monkeypatch, **modules)
    found = {
        (one["module"], one["line"]): one["text"].removeprefix("the import has left ") for one in findings
    }
    assert found == {
        ("shop.stock", 6): "a socket",
        ("shop.stock", 7): f"the open file {tmp_path / 'output'}",
        ("front", 15): "the thread 'poller'",
        ("front", 16): "the thread 'pool_0'",
        ("front", 17): "an event loop, a socket",
        ("front", 18): "a socket",
        ("front", 19): f"the open file {tmp_path / 'shop.db'}",
        ("front", 0): "memory that all processes share (/dev/zero (deleted))",
        ("front", 22): "the thread 'library'",
        ("front", 24): "the process 'sleep'",
        ("front", 25): "a socket",
        ("front", 26): "the timer ITIMER_VIRTUAL",
    }


SAFE = """
import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

from sanic import Sanic

app = Sanic("front")
pool = ThreadPoolExecutor()

async def pool_is_idle():
    pass

null = open("/dev/null", "w")
read = open(__file__)
log = open("log", "a")
thread = threading.Thread(target=print)
thread.start()
thread.join()
asyncio.run(pool_is_idle())
"""


def test_an_application_that_leaves_nothing_is_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert unsafe(tmp_path, monkeypatch, front=SAFE) == []


BUSY = """
import socket

def compute(number):
    return number

numbers = [compute(number) for number in range(200_000)]
client = socket.socket()
"""


def test_a_long_computation_at_the_import_is_not_observed_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {"text": "the import has left a socket", "module": "front", "line": 0}
    assert unsafe(tmp_path, monkeypatch, front=BUSY) == [expected]


SOCKETS = "import socket\n" + "".join(f"client_{number} = socket.socket()\n" for number in range(900))


@pytest.mark.parametrize(
    ("text", "start"),
    [
        (
            "raise ValueError('\N{SNOWMAN}' * 300_000)",
            "the application cannot be imported: ValueError: \N{SNOWMAN}",
        ),
        ("raise KeyboardInterrupt", "the application cannot be imported: KeyboardInterrupt$"),
        (SOCKETS, r"the import has left a socket \(module front, line 2\), and 19 more$"),
    ],
    ids=["long text", "no text", "many findings"],
)
def test_any_reason_fits_into_an_answer(
    text: str, start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PreloadError, match=start):
        load(tmp_path, monkeypatch, front=text).update(30)
