"""Measure the starts of servers: ``starts.py [--rounds N] [--row NAME ...]`` prints medians and their ratios.

All contenders run in each round, in turns. A worker serves once it has appended its pid to a file. It does so
after its start: applications of Sanic in ``after_server_start``, those of ASGI at ``lifespan.startup``.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import monotonic, sleep
from typing import NamedTuple

import large
from servers import answer, free_port, running
from usage import family, proportional, used

HERE = Path(__file__).parent
APPS = HERE / "apps"
# Where the other servers are installed, in an environment of their own.
PEERS = Path(os.environ.get("PEERS", HERE.parent / ".venvs" / "peers"))
# How often the file of the pids is read, and the longest wait for a server, seconds.
PAUSE = 0.002
PATIENCE = 60.0
# How long a server is left alone before it is asked, killed or measured, seconds.
REST = 0.3
KILLS = 3
FIRSTS = 8
REQUESTS = 400
SANIC_OPTIONS = ("--no-motd", "--no-access-logs")
GUNICORN = (
    "gunicorn",
    "asgi_app:app",
    "--worker-class=uvicorn_worker.UvicornWorker",
    "--bind=127.0.0.1:{port}",
)
UVICORN = ("uvicorn", "asgi_app:app", "--port={port}", "--log-level=warning", "--no-access-log")
# Granian waits 3.5 s before each replacement unless it is told otherwise.
RESPAWN = ("--respawn-failed-workers", "--respawn-interval=0.01")
GRANIAN = ("granian", "asgi_app:app", "--port={port}", "--interface=asgi", *RESPAWN)

Found = dict[str, float]
"""The title of a row to its figure."""


class Contender(NamedTuple):
    """A server and its options; those of the peers are programs of their environment."""

    command: tuple[str, ...]
    variables: Mapping[str, str]

    def line(self, port: int, workers: int) -> list[str]:
        """Return the command line."""
        program, *arguments = (part.format(port=port) for part in self.command)
        return [program, *arguments, f"--workers={workers}"]


def sanic(module: str, **variables: str) -> Contender:
    """Return a contender that serves Sanic."""
    command = (sys.executable, "-m", module, "sanic_app:app", "--port={port}", *SANIC_OPTIONS)
    return Contender(command, variables)


def peer(program: str, *arguments: str) -> Contender:
    """Return a contender that serves ASGI."""
    return Contender((str(PEERS / "bin" / program), *arguments), {})


OURS = {
    mode: sanic("worker", SANIC_WORKER_PRELOAD=mode, SANIC_WORKER_MIN_UPTIME="0")
    for mode in ("off", "framework", "app")
}
PACKAGES = ("gunicorn", "uvicorn-worker", "uvicorn", "granian", "uvloop", "httptools")
PRELOADING = "gunicorn --preload"
OTHERS = {
    "gunicorn": peer(*GUNICORN),
    PRELOADING: peer(*GUNICORN, "--preload"),
    "uvicorn": peer(*UVICORN),
    "granian": peer(*GRANIAN),
}
CONTENDERS = {"stock": sanic("sanic"), **OURS, **OTHERS}


class ServerError(Exception):
    """A server has ended, or takes too long."""


class Server(NamedTuple):
    """A running server."""

    process: subprocess.Popen[bytes]
    port: int
    serving: Path
    began: float

    def pids(self) -> list[int]:
        """Return the pids of all workers that have begun to serve."""
        return [int(line) for line in self.serving.read_text().split()]

    def cpu(self) -> float:
        """Return the CPU time that its present processes have taken, seconds."""
        return sum(used(pid)[1] for pid in family(self.process.pid)) / 1e9

    def until(self, is_reached: Callable[[], bool], began: float) -> float:
        """Wait for something; return the time since ``began``, seconds."""
        while not is_reached():
            if self.process.poll() is not None or monotonic() - began > PATIENCE:
                raise ServerError(f"code {self.process.returncode} after {monotonic() - began:.1f} s")
            sleep(PAUSE)
        return monotonic() - began

    def until_serving(self, workers: int, began: float) -> float:
        """Wait until this number of workers have begun to serve; return the time since ``began``."""
        return self.until(lambda: len(self.pids()) >= workers, began)


class Bench:
    """Starts servers in a folder, which has the modules that they import."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        large.write(folder)

    def environment(self, variables: Mapping[str, str]) -> dict[str, str]:
        """Return the environment of this process, without settings of a server, and with cached code."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SANIC_", "WORKER_")) and name != "PYTHONDONTWRITEBYTECODE"
        }
        paths = [str(APPS), str(self._folder), os.environ.get("PYTHONPATH", "")]
        return {**kept, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **variables}

    def warm_up(self) -> None:
        """Start each contender once: the first start writes the cached code."""
        for contender in filter(is_installed, CONTENDERS):
            self.start(contender, 1)

    @contextmanager
    def serve(self, command: Callable[[int], list[str]], variables: Mapping[str, str]) -> Iterator[Server]:
        """Start a server; stop it at the end."""
        serving = self._folder / "serving"
        serving.write_bytes(b"")
        port = free_port()
        env = self.environment({**variables, "SERVING": str(serving)})
        began = monotonic()
        with running(command(port), cwd=APPS, env=env) as process:
            yield Server(process, port, serving, began)

    @contextmanager
    def all_serve(self, contender: str, workers: int, imports: str = "") -> Iterator[tuple[Server, float]]:
        """Start a server of this contender; return it once all workers serve, with the time, seconds."""
        one = CONTENDERS[contender]
        variables = {**one.variables, "IMPORTS": imports}
        with self.serve(lambda port: one.line(port, workers), variables) as server:
            yield server, server.until_serving(workers, server.began)

    def start(self, contender: str, workers: int) -> Found:
        """Measure the start of a server."""
        with self.all_serve(contender, workers) as (server, seconds):
            row = "1 worker" if workers == 1 else f"{workers} workers"
            return {row: seconds, f"{row}, CPU": server.cpu()}

    def first(self, contender: str) -> Found:
        """Measure the first request to a worker, ms: of a new server, and of each replacement."""
        samples = []
        with self.all_serve(contender, 1) as (server, _):
            for number in range(2, FIRSTS + 2):
                sleep(REST)
                began = monotonic()
                assert answer(server.port, timeout=PATIENCE) == b"served"
                samples.append(monotonic() - began)
                os.kill(server.pids()[-1], signal.SIGKILL)
                server.until_serving(number, began)
        return {"first request, ms": 1e3 * median(samples)}

    def script(self, contender: str) -> Found:
        """Measure the start of a script, which installs sanic-worker unless it is for stock."""
        variables = {**CONTENDERS[contender].variables, "INSTALL": "" if contender == "stock" else "1"}

        def command(port: int) -> list[str]:
            return [sys.executable, str(APPS / "sanic_app.py"), str(port), "8"]

        with self.serve(command, variables) as server:
            return {"a script, 8 workers": server.until_serving(8, server.began)}

    def slow(self, contender: str) -> Found:
        """Measure the start with an application of slow imports, or one such import alone."""
        if contender == "one import":
            began = monotonic()
            env = self.environment({"IMPORTS": "slow_imports"})
            subprocess.run([sys.executable, "-c", "import sanic_app"], env=env, cwd=APPS, check=True)
            seconds = monotonic() - began
        else:
            with self.all_serve(contender, 8, "slow_imports") as (_, seconds):
                pass
        return {"1.5 s of imports, 8 workers": seconds}

    def killed(self, contender: str) -> Found:
        """Measure the time from a SIGKILL to a worker until its replacement serves, ms."""
        samples = []
        # Each worker is killed once: Granian gives up at the second exit of the same one within 5.5 s.
        with self.all_serve(contender, KILLS) as (server, _):
            for number, pid in enumerate(server.pids(), KILLS + 1):
                sleep(REST)
                began = monotonic()
                os.kill(pid, signal.SIGKILL)
                samples.append(server.until_serving(number, began))
        return {"a killed worker, ms": 1e3 * median(samples)}

    def rolling(self, contender: str) -> Found:
        """Measure the time from a SIGHUP until 8 workers are replaced, and the previous ones gone."""
        with self.all_serve(contender, 8) as (server, _):
            sleep(REST)
            previous = server.pids()
            began = monotonic()
            server.process.send_signal(signal.SIGHUP)

            def is_over() -> bool:
                return len(server.pids()) >= 16 and not any(map(is_alive, previous))

            return {"8 workers replaced": server.until(is_over, began)}

    def memory(self, contender: str, imports: str) -> Found:
        """Measure the memory of all processes of a server with 8 workers, after some requests, MB."""
        with self.all_serve(contender, 8, imports) as (server, _):
            for _ in range(REQUESTS):
                assert answer(server.port, timeout=PATIENCE) == b"served"
            sleep(REST)
            pss = sum(map(proportional, family(server.process.pid)))
            return {f"{'large' if imports else 'trivial'} application, MB": pss}


def versions() -> list[str]:
    """Return the other servers that are installed, with their versions."""
    script = "from importlib.metadata import version; import sys; print(*map(version, sys.argv[1:]))"
    if not is_installed("gunicorn"):
        return []
    command = [str(PEERS / "bin" / "python"), "-c", script, *PACKAGES]
    found = subprocess.check_output(command, text=True).split()
    return [f"{name} {version}" for name, version in zip(PACKAGES, found, strict=True)]


def is_alive(pid: int) -> bool:
    """Return whether a process has not ended."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


class Row(NamedTuple):
    """A measurement, and its contenders."""

    contenders: tuple[str, ...]
    measure: Callable[[Bench, str], Found]


SANICS = ("stock", *OURS)
ROWS = {
    "start-1": Row((*SANICS, *OTHERS), lambda bench, contender: bench.start(contender, 1)),
    "start-8": Row((*SANICS, *OTHERS), lambda bench, contender: bench.start(contender, 8)),
    "start-32": Row((*SANICS, *OTHERS), lambda bench, contender: bench.start(contender, 32)),
    "script": Row(SANICS, Bench.script),
    "slow": Row((*SANICS, PRELOADING, "one import"), Bench.slow),
    "first": Row(tuple(OURS), Bench.first),
    "killed": Row((*OURS, *OTHERS), Bench.killed),
    "rolling": Row((*OURS, *OTHERS), Bench.rolling),
    "memory": Row((*SANICS, *OTHERS), lambda bench, contender: bench.memory(contender, "")),
    "memory-large": Row((*SANICS, *OTHERS), lambda bench, contender: bench.memory(contender, large.PACKAGE)),
}


def is_installed(contender: str) -> bool:
    """Return whether the program of a contender is there."""
    return contender not in CONTENDERS or Path(CONTENDERS[contender].command[0]).exists()


def main() -> None:
    """Measure the rows in turns, and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--row", action="append", choices=[*ROWS])
    arguments = parser.parse_args()
    # `timeout` must not leave a server behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    print(*versions(), sep=", ")
    for name in CONTENDERS:
        if not is_installed(name):
            print(f"skipped: {name} is not in {PEERS}")
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with TemporaryDirectory(prefix="starts-") as folder:
        bench = Bench(Path(folder))
        bench.warm_up()
        # An interrupt shows the figures so far.
        with suppress(KeyboardInterrupt):
            for _, row in product(range(arguments.rounds), arguments.row or ROWS):
                for contender in filter(is_installed, ROWS[row].contenders):
                    try:
                        figures = ROWS[row].measure(bench, contender)
                    except ServerError as error:
                        print(f"no figure of {contender} in row {row}: {error}")
                        continue
                    for title, value in figures.items():
                        found[title][contender].append(value)
    for title, values in found.items():
        print(f"\n{title}")
        of = {name: median(one) for name, one in values.items()}
        for name, value in of.items():
            ratios = [
                f"{value / of.get(base, math.nan):.2f} of {base}" for base in ("stock", "off", "one import")
            ]
            spread = f"{min(values[name]):.3g}..{max(values[name]):.3g}"
            print(f"  {name:20}{value:9.3g}  {spread:18}{', '.join(r for r in ratios if 'nan' not in r)}")


if __name__ == "__main__":
    main()
