"""Children of a preload process with the application: their hooks, random numbers, files and output."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.preloaded import load, run

import worker
from worker._spawn.preload.preloads import preloads
from worker._spawn.preload.process import PreloadError

pytestmark = pytest.mark.slow

HOOKS = """
import os
import socket

import worker

seen = []
client = socket.socket()
os.register_at_fork(after_in_child=lambda: seen.append("at fork"))

@worker.before_fork
def close():
    client.close()
    seen.append("before")

@worker.after_fork
def connect():
    seen.append(os.getpid())

def show():
    return [one if one != os.getpid() else "after" for one in seen]
"""


def test_hooks_mend_what_forks_must_not_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(tmp_path, monkeypatch, front=HOOKS).update(30)
    assert [run(), run()] == [(True, ["before", "at fork", "after"], 0)] * 2
    preloads.reset()
    # A spawned process has nothing to mend.
    assert run() == (False, [], 0)


FAILING = """
import worker

@worker.before_fork
def close():
    raise KeyError("pool")
"""


def test_an_application_whose_hook_fails_before_the_forks_is_unfit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    process = load(tmp_path, monkeypatch, front=FAILING)
    with pytest.raises(PreloadError):
        process.update(30)
    text = "front.close failed before the forks: KeyError: 'pool'"
    assert process.report["unsafe"] == [{"text": text, "module": "front", "line": 4}]
    assert text in capfd.readouterr().err


def test_a_child_whose_hook_fails_after_the_fork_exits_with_its_error_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    load(tmp_path, monkeypatch, front=FAILING.replace("before", "after")).update(30)
    assert run() == (True, None, 1)
    assert "front.close failed after the fork: KeyError: 'pool'" in capfd.readouterr().err


@pytest.mark.parametrize("decorator", [worker.before_fork, worker.after_fork])
def test_an_asynchronous_hook_is_refused(decorator: Callable[..., Any]) -> None:
    async def dispose() -> None: ...

    with pytest.raises(TypeError, match=r"dispose is asynchronous\. .* without an event loop: give a plain"):
        decorator(dispose)


SIGNALS = """
import asyncio
import faulthandler
import signal
import sys

async def take_wakeups():
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGALRM, print)
    loop.remove_signal_handler(signal.SIGALRM)

asyncio.run(take_wakeups())
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
signal.signal(signal.SIGTERM, sys.exit)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM, signal.SIGCHLD])
faulthandler.register(signal.SIGUSR2)

def show():
    signal.raise_signal(signal.SIGUSR2)
    handlers = [signal.getsignal(one) for one in (signal.SIGCHLD, signal.SIGTERM)]
    blocked = {signal.SIGALRM, signal.SIGCHLD} & signal.pthread_sigmask(signal.SIG_BLOCK, ())
    return [getattr(one, "name", repr(one)) for one in (*handlers, *sorted(blocked))]
"""


def test_signals_that_the_application_handles_are_those_of_a_spawned_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    process = load(tmp_path, monkeypatch, front=SIGNALS)
    assert process.update(30)
    # It goes on, and reports how its children exit.
    os.kill(process.pid, signal.SIGTERM)
    _, handled, code = run()
    assert (True, handled, code) == run() == (True, handled, 0)
    assert capfd.readouterr().err.count("most recent call first") == 2
    preloads.reset()
    assert run() == (False, handled, 0)


CONDITIONS = """
import multiprocessing
import os
import resource
import sys

me, parent = multiprocessing.current_process(), multiprocessing.parent_process()
try:
    multiprocessing.Process(target=print).start()
except AssertionError as error:
    refused = str(error)
os.makedirs("elsewhere", exist_ok=True)
os.chdir("elsewhere")
sys.path.append("plugins")
sys.argv.append("--plugins")
os.umask(0o026)
resource.setrlimit(resource.RLIMIT_NOFILE, (500, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

def show():
    present = [os.getcwd(), sys.path, sys.argv, os.umask(0), resource.getrlimit(resource.RLIMIT_NOFILE)]
    return [me.daemon, parent.pid, parent.is_alive(), refused, *present]
"""


def test_the_import_finds_and_changes_the_conditions_of_a_spawned_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load(tmp_path, monkeypatch, front=CONDITIONS).update(30)
    is_forked, forked, _ = run()
    preloads.reset()
    assert (is_forked, run()) == (True, (False, forked, 0))
    assert forked[:3] == [True, os.getpid(), True]
    assert forked[4] == str(tmp_path / "elsewhere")


def test_a_later_change_in_the_main_process_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(tmp_path, monkeypatch, front=CONDITIONS).update(30)
    monkeypatch.chdir("/")
    monkeypatch.setattr(sys, "argv", ["changed"])
    is_forked, found, _ = run()
    assert (is_forked, found[4], found[6]) == (True, "/", ["changed"])
    assert "plugins" in found[5]


STATE = """
import random
import ssl
import uuid
from pathlib import Path
from random import seed

{seeding}
uuid.uuid1()
ssl.RAND_bytes(1)
print("imported", end="")
Path("text").write_text("0123456789")
text = open("text")
text.read(1)
text.buffer.raw.seek(2)
log = open("log", "a", buffering=1)

def show():
    log.write("line\\n")
    numbers = [random.random(), random.random()]
    return numbers, text.buffer.raw.read(4), [uuid.uuid1().clock_seq for _ in range(3)], ssl.RAND_bytes(16)
"""


def test_unseeded_random_numbers_differ_between_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    load(tmp_path, monkeypatch, front=STATE.format(seeding="seed(42); seed()")).update(30)
    (_, one, _), (_, other, _), (_, third, _) = run(), run(), run()
    assert one[0] != other[0]
    assert one[3] != other[3]
    # Each child has the file at the position that it had at the fork.
    assert one[1] == other[1] == b"2345"
    # With the same clock sequence, two children would make the same UUIDs in the same moment. It has 14 bits.
    assert not one[2] == other[2] == third[2]
    assert (tmp_path / "log").read_text() == "line\n" * 3
    assert capfd.readouterr().out == "imported"


def test_seeded_random_numbers_are_those_of_a_spawned_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(tmp_path, monkeypatch, front=STATE.format(seeding="seed(42); random.random()")).update(30)
    forked = [run(), run()]
    assert [is_forked for is_forked, *_ in forked] == [True, True]
    preloads.reset()
    spawned = run()
    assert not spawned[0]
    assert [result[0] for _, result, _ in (*forked, spawned)] == [spawned[1][0]] * 3


THREAD = """
import threading

end = threading.Event()

def begin():
    threading.Thread(target=end.wait, daemon=True).start()

def show():
    return threading.active_count()
"""


def test_a_preload_process_with_a_thread_forks_no_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # It is started by a function that runs in the preload process alone, after the checks.
    begins = "import os\nos.register_at_fork(after_in_parent=begin)\n"
    load(tmp_path, monkeypatch, front=THREAD + begins).update(30)
    assert run() == (True, 1, 0)
    failures: list[str] = []
    monkeypatch.setattr(preloads, "on_failure", lambda *args: failures.append(str(args[-1])))
    assert run() == (False, 1, 0)
    assert failures
    assert "it runs other threads" in failures[0]
