"""A child's code, and the processes it starts, have the signals that the main process was started with."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import pytest
from support import targets
from support.running import command, environment

from worker._spawn import program
from worker._spawn.processes import ManagedProcess, factory
from worker.settings import resolve

pytestmark = pytest.mark.slow

# A child that is not forked imports the script again; "warm" is forked from the preload process.
PROGRAM = """
    import os, signal, subprocess, sys, time
    from multiprocessing import get_context
    from worker._spawn import processes
    from worker._spawn.preload.preloads import preloads
    from worker.settings import resolve

    def started() -> str:
        "What a program finds that is started here."
        status = subprocess.run(["cat", "/proc/self/status"], stdout=subprocess.PIPE, text=True).stdout
        masks = dict(line.split() for line in status.splitlines() if line.startswith(("SigBlk", "SigIgn")))
        # 32 and 33 belong to glibc, whose posix_spawn ignores them.
        return " ".join(f"{name} {int(mask, 16) & ~(3 << 31):x}" for name, mask in masks.items())

    def tell(where: str) -> None:
        print(where, started(), flush=True)

    def target() -> None:
        tell("target")
        print("session", os.getsid(0) == os.getpid(), flush=True)

    if __name__ == "__mp_main__":
        tell("import")
        print("session", os.getsid(0) == os.getpid(), flush=True)

    if __name__ == "__main__":
        tell("main")
        for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGTTIN, signal.SIGTTOU):
            if signal.getsignal(signum) is not signal.SIG_IGN:
                signal.signal(signum, lambda *_: None)
        method = sys.argv[1]
        context = get_context("spawn" if method == "warm" else method)
        if method == "warm":
            preloads.start()
            assert preloads.ready(30)
        make = processes.factory(context, resolve({"graceful_timeout": 5}), is_server=True)
        process = make(name="Sanic-Server-0-0", target=target, kwargs={}, daemon=True)
        process.start()
        process.join()
        tell("main")
        preloads.reset()
    """

MIXED = ([signal.SIGUSR1], [signal.SIGHUP, signal.SIGUSR2])
NONE: tuple[list[int], list[int]] = ([], [])


@pytest.mark.parametrize(
    ("method", "blocked", "ignored"),
    [("spawn", *NONE), *((method, *MIXED) for method in ("spawn", "fork", "forkserver", "warm"))],
)
def test_children_have_the_initial_mask_and_dispositions(
    method: str, blocked: list[int], ignored: list[int], tmp_path: Path
) -> None:
    def begin() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for signum in ignored:
            signal.signal(signum, signal.SIG_IGN)

    done = subprocess.run(
        command(PROGRAM, method, cwd=tmp_path),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        preexec_fn=begin,
        check=True,
    )
    told = [line.split(" ", 1) for line in done.stdout.splitlines()]
    where = ["main", "target", "main"] if method == "fork" else ["main", "import", "target", "main"]
    assert [name for name, _ in told if name != "session"] == where
    assert len({text for name, text in told if name != "session"}) == 1, done.stdout
    assert {text for name, text in told if name == "session"} == {"True"}


def shows_descriptors(journal: Connection, gate: Connection) -> None:
    journal.send({fd: targets.file_of(int(fd)) for fd in os.listdir("/proc/self/fd")})
    os.read(gate.fileno(), 1)


def start(target: Callable[..., None], **kwargs: Any) -> ManagedProcess:
    make = factory(get_context("spawn"), resolve({"graceful_timeout": 5}))
    process: ManagedProcess = make(name="Sanic-Server-0-0", target=target, kwargs=kwargs, daemon=True)
    process.start()
    return process


def test_a_spawned_child_inherits_only_its_own_descriptors() -> None:
    """A child has neither the main process's descriptors nor those for another child that starts."""
    gate, opener = Pipe(False)
    open_to_all, _other = Pipe(False)
    os.set_inheritable(open_to_all.fileno(), True)
    journals = [Pipe(False) for _ in range(3)]
    processes: list[ManagedProcess] = []
    together = Barrier(len(journals))

    def begin(writer: Connection) -> None:
        together.wait(10)
        processes.append(start(shows_descriptors, journal=writer, gate=gate))

    threads = [Thread(target=begin, args=(writer,)) for _, writer in journals]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(processes) == len(journals)
    own = {targets.file_of(writer.fileno()) for _, writer in journals}
    for journal, writer in journals:
        assert journal.poll(30)
        has = {*journal.recv().values()}
        assert has & own == {targets.file_of(writer.fileno())}
        assert targets.file_of(gate.fileno()) in has
        assert targets.file_of(open_to_all.fileno()) not in has
    opener.send_bytes(b"12345678")
    for process in processes:
        process.join(15)
        assert process.exitcode == 0
        process.close()
    for connection in (gate, opener, open_to_all, _other, *(end for pair in journals for end in pair)):
        connection.close()


def tells_its_mask(journal: Connection) -> None:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    journal.send((os.getsid(0) == os.getpid(), sorted(mask)))


def test_signals_are_blocked_until_a_child_leads_its_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal to the main process's group is held back until the child leads its own."""
    begin = os.posix_spawn
    masks: list[set[int]] = []

    def refuse(*args: Any, setsid: bool = False, **kwargs: Any) -> int:
        if setsid:
            raise NotImplementedError("posix_spawn: setsid unavailable on this platform")
        masks.append({*kwargs["setsigmask"]})
        return begin(*args, **kwargs)

    monkeypatch.setattr(os, "posix_spawn", refuse)
    program._sets_session.cache_clear()
    try:
        journal, writer = Pipe(False)
        process = start(tells_its_mask, journal=writer)
        assert journal.recv() == (True, [])
        process.join(15)
        process.close()
        assert signal.SIGINT in masks[-1] and signal.SIGHUP in masks[-1] and signal.SIGTERM not in masks[-1]
    finally:
        program._sets_session.cache_clear()
        journal.close()
        writer.close()
