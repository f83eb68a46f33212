"""All faults at once, at random, under load: CHAOS_SECONDS sets the duration, CHAOS_SEED repeats a run."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGCONT, SIGHUP, SIGKILL, SIGSTOP, SIGTERM, SIGTTIN, SIGTTOU, Signals
from time import monotonic
from typing import Any

import pytest
import trustme

from worker._supervisor.lifecycle import IMPOSSIBLE

from .harness import Server
from .test_supervision import APP, Run, all_new, pids, steady
from .tools import free_port, status, wait_until
from .watchers import watching

SECONDS = float(os.environ.get("CHAOS_SECONDS", "40"))
SEED = int(os.environ.get("CHAOS_SEED", str(random.randrange(1_000_000))))
WORKERS = 4
GRACE = 5.0
# How long a fault lasts, seconds.
PAUSES = (0.05, 1.0)

pytestmark = [pytest.mark.ours, pytest.mark.chaos, pytest.mark.timeout(300 + 3 * SECONDS)]


@dataclass
class Chaos:
    """The faults done to a server, and the times at which they harmed a worker.

    Attributes:
        harmed: Spans of the monotonic clock in which requests in flight in some worker may fail.
        done: How often each fault was done.
    """

    server: Server
    code: Path
    chance: random.Random
    harmed: list[tuple[float, float]] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    wanted: int = WORKERS

    def entries(self, *labels: str) -> list[int]:
        """Return the pids of live processes whose names have one of these labels."""
        with contextlib.suppress(Exception):
            table = self.server.table()
            alive = self.server.processes()
            named = {
                name: entry.get("pid") for name, entry in table.items() if any(one in name for one in labels)
            }
            return [pid for pid in named.values() if pid in alive]
        return []

    def victim(self, *labels: str) -> int | None:
        found = self.entries(*labels)
        return self.chance.choice(found) if found else None

    def send(self, pid: int, signum: Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signum)

    def kill(self, *labels: str) -> None:
        if (pid := self.victim(*labels)) is not None:
            began = monotonic()
            self.send(pid, SIGKILL)
            self.harmed.append((began, monotonic()))

    def stop(self, *labels: str) -> None:
        """Suspend one process for a while; sometimes that is its end."""
        if (pid := self.victim(*labels)) is not None:
            began = monotonic()
            self.send(pid, SIGSTOP)
            self.pause()
            self.send(pid, self.chance.choice([SIGCONT, SIGCONT, SIGKILL]))
            # A process that was told to stop meanwhile may be killed: it could not receive the signal.
            self.harmed.append((began, monotonic() + 1))

    def kill_worker(self) -> None:
        self.kill("Server")

    def stop_worker(self) -> None:
        self.stop("Server")

    def kill_helper(self) -> None:
        self.kill("Reloader", "Inspector")

    def stop_helper(self) -> None:
        self.stop("Reloader", "Inspector")

    def preload_processes(self) -> list[int]:
        """Return the preload processes. Their children have the same title until they begin."""
        found = []
        for pid, command in self.server.processes().items():
            with contextlib.suppress(OSError):
                if command.endswith("preload process") and int(status(pid)[1]) == self.server.pid:
                    found.append(pid)
        return found

    def kill_preload_process(self) -> None:
        if found := self.preload_processes():
            self.send(self.chance.choice(found), SIGKILL)

    def stop_preload_process(self) -> None:
        """Suspend one for a while, in which servers are started."""
        if found := self.preload_processes():
            pid = self.chance.choice(found)
            self.send(pid, SIGSTOP)
            self.reload()
            self.pause()
            self.send(pid, SIGCONT)

    def has_only_processes_of_use(self) -> bool:
        """Whether the others are the main process, the resource tracker, the reloader and the inspector, the
        current preload process, and earlier ones that have children.
        """
        others = 4 + len(found := self.preload_processes())
        return len(self.server.processes()) == WORKERS + others and sum(map(is_childless, found)) <= 1

    def use_up_descriptors(self) -> None:
        """Take all descriptors from the main process for a while, in which workers exit and others are
        requested.
        """
        limits = resource.prlimit(self.server.pid, resource.RLIMIT_NOFILE)
        used = len(os.listdir(f"/proc/{self.server.pid}/fd"))
        resource.prlimit(self.server.pid, resource.RLIMIT_NOFILE, (used, limits[1]))
        self.chance.choice([self.reload, self.kill_worker, self.restart])()
        self.pause()
        resource.prlimit(self.server.pid, resource.RLIMIT_NOFILE, limits)

    def reload(self) -> None:
        self.server.signal(SIGHUP)

    def restart(self) -> None:
        with contextlib.suppress(Exception):
            order = self.chance.random() < 0.5
            self.server.post("/m/restart", {"all_workers": True, "zero_downtime": order}, timeout=2)

    def scale(self) -> None:
        more = self.wanted < WORKERS or (self.wanted == WORKERS and self.chance.random() < 0.5)
        self.wanted += 1 if more else -1
        self.server.signal(SIGTTIN if more else SIGTTOU)

    def break_code(self) -> None:
        self.code.write_text("broken")
        self.reload()
        self.pause()
        self.code.write_text(self.chance.choice(["burn 0.2", "fine"]))
        self.reload()

    def pause(self) -> None:
        threading.Event().wait(self.chance.uniform(*PAUSES))

    def go_on(self, seconds: float) -> None:
        acts: list[Callable[[], None]] = [
            self.kill_worker,
            self.stop_worker,
            self.kill_helper,
            self.stop_helper,
            self.kill_preload_process,
            self.stop_preload_process,
            self.use_up_descriptors,
            self.reload,
            self.restart,
            self.scale,
            self.break_code,
        ]
        until = monotonic() + seconds
        while monotonic() < until:
            act = self.chance.choice(acts)
            self.done[act.__name__] += 1
            act()
            self.pause()

    def come_to_rest(self) -> None:
        """Restore the number of workers, and code that runs."""
        self.code.write_text("fine")
        while self.wanted != WORKERS:
            self.scale()
        self.reload()


def is_childless(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return not Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return True


def inventory(server: Server) -> tuple[int, int]:
    """Return the number of descriptors of the main process, and its memory, in KiB."""
    about = Path(f"/proc/{server.pid}/status").read_text()
    resident = int(about.partition("VmRSS:")[2].split()[0])
    return len(os.listdir(f"/proc/{server.pid}/fd")), resident


def zombies(server: Server) -> list[str]:
    """Return the zombies of the main process."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            state, parent, *_ = status(int(entry))
            if state == "Z" and int(parent) == server.pid:
                found.append(entry)
    return found


def unexplained(seen: dict[str, Any], harmed: list[tuple[float, float]]) -> list[Any]:
    """Return the failures of requests during which no worker was harmed."""
    return [
        (sent, failed, why)
        for sent, failed, why in seen["failures"]
        if not any(sent <= end and begin <= failed for begin, end in harmed)
    ]


def test_chaos(run: Run, tmp_path: Path) -> None:
    inspector = free_port()
    env = {
        "SANIC_INSPECTOR": "true",
        "SANIC_INSPECTOR_PORT": str(inspector),
        "SANIC_WORKER_GRACEFUL_TIMEOUT": str(GRACE),
        "GRACEFUL": "3",
    }
    # The limit is for crash loops; here the test itself kills.
    limits = ("--max-consecutive-failures=100000", "--backoff-max=0.5")
    # Some init scripts start with the standard input closed.
    server = run(APP, "--reload", *limits, workers=WORKERS, env=env, closed="<&-").wait_ready()
    pids(server, WORKERS)
    chaos = Chaos(server, tmp_path / "code", random.Random(SEED))
    # A first reload allocates memory once.
    chaos.come_to_rest()
    wait_until(
        lambda: all(entry["starts"] == 2 for entry in server.settled(WORKERS).values()), "a reload", 60
    )
    before = inventory(server)
    with (
        watching(inspector, tmp_path) as watchers,
        steady(server, "/work", "--rate=50") as kept,
        steady(server, "/work", "--rate=50", "--close") as closed,
    ):
        watchers.see(WORKERS)
        chaos.go_on(SECONDS)
        chaos.come_to_rest()
        wait_until(lambda: not set(chaos.entries("Server")) - {*pids(server, WORKERS).values()}, "rest", 90)
        wait_until(chaos.has_only_processes_of_use, "nobody outside of the table", 60)
        # The reloader and the inspector may have been forked from earlier ones.
        retired = max(0, len(chaos.preload_processes()) - 1)
        print(f"watched by: {', '.join(watchers.see(WORKERS)) or 'nobody'}")
    after = inventory(server)
    answered = kept["answered"] + closed["answered"]
    failed = len(kept["failures"]) + len(closed["failures"])
    print(f"seed {SEED}, {SECONDS:g} s: {dict(chaos.done)}")
    print(f"answered {answered}, availability {100 * answered / (answered + failed):.3f} %")
    print(f"failed in a killed or stopped worker: {failed}; raced with an idle close: {kept['raced']}")
    print(f"worst {max(kept['worst'], closed['worst']):.3f} s")
    print(f"main: descriptors {before[0]} -> {after[0]}, KiB {before[1]} -> {after[1]}")
    assert all(entry["state"] == "ACKED" for entry in server.settled(WORKERS).values())
    assert unexplained(kept, chaos.harmed) == []
    assert unexplained(closed, chaos.harmed) == []
    assert zombies(server) == []
    # A socket and a pidfd for each.
    assert after[0] <= before[0] + 2 + 2 * retired
    assert after[1] <= before[1] + 4096
    assert IMPOSSIBLE not in server.log()
    assert server.stop() == 0


def test_a_stop_at_a_random_time_leaves_no_process(tmp_path: Path) -> None:
    """At any moment, the server ends in order and leaves nothing behind."""
    chance = random.Random(SEED)
    over = monotonic() + SECONDS / 2
    rounds = 0
    while monotonic() < over:
        options = chance.choice([(), ("--reload",)])
        (tmp_path / "code").write_text("fine")
        env = {"GRACEFUL": "3"}
        with Server.run(APP, *options, "--max-surge=4", cwd=tmp_path, workers=WORKERS, env=env) as server:
            codes = {0, -SIGTERM}
            if chance.random() < 0.8:
                # Before the server has handlers, the signal has its default action.
                codes = {0}
                pids(server.wait_ready(), WORKERS)
                chaos = Chaos(server, tmp_path / "code", chance)
                acts = [
                    chaos.reload,
                    chaos.break_code,
                    chaos.scale,
                    chaos.kill_worker,
                    chaos.kill_preload_process,
                ]
                for act in chance.choices(acts, k=chance.randrange(3)):
                    act()
            threading.Event().wait(chance.uniform(0, 0.5))
            began = monotonic()
            assert server.stop() in codes, server.log()
            assert monotonic() - began < GRACE + 5
        rounds += 1
    print(f"seed {SEED}: {rounds} stops")


class SlowClient(threading.Thread):
    """Connect over TLS again and again, and delay the last flight of each handshake."""

    def __init__(self, port: int, context: ssl.SSLContext, over: threading.Event, seed: int) -> None:
        super().__init__()
        self.port, self.context, self.over = port, context, over
        self.chance = random.Random(seed)
        self.answered = 0
        self.failures: list[str] = []

    def run(self) -> None:
        while not self.over.is_set():
            try:
                assert self.ask().startswith(b"HTTP/1.1 200 ")
                self.answered += 1
            except (OSError, AssertionError) as error:
                self.failures.append(repr(error))

    def ask(self) -> bytes:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = self.context.wrap_bio(incoming, outgoing, server_hostname="localhost")
        with socket.create_connection(("127.0.0.1", self.port), 30) as sock:
            is_done = False
            while not is_done:
                try:
                    tls.do_handshake()
                    is_done = True
                    self.over.wait(self.chance.uniform(0, 0.6))
                    tls.write(b"GET /pid HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                except ssl.SSLWantReadError:
                    pass
                sock.sendall(outgoing.read())
                incoming.write(sock.recv(65536))
            while True:
                with contextlib.suppress(ssl.SSLWantReadError):
                    return tls.read(65536)
                incoming.write(sock.recv(65536))


def test_restarts_lose_no_connection_during_its_handshake(run: Run, tmp_path: Path) -> None:
    """No connection is lost whose handshake is under way when its worker is to stop."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    certificate.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    args = (f"--cert={tmp_path / 'cert.pem'}", f"--key={tmp_path / 'key.pem'}")
    server = run(APP, *args, workers=2, tls=context).wait_ready()
    before = pids(server, 2)
    over = threading.Event()
    clients = [SlowClient(server.port, context, over, SEED + number) for number in range(16)]
    silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(5)]
    try:
        for client in clients:
            client.start()
        until = monotonic() + SECONDS / 3
        while monotonic() < until:
            server.signal(SIGHUP)
            before = all_new(server, before)
    finally:
        over.set()
        for client in clients:
            client.join()
        for sock in silent:
            sock.close()
    assert [failure for client in clients for failure in client.failures] == []
    print(f"seed {SEED}: {sum(client.answered for client in clients)} slow handshakes")
    assert server.stop() == 0
